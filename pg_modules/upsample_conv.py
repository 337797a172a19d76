"""Nearest ×2 and then a 3×3 convolution with 9 products per input pixel: written out it has 36, as phases 16.

Along one axis, with zeros outside, the enlarged row x₀ x₀ x₁ x₁ … and the kernel (w₀, w₁, w₂) give

    y₂ᵢ   = w₀ xᵢ₋₁ + (w₁ + w₂) xᵢ = w₀ (xᵢ₋₁ − xᵢ) + s xᵢ
    y₂ᵢ₊₁ = (w₀ + w₁) xᵢ + w₂ xᵢ₊₁ = w₂ (xᵢ₊₁ − xᵢ) + s xᵢ,        s = w₀ + w₁ + w₂,

two outputs from three products, in the manner of Winograd's minimal filtering (1980). Applied to rows and columns it
needs 3 · 3 products for four outputs. With g = ∂L/∂y the gradients share three terms, so that the backward pass has 9
products for each of them:

    ∂L/∂xᵢ = w₀ (g₂ᵢ₊₂ − g₂ᵢ) + s (g₂ᵢ + g₂ᵢ₊₁) + w₂ (g₂ᵢ₋₁ − g₂ᵢ₊₁),
    ∂L/∂(w₀, s, w₂) = Σᵢ (g₂ᵢ₊₂ − g₂ᵢ, g₂ᵢ + g₂ᵢ₊₁, g₂ᵢ₋₁ − g₂ᵢ₊₁) xᵢ.

Nothing is approximated; rounding errors are about 1.3 times those of the other forms in float32, twice in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

# The fewest products of input and output channels at which sums around the matrix products are paid back, measured
# on one CPU core (docs/performance.md).
MIN_CHANNELS = 128 * 128

COLUMNS = 2048  # pixels that are worked on at once: what lies between two steps stays in the cache
BLOCK = 1 << 15  # weights that are worked on at once, likewise

# (w₀, s, w₂) from the taps of a row; for both axes from the nine taps of a kernel.
_AXIS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], device="cpu")  # whatever the default is
_BOTH = torch.kron(_AXIS, _AXIS)


def upsample_conv2d(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Nearest ×2, then ``weight [out, in, 3, 3]`` with a margin of one zero: ``[N, in, H, W]`` to ``[N, out, 2H, 2W]``.

    Nine products on CPU where channels are many, else a transposed convolution; the choice depends on nothing but
    device and channels. Follows autocast. Differentiable as often as wanted.
    """
    if x.device.type != "cpu" or weight.shape[0] * weight.shape[1] < MIN_CHANNELS or x.numel() == 0:
        return transposed_form(x, weight)
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    return _NineProducts.apply(x, weight)


