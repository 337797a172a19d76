"""A 3×3 convolution by Winograd's minimal filtering: 4 products per pixel in place of 9, or 2¼ on larger maps.

On both axes a tile of m² outputs takes (m + 2)² products (`pg_modules.winograd_tiles`): F(2×2, 3×3) and F(4×4, 3×3). The
gradient of x is a convolution of the same kind; that of the weight is made of the products of the transposed sums.
Nothing is approximated. In float32 errors are half of those of torch's convolution with m = 2, five times as large with
m = 4: 1e-6.

Maps have the channels last and are handled in strips, as in `pg_modules.upsample_products`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from pg_modules import kernels, winograd_kernels
from pg_modules.batch_norm import channels_last
from pg_modules.strips import Strip, add_product, differentiable_gradients, product, strips, with_zeros
from pg_modules.winograd_tiles import AXES, Axis

# From so many pixels per map on, m is 4: with fewer tiles, more kernels cost more than fewer products save.
MANY_PIXELS = 16 * 16
# The fewest products of input and output channels at which sums around the matrix products are paid back, by m,
# measured on one CPU core (docs/performance.md).
MIN_CHANNELS = {2: 128 * 256, 4: 64 * 128}


def conv3x3(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[N, in, H, W]`` and ``weight [out, in, 3, 3]``, with a margin of one zero, to ``[N, out, H, W]``.

    In few products where x has its channels last, in float32 at least, on a CPU, and channels are many; else as
    `torch.nn.functional.conv2d`. The choice of m depends on nothing but the size of the map. Differentiable as often
    as wanted.
    """
    half = torch.is_autocast_enabled(x.device.type) or x.dtype not in (torch.float32, torch.float64)
    m = 4 if x.shape[2:].numel() >= MANY_PIXELS else 2
    if half or x.device.type != "cpu" or not channels_last(x) or weight.shape[:2].numel() < MIN_CHANNELS[m]:
        return _plain(x, weight)
    return _Winograd.apply(x, weight, m)


def _plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, padding=1)


class _Winograd(torch.autograd.Function):
    """`conv3x3`. Where its backward pass is to be differentiated again, it is that of the plain convolution."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, m: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.m = m
        return convolve(x.permute(0, 2, 3, 1), weight, m).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return *differentiable_gradients(_plain, x, weight, grads[0], (needs_x, needs_weight)), None
        grad = grads[0].contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        of_x = input_gradient(grad, weight, ctx.m).permute(0, 3, 1, 2) if needs_x else None
        of_weight = weight_gradient(x.permute(0, 2, 3, 1), grad, weight, ctx.m) if needs_weight else None
        return of_x, of_weight, None


def _kernels_usable(x: torch.Tensor, weight: torch.Tensor, m: int) -> bool:
    return m == 4 and x.dtype == weight.dtype and kernels.usable(x)


def convolve(x: torch.Tensor, weight: torch.Tensor, m: int) -> torch.Tensor:
    """``[N, H, W, in]`` and ``weight [out, in, 3, 3]``, with a margin of one zero, to ``[N, H, W, out]``.

    m: side of the tiles, 2 or 4.
    """
    if _kernels_usable(x, weight, m):
        return winograd_kernels.convolve(x, weight)
    axis = AXES[m]
    of_tiles = (axis.kernels_of_both().to(weight) @ weight.reshape(-1, 9).t()).to(x.dtype)
    of_tiles = of_tiles.view(m + 2, m + 2, *weight.shape[:2])
    y = x.new_empty(*x.shape[:3], len(weight))
    for strip in _strips(x, axis):
        images, top, bottom = strip.images, strip.top, strip.bottom
        shape = (-1, bottom - top, -(-x.shape[2] // m), len(weight))
        products = [[product(term, kernel).view(shape) for term, kernel in zip(terms, row, strict=True)]
                    for terms, row in zip(_input_terms(x[images], top, bottom, axis), of_tiles, strict=True)]
        of_rows = [axis.outputs(row) for row in products]
        for j, column in enumerate(zip(*of_rows, strict=True)):
            for i, part in enumerate(axis.outputs(column)):
                place = y[images, m * top + i:m * bottom:m, j::m]
                place.copy_(part[:, :place.shape[1], :place.shape[2]])
    return y


def input_gradient(grad: torch.Tensor, weight: torch.Tensor, m: int) -> torch.Tensor:
    """The gradient of x ``[N, H, W, in]`` from that of the output: the convolution with the weight turned by 180°."""
    if _kernels_usable(grad, weight, m):
        return winograd_kernels.input_gradient(grad, weight)
    return convolve(grad, weight.flip(2, 3).transpose(0, 1), m)


def weight_gradient(x: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor, m: int) -> torch.Tensor:
    """The gradient of `weight`, in its type, from that of the output ``[N, H, W, out]``."""
    if _kernels_usable(x, weight, m):
        return winograd_kernels.weight_gradient(x, grad, weight)
    axis = AXES[m]
    totals = weight.new_zeros(m + 2, m + 2, *weight.shape[:2])
    for strip in _strips(x, axis):
        images, top, bottom = strip.images, strip.top, strip.bottom
        inputs, gradients = (form(maps[images], top, bottom, axis) for form, maps in
                             ((_input_terms, x), (_gradient_terms, grad)))
        for row, own, theirs in zip(totals, gradients, inputs, strict=True):
            for total, one, other in zip(row, own, theirs, strict=True):
                add_product(total, one.t(), other)
    return (totals.flatten(0, 1).flatten(1).t() @ axis.taps_of_both().to(weight)).view_as(weight)


def _strips(x: torch.Tensor, axis: Axis) -> Iterator[Strip]:
    """Rows of tiles."""
    return strips(len(x), (-(-x.shape[1] // axis.m), -(-x.shape[2] // axis.m)), axis.at_once)


def _input_terms(x: torch.Tensor, top: int, bottom: int, axis: Axis) -> list[list[torch.Tensor]]:
    """Bᵀ x B of all tiles, by rows and columns of tiles, ``[tiles, in]`` each."""
    m, columns = axis.m, -(-x.shape[2] // axis.m)
    part = with_zeros(x, m * top - 1, m * bottom + 1, 1, m * columns + 2)
    of_rows = axis.of_inputs([part[:, k:k + m * (bottom - top - 1) + 1:m] for k in range(m + 2)])
    return [[term.view(-1, x.shape[3])
             for term in axis.of_inputs([row[:, :, k:k + m * (columns - 1) + 1:m] for k in range(m + 2)])]
            for row in of_rows]


def _gradient_terms(grad: torch.Tensor, top: int, bottom: int, axis: Axis) -> list[list[torch.Tensor]]:
    """A g Aᵀ of all tiles, up to factors, by rows and columns of tiles, ``[tiles, out]`` each."""
    m = axis.m
    part = with_zeros(grad, m * top, m * bottom, 0, m * -(-grad.shape[2] // m))
    of_rows = axis.of_gradients([part[:, k::m] for k in range(m)])
    return [[term.reshape(-1, grad.shape[3]) for term in axis.of_gradients([row[:, :, k::m] for k in range(m)])]
            for row in of_rows]
