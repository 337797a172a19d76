"""The flags of gen_images.py and calc_metrics.py that say what a network is told. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import click

_OPTIONS = [
    click.option("--ldm", metavar="PKL", help="Latents of a latent diffusion model: of ldm/train.py or ldm/sample.py"),
    click.option("--ref", metavar="IMAGES", help="Latents of reference images (file, folder, zip); seed k: number k"),
    click.option("--instances", metavar="K|FILE", help="Latents of K images that stand for the training set"),
    click.option("--prior", metavar="NAME|FILE",
                 help="Latents made of the training set's: train, vicinal[:ALPHA], gmm[:K], kmeans[:K]"),
    click.option("--class", "class_idx", type=int, help="Class of class-conditional networks"),
    click.option("--sigma", type=float, help="DIC-GAN: noise scale of h; default: as trained"),
    click.option("--trunc", type=float, help="Truncation ψ, for networks with a mapping network  [default: 1]"),
    click.option("--ldm-sampler", type=click.Choice(["ddim", "dpm2m", "pc", "gaussian"]),
                 help="Sampler of --ldm: DDIM, second order, with corrector, or (control) normal noise  "
                 "[default: ddim]"),
    click.option("--ldm-steps", type=click.IntRange(min=1), help="Steps of --ldm  [default: 50; dpm2m: 20]"),
    click.option("--eta", type=float, help="DDIM stochasticity of --ldm, 0 .. 1  [default: 0]"),
    click.option("--cfg-scale", type=float, help="Classifier-free guidance of --ldm by its class  [default: 1]"),
    click.option("--ldm-h", type=click.Choice(["renoised", "truncated"]),
                 help="DIC-GAN: h is f of --ldm with noise added, or the state of its chain at σ  [default: renoised]"),
]


@dataclass(frozen=True)
class SourceFlags:
    """Values of `source_options`; None = not given."""

    ldm: str | None = None
    ref: str | None = None
    instances: str | None = None
    prior: str | None = None
    class_idx: int | None = None
    sigma: float | None = None
    trunc: float | None = None
    ldm_sampler: str | None = None
    ldm_steps: int | None = None
    eta: float | None = None
    cfg_scale: float | None = None
    ldm_h: str | None = None

    @classmethod
    def take(cls, flags: dict[str, Any]) -> SourceFlags:
        """Removes these flags from `flags`."""
        return cls(**{field.name: flags.pop(field.name) for field in fields(cls)})

    @property
    def latent_sources(self) -> list[str]:
        """The given flags that say where latents come from."""
        return [f"--{name}" for name in ("ldm", "ref", "instances", "prior") if getattr(self, name) is not None]

    @property
    def of_ldm(self) -> dict[str, Any]:
        """Values that only mean something beside ``--ldm``, by flag."""
        return {"--ldm-sampler": self.ldm_sampler, "--ldm-steps": self.ldm_steps, "--eta": self.eta,
                "--cfg-scale": self.cfg_scale, "--ldm-h": self.ldm_h}


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the flags to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
