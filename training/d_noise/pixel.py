"""Diffusion of the discriminator's images, with D told the time (Diffusion-GAN, StyleGAN2 variant)."""

from __future__ import annotations

import math

import torch

from torch_utils.device import sent_like
from training.d_noise.diffusion import POOL, AdaptiveDiffusion, diffuse

T_DIM = 64
MAX_PERIOD = 10_000.0


def embed_times(t: torch.Tensor, dim: int = T_DIM) -> torch.Tensor:
    """Sinusoids of t [N] → [N, dim] float32: sines, then cosines, of periods 2π to 2π · 10,000.

    The official code hands t itself to a linear layer without bias and a normalisation, behind which all t > 0 are
    one point at the start of training. Rows have length 1, as one-hot labels and instance features have, so that no
    part of c outweighs another.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(MAX_PERIOD) / (half - 1)))
    angles = t.double()[:, None] * frequencies
    return (torch.cat([angles.sin(), angles.cos()], dim=1) / math.sqrt(half)).float()


class PixelDiffusion(AdaptiveDiffusion):
    """Noise on the augmented image, with a time per sample; half of the pool is always clean.

    Numbers of the official StyleGAN2 variant; the target is the default of its training script.
    """

    t_dim = T_DIM

    def __init__(self, t_min: int = 10, t_max: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2,
                 noise_std: float = 0.05, target: float = 0.6, ada_kimg: float = 100,
                 t_distribution: str = "priority", seed: int = 0) -> None:
        super().__init__(t_min=t_min, t_max=t_max, beta_start=beta_start, beta_end=beta_end, noise_std=noise_std,
                         target=target, ada_kimg=ada_kimg, t_distribution=t_distribution, seed=seed)

    def nonzero(self) -> int:
        return POOL // 2

    def image(self, img: torch.Tensor, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        if generator is None:
            raise ValueError("pixel diffusion needs a torch.Generator")
        t = self.draw_times((len(img),), generator)
        return diffuse(img, t, self.levels, self.noise_std, generator), sent_like(embed_times(t), img)
