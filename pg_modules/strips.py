"""What convolutions made of sums and matrix products share: maps ``[N, H, W, C]`` in strips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Strip:
    """Rows `top` to `bottom` of some images."""

    images: slice
    top: int
    bottom: int


def strips(n: int, size: tuple[int, int], most: int) -> Iterator[Strip]:
    """`n` maps of ``size = (height, width)`` in strips of about `most` places: several images, or rows of one."""
    height, width = size
    images, rows = max(most // (height * width), 1), min(max(most // width, 1), height)
    for first in range(0, n, images):
        for top in range(0, height, rows):
            yield Strip(slice(first, min(first + images, n)), top, min(top + rows, height))


def with_zeros(x: torch.Tensor, first: int, end: int, left: int, columns: int) -> torch.Tensor:
    """Rows `first` to `end` of ``[N, H, W, C]`` and `columns` columns from -`left` on; zeros lie outside."""
    part = x[:, max(first, 0):min(end, x.shape[1])]
    margins = (0, 0, left, columns - left - x.shape[2], max(-first, 0), max(end - x.shape[1], 0))
    return F.pad(part, margins) if any(margins) else part


def add_product(total: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
    """total += one @ other; `total` may be of a finer type than the product."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total.add_(one @ other)
