"""The trained latent diffusion model at work: seeds -> latents, without the generator."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dnnlib import UserError
from dnnlib.build_limit import limit_for, limited
from ldm import ddim, denoiser, dpm, langevin, schedule
from ldm.checks import NORMALIZATIONS, check_model
from ldm.sampling_unet import for_sampling
from ldm.settings import Sampling
from ldm.whitening import Whitening
from torch_utils import checkpoint
from torch_utils.rng import mix_seed, sample_normal


def normalize(f: torch.Tensor, kind: str) -> torch.Tensor:
    """What the encoder does to its latents ``[N, C, H, W]``.

    ``rms`` makes the RMS over C, H, W one per sample, ``unit`` the length over C (IC-GAN's and DISP's features).
    """
    assert kind in NORMALIZATIONS, kind
    if kind == "unit":
        return torch.nn.functional.normalize(f, dim=1)
    return f if kind == "none" else f * (f.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()


class Prior:
    """A latent diffusion model ready to sample.

    `eps(x, t)` is its noise estimate in whitened space (weights: the moving average), `alpha_bar` its schedule,
    `decode` the way from whitened space to that of the latents, `encode` the way back into noise. `space`: ``f``,
    latents of the encoder; ``w`` or ``s``, of StyleGAN2. `labels`: classes int64 ``[M]`` of the training latents where
    the model knows classes, else None.
    """

    def __init__(self, path: str, state: dict[str, Any], device: torch.device,
                 net: denoiser.NoiseEstimator | None = None) -> None:
        """state: an ``ldm`` checkpoint, as read from `path` (for messages). net: its estimator, if there is one yet."""
        self.path, self.device = path, device
        try:
            self.config: dict[str, Any] = state["config"]
            self.latent_shape = tuple(state["latent_shape"])
            self.gan_hash: str = state["gan_hash"]
            self.normalization: str = state["normalize"]
            self.space: str = state.get("space", "f")
            self.labels: torch.Tensor | None = state.get("labels")
            self.progress: dict[str, Any] = state["progress"]
            self.dataset: dict[str, Any] = state["dataset"]
            self.network: str = state["network"]
            self.whitening = Whitening.from_state(state["whitening"]).to(device)
            self.alpha_bar = denoiser.alpha_bars_of(self.config)
            self.net = for_sampling(net or self._build(state["ema"]))
            self.hash = "" if net else checkpoint.weights_hash(state["ema"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is damaged: its parts are missing or do not fit. Use another snapshot.") from error

    def _build(self, weights: dict[str, torch.Tensor]) -> denoiser.NoiseEstimator:
        net = denoiser.build(self.config, self.latent_shape)
        net.load_state_dict(weights)
        return net.to(self.device).eval().requires_grad_(False)

    def eps(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Noise estimate for whitened noisy latents ``[N, C, H, W]`` at times int64 ``[N]``, without a class."""
        return self.net(x, t)

    def decode(self, w: torch.Tensor) -> torch.Tensor:
        """Latents as the encoder gives them, from whitened clean ones; both ``[N, C, H, W]``."""
        return normalize(self.whitening.invert(w), self.normalization)

    def encode(self, f: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Noise ``[N, C, H, W]`` from which deterministic DDIM makes latents `f` ``[N, C, H, W]``, without a class.

        `steps` None = all, which comes back most closely.
        """
        times = schedule.timesteps(steps or len(self.alpha_bar), len(self.alpha_bar))
        return ddim.encode(self.eps, self.whitening.apply(f.to(self.device)), self.alpha_bar, times)

    def sample(self, seeds: Sequence[int], settings: Sampling | None = None, batch_size: int = 64) -> torch.Tensor:
        """Latents ``[n, C, H, W]`` on the CPU, one per seed; row i depends on ``seeds[i]`` alone.

        `settings` None = deterministic DDIM. Raises `UserError` as `Sampling.resolve`.
        """
        parts = self._states(seeds, settings or Sampling(), 1.0, batch_size)
        return torch.cat([torch.empty(0, *self.latent_shape), *(self.decode(x).cpu() for _, x in parts)])

    def sample_noisy(self, seeds: Sequence[int], sigma: float, settings: Sampling | None = None,
                     batch_size: int = 64) -> torch.Tensor:
        """h = sqrt(1 - sigma^2) f + sigma eps ``[n, C, H, W]`` of DIC-GAN (Eq. 1) by a chain that ends early.

        The state at which the chain's noise, brought back from whitened space, is as strong as that of h. Noise that is
        white there is coloured here: the chain stops where the strongest direction has enough, and the others are
        filled up with fresh noise. If the model is exact, h has the same distribution as from `sample` and noise added
        afterwards. f is not normalised. Raises `UserError` where the chain has no such time, and as `sample`.
        """
        total = sigma / math.sqrt(1 - sigma**2)  # noise of h / sqrt(1 - sigma^2)
        share = total / self.whitening.largest_spread
        end = 1 / (1 + share**2)
        if end <= float(self.alpha_bar[-1]):
            raise UserError(f"--sigma {sigma:g}: this latent model ends with less noise than that; use less sigma, or "
                            "--ldm-h renoised.")
        parts = []
        for part, x in self._states(seeds, settings or Sampling(), end, batch_size):
            missing = self.whitening.colour(sample_normal(part, self.latent_shape, "ldm-fill"), total, share)
            parts.append(self.whitening.invert(x / math.sqrt(end)).cpu() + missing)
        return math.sqrt(1 - sigma**2) * torch.cat([torch.empty(0, *self.latent_shape), *parts])

    @torch.no_grad()
    def _states(self, seeds: Sequence[int], settings: Sampling, end: float,
                batch_size: int) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Batches of seeds with their whitened states at alpha-bar `end`."""
        settings = settings.resolve(self.config)
        for start in range(0, len(seeds), batch_size):
            part = seeds[start:start + batch_size]
            yield part, self._run(part, settings, end)

    def _run(self, seeds: Sequence[int], settings: Sampling, end: float) -> torch.Tensor:
        def noise(i: int) -> torch.Tensor:
            return sample_normal(seeds, self.latent_shape, "ldm-noise", i)

        assert settings.steps is not None
        assert settings.spacing is not None
        x_T = sample_normal(seeds, self.latent_shape, "ldm").to(self.device)
        times = schedule.timesteps(settings.steps, len(self.alpha_bar), settings.spacing)
        times = [t for t in times if float(self.alpha_bar[t]) < end]
        eps: ddim.EpsFn = self.eps
        if self.labels is not None:
            y = torch.tensor(self.classes_of(seeds, settings.class_idx), device=self.device)
            eps = denoiser.guided(self.net, y, settings.cfg_scale)
        if settings.sampler == "gaussian":
            return x_T
        if settings.sampler == "dpm2m":
            return dpm.sample(eps, x_T, self.alpha_bar, times, end)
        if settings.sampler == "pc":
            return langevin.sample(eps, x_T, self.alpha_bar, times, noise, settings.corrections, settings.snr, end)
        return ddim.sample(eps, x_T, self.alpha_bar, times, settings.eta, noise, end)

    def classes_of(self, seeds: Sequence[int], class_idx: int | None) -> list[int]:
        """The class of each seed's latent: `class_idx`, or drawn from the training latents' as `Sampler` draws it."""
        assert self.labels is not None
        if class_idx is not None:
            return [class_idx] * len(seeds)
        return self.labels[[mix_seed(seed, "class") % len(self.labels) for seed in seeds]].tolist()

    def provenance(self, settings: Sampling) -> dict[str, Any]:
        """What a result should say about latents from here; JSON types."""
        known = settings.resolve(self.config).state()
        return {"ldm": self.path, "ldm_hash": self.hash, "ldm_cfg": self.config["cfg"], "ldm_space": self.space,
                "ldm_kimg": self.progress["cur_nimg"] / 1000, **{f"ldm_{key}": value for key, value in known.items()}}


def load_prior(path: str | os.PathLike, device: torch.device) -> Prior:
    """The model of an ``ldm`` checkpoint; `UserError` for a missing, wrong or damaged file."""
    state = checkpoint.load(path, "ldm")
    check_model(path, state)
    with limited(limit_for(state["ema"])):
        return Prior(str(path), state, device)
