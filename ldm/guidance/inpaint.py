"""Inpainting: match the kept part of a target, whatever stands in the hole."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm.guidance.perceptual import unit_maps
from pg_modules.perceptual import map_distance


class Inpainting:
    """d(m x, m y) + weight · mean of (x − y)² over the kept pixels, for image x, target y and m = 1 where pixels count.

    d is `map_distance`; the hole is grey in both images.
    """

    def __init__(self, target: torch.Tensor, missing: torch.Tensor, pixel_weight: float) -> None:
        """target: ``[M, C, H, W]`` in [-1, 1]. missing: bool ``[H, W]``, True in the hole; something must be kept."""
        if target.shape[2:] != missing.shape or bool(missing.all()):
            raise ValueError(f"targets {list(target.shape)} do not fit a hole {list(missing.shape)}, or it is all hole")
        self.num_targets = len(target)
        self.target, self.missing, self.pixel_weight = target, missing, pixel_weight
        self._kept = (~missing).to(target)[None, None]
        self._maps: list[torch.Tensor] | None = None

    def select(self, rows: Sequence[int]) -> Inpainting:
        """See `ldm.guidance.base.Task`."""
        return Inpainting(self.target[list(rows)], self.missing, self.pixel_weight)

    def loss(self, img: torch.Tensor) -> torch.Tensor:
        """See `ldm.guidance.base.Task`; as many images as there are targets."""
        if self._maps is None:
            with torch.no_grad():
                self._maps = unit_maps(self.target * self._kept)
        shown = img * self._kept
        squared = (shown - self.target * self._kept).square().sum(dim=(1, 2, 3))
        mean = squared / (self._kept.sum() * img.shape[1])
        return map_distance(unit_maps(shown), self._maps) + self.pixel_weight * mean
