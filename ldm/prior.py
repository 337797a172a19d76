"""The trained latent diffusion model at work: seeds -> instance latents f, without the generator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from dnnlib import UserError
from ldm import ddim, denoiser, schedule
from ldm.whitening import Whitening
from torch_utils import checkpoint
from torch_utils.rng import sample_normal

NORMALIZATIONS = ("rms", "none")


def normalize(f: torch.Tensor, kind: str) -> torch.Tensor:
    """What the encoder does to its latents ``[N, C, H, W]``: ``rms`` makes the RMS over C, H, W one per sample."""
    assert kind in NORMALIZATIONS, kind
    return f if kind == "none" else f * (f.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()


def check_sampling(num_steps: int, steps: int, eta: float, spacing: str) -> None:
    """`UserError` unless a sampler with these settings exists for a schedule of `num_steps`."""
    if not 1 <= steps <= num_steps:
        raise UserError(f"--steps {steps}: choose 1 to {num_steps}, the steps that this model was trained with.")
    if not 0 <= eta <= 1:
        raise UserError(f"--eta {eta:g}: choose 0 (deterministic DDIM) to 1 (DDPM).")
    if spacing not in schedule.SPACINGS:
        raise UserError(f"--spacing {spacing}: choose {' or '.join(schedule.SPACINGS)}.")


class Prior:
    """A latent diffusion model ready to sample.

    `eps(x, t)` is its noise estimate in whitened space (weights: the moving average), `alpha_bar` its schedule,
    `decode` the way from whitened space to the encoder's.
    """

    def __init__(self, path: str, state: dict[str, Any], device: torch.device) -> None:
        """state: an ``ldm`` checkpoint, as read from `path` (for messages)."""
        self.path, self.device = path, device
        try:
            self.config: dict[str, Any] = state["config"]
            self.latent_shape = tuple(state["latent_shape"])
            self.gan_hash: str = state["gan_hash"]
            self.normalization: str = state["normalize"]
            self.progress: dict[str, Any] = state["progress"]
            self.dataset: dict[str, Any] = state["dataset"]
            self.network: str = state["network"]
            self.whitening = Whitening.from_state(state["whitening"]).to(device)
            self.alpha_bar = denoiser.alpha_bars_of(self.config)
            self.net = denoiser.build(self.config, self.latent_shape)
            self.net.load_state_dict(state["ema"])
            self.hash = checkpoint.weights_hash(state["ema"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is damaged: its parts are missing or do not fit. Use another snapshot.") from error
        self.net.to(device).eval().requires_grad_(False)

    def eps(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Noise estimate for whitened noisy latents ``[N, C, H, W]`` at times int64 ``[N]``."""
        return self.net(x, t)

    def decode(self, w: torch.Tensor) -> torch.Tensor:
        """Latents f as the encoder gives them, from whitened clean ones; both ``[N, C, H, W]``."""
        return normalize(self.whitening.invert(w), self.normalization)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], steps: int = 50, eta: float = 0.0, spacing: str = "uniform",
               batch_size: int = 64) -> torch.Tensor:
        """Latents f ``[n, C, H, W]`` on the CPU, one per seed; row i depends on ``seeds[i]`` alone.

        Raises `UserError` as `check_sampling`.
        """
        check_sampling(len(self.alpha_bar), steps, eta, spacing)
        times = schedule.timesteps(steps, len(self.alpha_bar), spacing)
        rows = [torch.empty(0, *self.latent_shape)]
        for start in range(0, len(seeds), batch_size):
            part = seeds[start:start + batch_size]

            def noise(i: int, part: Sequence[int] = part) -> torch.Tensor:
                return sample_normal(part, self.latent_shape, "ldm-noise", i)

            x_T = sample_normal(part, self.latent_shape, "ldm").to(self.device)
            rows.append(self.decode(ddim.sample(self.eps, x_T, self.alpha_bar, times, eta, noise)).cpu())
        return torch.cat(rows)

    def provenance(self, steps: int, eta: float, spacing: str) -> dict[str, Any]:
        """What a result should say about latents from here; JSON types."""
        return {"ldm": self.path, "ldm_hash": self.hash, "ldm_cfg": self.config["cfg"],
                "ldm_kimg": self.progress["cur_nimg"] / 1000, "ldm_steps": steps, "ldm_eta": eta,
                "ldm_spacing": spacing}


def load_prior(path: str | os.PathLike, device: torch.device) -> Prior:
    """The model of an ``ldm`` checkpoint; `UserError` for a missing, wrong or damaged file."""
    return Prior(str(path), checkpoint.load(path, "ldm"), device)
