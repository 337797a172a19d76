"""`pg_modules.winograd_sums` with its sums from `pg_modules.kernels`, one pass each."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pg_modules import kernels
from pg_modules.winograd_sums import TO_KERNELS, TO_TAPS

AT_ONCE = 512  # tiles of 16 pixels


def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Contiguous ``[N, H, W, in]`` and ``weight [out, in, 3, 3]``, with a margin of one zero, to ``[N, H, W, out]``."""
    return convolve_with(x, of_tiles(weight))


def input_gradient(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """That of x ``[N, H, W, in]`` from that of the output: the convolution with the weight turned and transposed."""
    return convolve_with(grad, kernels.kernels_of_taps(TO_KERNELS.flip(1), weight))


def of_tiles(weight: torch.Tensor) -> torch.Tensor:
    """The kernels ``[36, in, out]`` of ``weight [out, in, 3, 3]``."""
    return kernels.kernels_of_taps(TO_KERNELS, weight).transpose(1, 2)


def convolve_with(x: torch.Tensor, of_tiles: torch.Tensor) -> torch.Tensor:
    """`convolve` with kernels ``[36, in, out]`` that have been made before."""
    _, height, width, channels = x.shape
    out = of_tiles.shape[2]
    y = x.new_empty(*x.shape[:3], out)
    for first, end in _tiles(x):
        terms = x.new_empty(36, end - first, channels)
        kernels.call("winograd_inputs", x, terms, first, end, height, width, channels)
        kernels.call("winograd_outputs", terms @ of_tiles, y, first, end, height, width, out)
    return y


def weight_gradient(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """That of the weight ``[out, in, 3, 3]`` from x and that of the output ``[N, H, W, out]``."""
    _, height, width, channels = x.shape
    out = grad.shape[3]
    totals = x.new_zeros(36, out, channels)
    for first, end in _tiles(x):
        inputs, gradients = x.new_empty(36, end - first, channels), x.new_empty(36, end - first, out)
        kernels.call("winograd_inputs", x, inputs, first, end, height, width, channels)
        kernels.call("winograd_gradients", grad, gradients, first, end, height, width, out)
        totals.baddbmm_(gradients.transpose(1, 2), inputs)
    return kernels.taps_of_kernels(TO_TAPS, totals)


def _tiles(x: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of the tiles of ``[N, H, W, C]``, counted over rows and columns of all images."""
    total = len(x) * -(-x.shape[1] // 4) * -(-x.shape[2] // 4)
    for first in range(0, total, AT_ONCE):
        yield first, min(first + AT_ONCE, total)
