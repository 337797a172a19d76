"""The variables of conditioning at test time: whitened latents, and the way from them to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ldm.prior import normalize
from ldm.whitening import Whitening

DecodeSeeds = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]  # latents [n, C, H, W], n seeds -> img


@dataclass(frozen=True)
class WhitenedSpace:
    """A space of a generator in which latents have mean 0 and variance 1 in every direction.

    shape          (C, H, W) of a latent
    whitening      statistics of the latents: of a latent diffusion model, or of latents drawn for the purpose
    normalization  what the generator's encoder does to its latents, of `ldm.prior.NORMALIZATIONS`; ``none`` for w and s
    decode         latents to images, differentiable; what else a sample is made of depends on its seed alone
    """

    shape: tuple[int, int, int]
    whitening: Whitening
    normalization: str
    decode: DecodeSeeds

    @property
    def device(self) -> torch.device:
        """Where whitened latents are."""
        return self.whitening.mean.device

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """Latents ``[N, C, H, W]`` of whitened ones."""
        return normalize(self.whitening.invert(x), self.normalization)

    def images(self, x: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Images of whitened latents."""
        return self.decode(self.latents(x), seeds)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest whitened latents of the encoder's length, from which the images are the same."""
        return x if self.normalization == "none" else self.whitening.apply(self.latents(x))
