"""The interface of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Task(Protocol):
    """A loss of images; lower is better.

    num_targets  targets that it has, 1 where it has none; sample k of a run goes with target k modulo this
    """

    num_targets: int

    def select(self, rows: Sequence[int]) -> Task:
        """The same task for as many images as there are `rows`, image i with target ``rows[i]``."""
        ...

    def loss(self, img: torch.Tensor) -> torch.Tensor:
        """``[N]`` of images ``[N, C, H, W]`` in [-1, 1], differentiable; each image's depends on that image alone."""
        ...
