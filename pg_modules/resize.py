"""Resizing of maps whose gradients repeat themselves to the bit on GPUs, too.

There, the kernels of PyTorch that enlarge bilinearly, or average over cells of any size, add gradients up in an order
that changes from run to run.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from torch_utils.device import at_least_float32, sent


def bilinear(x: torch.Tensor, size: tuple[int, int], align_corners: bool = False,
             antialias: bool = False) -> torch.Tensor:
    """`torch.nn.functional.interpolate` of ``[N, C, H, W]`` to ``[N, C, *size]``.

    On a GPU, where a gradient is wanted, as a product of matrices on either side.
    """
    if x.device.type == "cuda" and x.requires_grad and torch.is_grad_enabled():
        return by_products(x, size, align_corners, antialias)
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners, antialias=antialias)


def by_products(x: torch.Tensor, size: tuple[int, int], align_corners: bool, antialias: bool) -> torch.Tensor:
    """`bilinear` as products; sums are in float32 at least."""
    with torch.autocast(x.device.type, enabled=False):
        wide = at_least_float32(x)
        rows, columns = (_shares(*lengths, align_corners, antialias, wide.dtype, wide.device)
                         for lengths in zip(x.shape[2:], size, strict=True))
        return (rows @ wide @ columns.t()).to(x.dtype)


@functools.lru_cache(maxsize=64)
def _shares(length: int, target: int, align_corners: bool, antialias: bool, dtype: torch.dtype,
            device: torch.device) -> torch.Tensor:
    """``[target, length]``: what each of `length` pixels in a row has of each of `target`."""
    columns = torch.eye(length, dtype=dtype, device="cpu").view(1, 1, length, length)  # every pixel in one of its own
    made = F.interpolate(columns, (target, length), mode="bilinear", align_corners=align_corners, antialias=antialias)
    return sent(made.view(target, length), device)


def averaged(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d` of ``[N, C, H, W]`` to ``[N, C, *size]``.

    In cells of equal sides, whose gradients don't overlap, where there is a whole number of them.
    """
    cell = [length // target for length, target in zip(x.shape[2:], size, strict=True)]
    if all(side * target == length for side, target, length in zip(cell, size, x.shape[2:], strict=True)):
        return F.avg_pool2d(x, cell)
    return F.adaptive_avg_pool2d(x, size)
