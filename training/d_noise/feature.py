"""Diffusion of the projected discriminator's features (Diffusion-GAN's Projected GAN variant)."""

from __future__ import annotations

import torch

from dnnlib import UserError
from training.d_noise.diffusion import POOL, AdaptiveDiffusion, diffuse

POSITIONS = ("first", "last")
MAX_NONZERO = 48  # of the pool: a quarter of the channels stays clean at any p


class FeatureDiffusion(AdaptiveDiffusion):
    """Noise on all four feature maps, with a time per sample *and channel*; D isn't told the times.

    position  ``first``: maps of the frozen network, in front of cross-channel mixing; ``last``: projected maps,
              behind cross-scale mixing

    Numbers of the official code; the target is the one that its README gives for Projected GAN (0.45), since the
    default of its training script (0.6) comes from StyleGAN2. The share of diffused entries is min(round(64 p), 48)
    of 64, so that at p = 0 nothing is added, nor drawn.
    """

    def __init__(self, position: str = "first", t_min: int = 5, t_max: int = 500, beta_start: float = 1e-4,
                 beta_end: float = 1e-2, noise_std: float = 0.5, target: float = 0.45, ada_kimg: float = 100,
                 t_distribution: str = "priority", seed: int = 0) -> None:
        if position not in POSITIONS:
            raise UserError(f"--d-noise-at {position}: choose one of {', '.join(POSITIONS)}.")
        self.position = position
        super().__init__(t_min=t_min, t_max=t_max, beta_start=beta_start, beta_end=beta_end, noise_std=noise_std,
                         target=target, ada_kimg=ada_kimg, t_distribution=t_distribution, seed=seed)

    def nonzero(self) -> int:
        return min(round(POOL * self.p), MAX_NONZERO)

    def first(self, maps: list[torch.Tensor], generator: torch.Generator | None) -> list[torch.Tensor]:
        return self._apply(maps, generator) if self.position == "first" else maps

    def last(self, maps: list[torch.Tensor], generator: torch.Generator | None) -> list[torch.Tensor]:
        return self._apply(maps, generator) if self.position == "last" else maps

    def _apply(self, maps: list[torch.Tensor], generator: torch.Generator | None) -> list[torch.Tensor]:
        if not self.nonzero():
            return maps
        if generator is None:
            raise ValueError("feature diffusion needs a torch.Generator")
        return [diffuse(x, self.draw_times((x.shape[0], x.shape[1]), generator), self.levels, self.noise_std, generator)
                for x in maps]
