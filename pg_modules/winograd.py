"""A 3×3 convolution in 16 products per four pixels in place of 36: Winograd's F(2×2, 3×3) (Lavin and Gray 2016).

Along one axis two outputs y₀, y₁ of four inputs x₀ … x₃ and the kernel (w₀, w₁, w₂) are

    y₀ = m₀ + m₁ + m₂            m₀ = (x₀ − x₂) w₀        m₁ = (x₁ + x₂) (w₀ + w₁ + w₂) / 2
    y₁ = m₁ − m₂ − m₃            m₃ = (x₁ − x₃) w₂        m₂ = (x₂ − x₁) (w₀ − w₁ + w₂) / 2

and on both axes 4 · 4 products give four outputs. The gradient of x is a convolution of the same kind; that of the
weight is made of the products of the transposed sums. Nothing is approximated; errors in float32 are half of those of
torch's convolution.

Maps have the channels last and are handled in strips, as in `pg_modules.upsample_products`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from pg_modules.batch_norm import channels_last
from pg_modules.strips import Strip, add_product, differentiable_gradients, strips, with_zeros

TILES = 1024  # of four pixels, that are worked on at once
# The fewest products of input and output channels at which sums around the matrix products are paid back, measured
# on one CPU core (docs/performance.md).
MIN_CHANNELS = 128 * 256

# Kernels of an axis from its three taps. On the CPU whatever the default device is.
_KERNELS = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], device="cpu")


def conv3x3(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[N, in, H, W]`` and ``weight [out, in, 3, 3]``, with a margin of one zero, to ``[N, out, H, W]``.

    In 16 products per four pixels where x has its channels last, in float32 at least, on a CPU, and channels are many;
    else as `torch.nn.functional.conv2d`. Differentiable as often as wanted.
    """
    half = torch.is_autocast_enabled(x.device.type) or x.dtype not in (torch.float32, torch.float64)
    if half or x.device.type != "cpu" or not channels_last(x) or weight.shape[:2].numel() < MIN_CHANNELS:
        return _plain(x, weight)
    return _Winograd.apply(x, weight)


def _plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, padding=1)


class _Winograd(torch.autograd.Function):
    """`conv3x3`. Where its backward pass is to be differentiated again, it is that of the plain convolution."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return tuple(differentiable_gradients(_plain, x, weight, grads[0], ctx.needs_input_grad))
        grad = grads[0].contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        of_x = convolve(grad, weight.flip(2, 3).transpose(0, 1)).permute(0, 3, 1, 2) if needs_x else None
        return of_x, weight_gradient(x.permute(0, 2, 3, 1), grad, weight) if needs_weight else None


def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[N, H, W, in]`` and ``weight [out, in, 3, 3]``, with a margin of one zero, to ``[N, H, W, out]``."""
    both = torch.kron(_KERNELS, _KERNELS).to(weight)
    kernels = (both @ weight.reshape(-1, 9).t()).view(16, *weight.shape[:2]).to(x.dtype)
    y = x.new_empty(*x.shape[:3], len(weight))
    for strip in _strips(x):
        images, top, bottom = strip.images, strip.top, strip.bottom
        rows, columns = bottom - top, -(-x.shape[2] // 2)
        products = [[(term @ kernels[4 * i + j].t()).view(-1, rows, columns, len(weight))
                     for j, term in enumerate(row)] for i, row in enumerate(_input_terms(x[images], top, bottom))]
        for row in products:
            row[:] = _two(row)
        for j, of_rows in enumerate(zip(*products, strict=True)):
            for i, part in enumerate(_two(list(of_rows))):
                place = y[images, 2 * top + i:2 * bottom:2, j::2]
                place.copy_(part[:, :place.shape[1], :place.shape[2]])
    return y


def weight_gradient(x: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of `weight`, in its type, from that of the output ``[N, H, W, out]``."""
    totals = weight.new_zeros(16, *weight.shape[:2])
    for strip in _strips(x):
        terms = _input_terms(x[strip.images], strip.top, strip.bottom)
        for i, row in enumerate(_gradient_terms(grad[strip.images], strip.top, strip.bottom)):
            for j, term in enumerate(row):
                add_product(totals[4 * i + j], term.t(), terms[i][j])
    both = torch.kron(_KERNELS, _KERNELS).to(weight)
    return (totals.view(16, -1).t() @ both).view_as(weight)


def _strips(x: torch.Tensor) -> Iterator[Strip]:
    """Rows of tiles."""
    return strips(len(x), (-(-x.shape[1] // 2), -(-x.shape[2] // 2)), TILES)


def _two(m: list[torch.Tensor]) -> list[torch.Tensor]:
    """y₀ and y₁ of m₀ … m₃, whose memory they take."""
    difference = m[1] - m[2]
    return [m[0].add_(m[1]).add_(m[2]), difference.sub_(m[3])]


def _input_terms(x: torch.Tensor, top: int, bottom: int) -> list[list[torch.Tensor]]:
    """x₀ − x₂, x₁ + x₂, x₂ − x₁, x₁ − x₃ by rows and columns of tiles, ``[tiles, in]`` each."""
    columns = -(-x.shape[2] // 2)
    part = with_zeros(x, 2 * top - 1, 2 * bottom + 1, 1, 2 * columns + 2)

    def combined(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> list[torch.Tensor]:
        return [a - c, b + c, c - b, b - d]

    of_rows = combined(*(part[:, k:k + 2 * (bottom - top) - 1:2] for k in range(4)))
    return [[term.view(-1, x.shape[3]) for term in combined(*(row[:, :, k:k + 2 * columns - 1:2] for k in range(4)))]
            for row in of_rows]


def _gradient_terms(grad: torch.Tensor, top: int, bottom: int) -> list[list[torch.Tensor]]:
    """g₀, g₀ + g₁, g₀ − g₁, −g₁ by rows and columns of tiles, ``[tiles, out]`` each."""
    columns = -(-grad.shape[2] // 2)
    part = with_zeros(grad, 2 * top, 2 * bottom, 0, 2 * columns)

    def combined(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        return [a, a + b, a - b, -b]

    return [[term.reshape(-1, grad.shape[3]) for term in combined(row[:, :, ::2], row[:, :, 1::2])]
            for row in combined(part[:, ::2], part[:, 1::2])]