def transposed_form(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`upsample_conv2d` as one transposed 4×4 convolution of stride 2, which has 16 products per input pixel."""
    return F.conv_transpose2d(x, upsampling_kernel(weight), stride=2, padding=1)


def upsampling_kernel(weight: torch.Tensor) -> torch.Tensor:
    """Kernel ``[in, out, 4, 4]`` whose transposed convolution is nearest ×2 and then ``weight [out, in, 3, 3]``.

    Output pixels 2i and 2i+1 see each input pixel through one or two neighbouring taps, whose sums these are.
    """
    taps = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    rows = taps[:, :, 1:] + taps[:, :, :-1]
    return rows[:, :, :, 1:] + rows[:, :, :, :-1]


class _NineProducts(torch.autograd.Function):
    """``x [N, in, H, W]`` and ``weight [out, in, 3, 3]`` to ``[N, out, 2H, 2W]``; products in the type of x.

    Only x and the weight are kept for the backward pass. Where that is to be differentiated again, it is that of
    `transposed_form`.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return _forward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            if not torch.is_grad_enabled():
                return _backward(x, weight, grads[0], *ctx.needs_input_grad)
            y = transposed_form(x, weight.to(x.dtype))
            wanted = [tensor for tensor, needed in zip((x, weight), ctx.needs_input_grad, strict=True) if needed]
            found = iter(torch.autograd.grad(y, wanted, grads[0], create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    n, _, height, width = x.shape
    kernels = _combined_taps(weight, x.dtype)
    y = x.new_empty(n, len(weight), height, 2, width, 2)
    padded = F.pad(x, (1, 1, 1, 1)).transpose(0, 1)
    for images, top, bottom in _parts(n, height, width):
        terms = _input_terms(padded[:, images, top:bottom + 2])
        target = y[images, :, top:bottom].transpose(0, 1)
        middle = _row_pair(kernels[1], terms[1])
        for p, side in enumerate((0, 2)):
            for q, (own, shared) in enumerate(zip(_row_pair(kernels[side], terms[side]), middle, strict=True)):
                place = target[:, :, :, p, :, q]
                torch.add(own.view(place.shape), shared.view(place.shape), out=place)
    return y.view(n, len(weight), 2 * height, 2 * width)


def _backward(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, needs_x: bool,
              needs_weight: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    n, channels, height, width = x.shape
    kernels = _combined_taps(weight, x.dtype).view(-1, channels) if needs_x else None
    grad_x = torch.empty_like(x) if needs_x else None
    total: torch.Tensor | None = None
    for images, top, bottom in _parts(n, height, width):
        terms = _gradient_terms(grad[images].transpose(0, 1), top, bottom).view(9 * len(weight), -1)
        part = x[images, :, top:bottom].transpose(0, 1)
        if grad_x is not None and kernels is not None:
            grad_x[images, :, top:bottom] = (kernels.t() @ terms).view(part.shape).transpose(0, 1)
        if needs_weight:
            product = terms @ part.reshape(channels, -1).t()
            # Sums over parts of a batch are in the type of the weight, which may be finer than the products'.
            total = product.to(weight.dtype) if total is None else total.add_(product)
    return grad_x, None if total is None else _taps_gradient(total, weight.shape)


def _parts(n: int, height: int, width: int) -> Iterator[tuple[slice, int, int]]:
    """Images and rows (from, to) of about COLUMNS pixels each: several images, or a strip of one."""
    images, rows = max(COLUMNS // (height * width), 1), min(max(COLUMNS // width, 1), height)
    for first in range(0, n, images):
        for top in range(0, height, rows):
            yield slice(first, min(first + images, n)), top, min(top + rows, height)


def _combined_taps(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The kernels (w₀, s, w₂)² ``[3, 3, out, in]`` of ``weight [out, in, 3, 3]``; their sums are in its own type."""
    taps, both = weight.reshape(-1, 9), _BOTH.to(weight)
    combined = taps.new_empty(9, len(taps), dtype=dtype)
    for start in range(0, len(taps), BLOCK):
        combined[:, start:start + BLOCK] = both @ taps[start:start + BLOCK].t()
    return combined.view(3, 3, *weight.shape[:2])


def _taps_gradient(total: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The gradient of the weight, of `shape`, from those of its kernels ``[9 · out, in]``."""
    combined, both = total.view(9, -1), _BOTH.to(total)
    taps = total.new_empty(combined.shape[1], 9)
    for start in range(0, len(taps), BLOCK):
        taps[start:start + BLOCK] = (both.t() @ combined[:, start:start + BLOCK]).t()
    return taps.view(shape)


def _input_terms(x: torch.Tensor) -> torch.Tensor:
    """xᵢ₋₁ − xᵢ, xᵢ, xᵢ₊₁ − xᵢ by rows and columns: ``[in, M, H + 2, W + 2]`` to ``[3, 3, in, M · H · W]``."""
    height, width = x.shape[2] - 2, x.shape[3] - 2
    terms = x.new_empty(3, 3, *x.shape[:2], height, width)
    own = x[:, :, 1:-1]
    for term, rows in zip(terms, (x[:, :, :-2] - own, own, x[:, :, 2:] - own), strict=True):
        middle = rows[..., 1:-1]
        torch.sub(rows[..., :-2], middle, out=term[0])
        term[1].copy_(middle)
        torch.sub(rows[..., 2:], middle, out=term[2])
    return terms.view(3, 3, len(x), -1)


def _row_pair(kernels: torch.Tensor, terms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What outputs of even and of odd columns get from three products: ``[3, out, in]``, ``[3, in, pixels]``."""
    odd = kernels[1] @ terms[1]
    even = torch.addmm(odd, kernels[0], terms[0])
    return even, odd.addmm_(kernels[2], terms[2])


def _gradient_terms(grad: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
    """g₂ᵢ₊₂ − g₂ᵢ, g₂ᵢ + g₂ᵢ₊₁, g₂ᵢ₋₁ − g₂ᵢ₊₁ by rows and columns, for the input's rows `top` to `bottom`.

    ``[out, M, 2H, 2W]`` to ``[3, 3, out, M, bottom - top, W]``.
    """
    first, last, end = 2 * top - 1, 2 * bottom + 1, grad.shape[2]
    rows = grad[:, :, max(first, 0):min(last, end)]
    margins = (max(-first, 0), max(last - end, 0))
    # Even columns with a zero behind them, odd ones with a zero before; rows 2 top - 1 to 2 bottom of both.
    even, odd = F.pad(rows[..., ::2], (0, 1, *margins)), F.pad(rows[..., 1::2], (1, 0, *margins))
    terms = grad.new_empty(3, 3, *grad.shape[:2], bottom - top, grad.shape[3] // 2)
    for k, columns in enumerate((even[..., 1:] - even[..., :-1], even[..., :-1] + odd[..., 1:],
                                 odd[..., :-1] - odd[..., 1:])):
        before, own, own_odd, after = (columns[:, :, start:start + 2 * (bottom - top):2] for start in range(4))
        torch.sub(after, own, out=terms[0, k])
        torch.add(own, own_odd, out=terms[1, k])
        torch.sub(before, own_odd, out=terms[2, k])
    return terms
