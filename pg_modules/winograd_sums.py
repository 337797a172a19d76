"""Winograd's F(4×4, 3×3): a 3×3 convolution in 2¼ products per pixel in place of 9 (Lavin and Gray 2016).

Along one axis a tile of 4 outputs y of 6 inputs x and the kernel w is y = Aᵀ (G w ∘ Bᵀ x), 6 products p in place of 12,
from polynomials taken at 0, ±√½, ±√2 and ∞, which round half as much as the usual 0, ±1, ±2 and ∞. Kernels of points of
either sign are scaled so that most factors are powers of two:

    y₀ = p₀ + √2 (p₁ + p₂) + √½ (p₃ + p₄)        p₀ = (x₀ − 2½ x₂ + x₄) w₀
    y₁ =         (p₁ − p₂) +    (p₃ − p₄)        p₁, p₂ = (x₄ − 2 x₂ ± √½ (x₃ − 2 x₁)) (−√2 w₀ ∓ w₁ − √½ w₂) / 3
    y₂ =      √½ (p₁ + p₂) + √2 (p₃ + p₄)        p₃, p₄ = (x₄ − ½ x₂ ± √2 (x₃ − ½ x₁)) (√½ w₀ ± w₁ + √2 w₂) / 3
    y₃ =       ½ (p₁ − p₂) +  2 (p₃ − p₄) + p₅   p₅ = (x₁ − 2½ x₃ + x₅) w₂

and on both axes 36 products give 16 outputs. The gradient of x is a convolution of the same kind; that of w is
Gᵀ (A g · Bᵀ x), summed over tiles. Nothing is approximated; relative errors in float32 are 1e-6, five times those of
torch's convolution.

Here in torch's operations; `pg_modules.winograd_kernels` has the same in fewer passes. Maps have the channels last,
``[N, H, W, C]``, and are handled in strips, so that what lies between two steps stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

import torch

from pg_modules.strips import Strip, add_product, strips, with_zeros

TILES = 512  # that are worked on at once

_KERNELS = torch.tensor([[3, 0, 0], [-sqrt(2), -1, -sqrt(0.5)], [-sqrt(2), 1, -sqrt(0.5)], [sqrt(0.5), 1, sqrt(2)],
                         [sqrt(0.5), -1, sqrt(2)], [0, 0, 3]], dtype=torch.double, device="cpu") / 3
_SCALES = torch.tensor([1, sqrt(0.5), sqrt(0.5), sqrt(2), sqrt(2), 1], dtype=torch.double, device="cpu")
# What makes kernels of both axes of nine taps, and gradients of taps of `_of_gradients`: ``[36, 9]``. On the CPU
# whatever the default device is.
TO_KERNELS = torch.kron(_KERNELS, _KERNELS)
TO_TAPS = torch.kron(_KERNELS / _SCALES[:, None], _KERNELS / _SCALES[:, None])

Maps = Sequence[torch.Tensor]


def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[N, H, W, in]`` and ``weight [out, in, 3, 3]``, with a margin of one zero, to ``[N, H, W, out]``."""
    kernels = (TO_KERNELS.to(weight) @ weight.reshape(-1, 9).t()).to(x.dtype).view(6, 6, *weight.shape[:2])
    y = x.new_empty(*x.shape[:3], len(weight))
    for strip in _strips(x):
        images, top, bottom = strip.images, strip.top, strip.bottom
        shape = (-1, bottom - top, -(-x.shape[2] // 4), len(weight))
        products = [[(term @ kernel.t()).view(shape) for term, kernel in zip(terms, row, strict=True)]
                    for terms, row in zip(_input_terms(x[images], top, bottom), kernels, strict=True)]
        of_rows = [_outputs(row) for row in products]
        for j, column in enumerate(zip(*of_rows, strict=True)):
            for i, part in enumerate(_outputs(column)):
                place = y[images, 4 * top + i:4 * bottom:4, j::4]
                place.copy_(part[:, :place.shape[1], :place.shape[2]])
    return y


def input_gradient(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """That of x ``[N, H, W, in]`` from that of the output: the convolution with the weight turned and transposed."""
    return convolve(grad, weight.flip(2, 3).transpose(0, 1))


def weight_gradient(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """That of the weight ``[out, in, 3, 3]`` from x and that of the output ``[N, H, W, out]``."""
    totals = x.new_zeros(6, 6, grad.shape[3], x.shape[3])
    for strip in _strips(x):
        images, top, bottom = strip.images, strip.top, strip.bottom
        inputs, gradients = _input_terms(x[images], top, bottom), _gradient_terms(grad[images], top, bottom)
        for row, own, theirs in zip(totals, gradients, inputs, strict=True):
            for total, one, other in zip(row, own, theirs, strict=True):
                add_product(total, one.t(), other)
    return (totals.view(36, -1).t() @ TO_TAPS.to(x)).view(*totals.shape[2:], 3, 3)


def _strips(x: torch.Tensor) -> Iterator[Strip]:
    """Rows of tiles."""
    return strips(len(x), (-(-x.shape[1] // 4), -(-x.shape[2] // 4)), TILES)


def _input_terms(x: torch.Tensor, top: int, bottom: int) -> list[list[torch.Tensor]]:
    """Bᵀ x B of all tiles, by rows and columns of tiles, ``[tiles, in]`` each."""
    columns = -(-x.shape[2] // 4)
    part = with_zeros(x, 4 * top - 1, 4 * bottom + 1, 1, 4 * columns + 2)
    of_rows = _inputs([part[:, k:k + 4 * (bottom - top) - 3:4] for k in range(6)])
    return [[term.view(-1, x.shape[3]) for term in _inputs([row[:, :, k:k + 4 * columns - 3:4] for k in range(6)])]
            for row in of_rows]


def _gradient_terms(grad: torch.Tensor, top: int, bottom: int) -> list[list[torch.Tensor]]:
    """S A g Aᵀ S of all tiles, S of √½ and √2, by rows and columns of tiles, ``[tiles, out]`` each."""
    part = with_zeros(grad, 4 * top, 4 * bottom, 0, 4 * -(-grad.shape[2] // 4))
    of_rows = _of_gradients([part[:, k::4] for k in range(4)])
    return [[term.reshape(-1, grad.shape[3]) for term in _of_gradients([row[:, :, k::4] for k in range(4)])]
            for row in of_rows]


# Along one axis; `near` belongs to the points ±√½, `far` to ±√2.

def _both_signs(even: torch.Tensor, odd: torch.Tensor, point: float) -> list[torch.Tensor]:
    return [torch.add(even, odd, alpha=point), torch.sub(even, odd, alpha=point)]


def _inputs(x: Maps) -> list[torch.Tensor]:
    near = torch.sub(x[4], x[2], alpha=2), torch.sub(x[3], x[1], alpha=2)
    far = torch.sub(x[4], x[2], alpha=0.5), torch.sub(x[3], x[1], alpha=0.5)
    return [torch.sub(x[0], x[2], alpha=2.5).add_(x[4]), *_both_signs(*near, sqrt(0.5)), *_both_signs(*far, sqrt(2)),
            torch.sub(x[5], x[3], alpha=2.5).add_(x[1])]


def _outputs(p: Maps) -> list[torch.Tensor]:
    """In the memory of the products."""
    near, far = p[1] + p[2], p[3] + p[4]
    near_odd, far_odd = p[1].sub_(p[2]), p[3].sub_(p[4])
    return [p[0].add_(near, alpha=sqrt(2)).add_(far, alpha=sqrt(0.5)), near_odd + far_odd,
            near.mul_(sqrt(0.5)).add_(far, alpha=sqrt(2)), p[5].add_(near_odd, alpha=0.5).add_(far_odd, alpha=2)]


def _of_gradients(g: Maps) -> list[torch.Tensor]:
    near = torch.add(g[0], g[2], alpha=0.5), torch.add(g[1], g[3], alpha=0.5)
    far = torch.add(g[0], g[2], alpha=2), torch.add(g[1], g[3], alpha=2)
    return [g[0], *_both_signs(*near, sqrt(0.5)), *_both_signs(*far, sqrt(2)), g[3]]
