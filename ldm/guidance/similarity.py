"""Similarity: look like a target. Inpainting without a hole, as the work on test-time conditioning defines it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm.guidance.inpaint import Inpainting


class Similarity(Inpainting):
    """d(x, y) + weight · mean of (x − y)², see `Inpainting`."""

    def __init__(self, target: torch.Tensor, pixel_weight: float) -> None:
        """target: ``[M, C, H, W]`` in [-1, 1]."""
        super().__init__(target, torch.zeros(target.shape[2:], dtype=torch.bool, device=target.device), pixel_weight)

    def select(self, rows: Sequence[int]) -> Similarity:
        """See `ldm.guidance.base.Task`."""
        return Similarity(self.target[list(rows)], self.pixel_weight)
