"""How latents are drawn from a latent diffusion model: sampler, steps and classes, as plain data. No heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dnnlib import UserError
from ldm.names import SAMPLERS, SPACINGS

# Steps by default: the second-order sampler needs fewer, no model is asked for "gaussian".
STEPS = {"ddim": 50, "dpm2m": 20, "pc": 50, "gaussian": 1}
# Times by default. Second order needs steps of like length in the logarithm of the signal-to-noise ratio, which
# these give for either schedule.
SECOND_ORDER_SPACING = {"linear": "quadratic", "cosine": "uniform"}


@dataclass(frozen=True)
class Sampling:
    """Settings of a sampler.

    sampler      ``ddim``; ``dpm2m``, DPM-Solver++ of second order; ``pc``, DDIM steps with Langevin corrections;
                 ``gaussian``, the control: normal noise with the mean and covariance of the latents, no model
    steps        None = `STEPS` of the sampler
    eta          ddim: 0 deterministic ... 1 DDPM
    spacing      of the times, see `ldm.schedule.timesteps`; None = the sampler's
    corrections  pc: Langevin steps per step; snr: their size
    class_idx    the class of all latents, for models of ``--cond 1``; None = drawn as often as in training
    cfg_scale    classifier-free guidance: 0 no class, 1 the class as learned, above 1 more of it
    """

    sampler: str = "ddim"
    steps: int | None = None
    eta: float = 0.0
    spacing: str | None = None
    corrections: int = 1
    snr: float = 0.16
    class_idx: int | None = None
    cfg_scale: float = 1.0

    def resolve(self, config: Mapping[str, Any]) -> Sampling:
        """The same with the defaults filled in for a model of this configuration; `UserError` for what can't be."""
        if self.sampler not in SAMPLERS:
            raise UserError(f"--sampler {self.sampler}: choose {', '.join(SAMPLERS)}.")
        num_steps, kind = config["schedule"]["num_steps"], config["schedule"]["kind"]
        steps = STEPS[self.sampler] if self.steps is None else self.steps
        spacing = self.spacing or (SECOND_ORDER_SPACING[kind] if self.sampler == "dpm2m" else "uniform")
        if not 1 <= steps <= num_steps:
            raise UserError(f"--steps {steps}: choose 1 to {num_steps}, the steps that this model was trained with.")
        if not 0 <= self.eta <= 1:
            raise UserError(f"--eta {self.eta:g}: choose 0 (deterministic DDIM) to 1 (DDPM).")
        if spacing not in SPACINGS:
            raise UserError(f"--spacing {spacing}: choose {' or '.join(SPACINGS)}.")
        if not 0 < self.snr <= 0.5 or self.corrections < 1:
            raise UserError(f"--snr {self.snr:g}, --corrections {self.corrections}: the size of a Langevin step is "
                            "above 0 and at most 0.5, and there is at least one.")
        self._check_unused()
        self._check_class(config["net"].get("classes", 0))
        return Sampling(**{**asdict(self), "steps": steps, "spacing": spacing})

    def _check_unused(self) -> None:
        """Settings that the sampler would ignore are refused."""
        default = Sampling()
        if self.sampler != "ddim" and self.eta != default.eta:
            raise UserError(f"--eta belongs to --sampler ddim; {self.sampler} has none, leave it out.")
        if self.sampler != "pc" and (self.snr, self.corrections) != (default.snr, default.corrections):
            raise UserError("--snr and --corrections belong to --sampler pc; leave them out.")
        if self.sampler == "gaussian" and self.steps not in (None, 1):
            raise UserError("--sampler gaussian takes no steps; leave --steps out.")

    def _check_class(self, classes: int) -> None:
        if not classes and (self.class_idx is not None or self.cfg_scale != 1):
            raise UserError("This latent model was trained without classes: leave out --class and --cfg-scale, or "
                            "train one with ldm/train.py --cond 1.")
        if self.class_idx is not None and not 0 <= self.class_idx < classes:
            raise UserError(f"--class {self.class_idx}: this latent model knows classes 0 .. {classes - 1}.")
        if not 0 <= self.cfg_scale <= 100:
            raise UserError(f"--cfg-scale {self.cfg_scale:g}: choose 0 (no class) or more, 1 to 4 as a rule.")

    def state(self) -> dict[str, Any]:
        """For files and records; JSON types."""
        return asdict(self)

    @classmethod
    def asked(cls, values: Mapping[str, Any]) -> Sampling:
        """Of a user's values, None where nothing was said."""
        known = {field.name for field in fields(cls)}
        assert set(values) <= known, values
        return cls(**{key: value for key, value in values.items() if value is not None})
