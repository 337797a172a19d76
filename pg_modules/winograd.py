"""The 3×3 convolution of FastGAN's and StyleGAN2's blocks, in a quarter of the products where that is faster."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from pg_modules import gradients, kernels, winograd_kernels, winograd_sums
from pg_modules.batch_norm import channels_last

# The fewest products of input and output channels at which sums around the matrix products are paid back, by the fewest
# pixels of a map; with kernels and without (docs/performance.md).
MIN_CHANNELS = {True: {16 * 16: 32 * 32, 8 * 8: 512 * 512}, False: {16 * 16: 128 * 128}}


def conv3x3(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[N, in, H, W]`` and ``weight [out, in, 3, 3]``, with a margin of one zero, to ``[N, out, H, W]``.

    By Winograd's F(4×4, 3×3) where x has its channels last, in float32 at least, on a CPU, and channels and pixels are
    many; else as `torch.nn.functional.conv2d`. Differentiable as often as wanted.
    """
    half = torch.is_autocast_enabled(x.device.type) or x.dtype not in (torch.float32, torch.float64)
    if half or x.device.type != "cpu" or not channels_last(x) or not _many(x, weight):
        return _plain(x, weight)
    return _Winograd.apply(x, weight)


def _many(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether channels are many enough for the map."""
    pixels, products = x.shape[2:].numel(), weight.shape[:2].numel()
    limits = MIN_CHANNELS[kernels.usable(x)]
    return any(pixels >= fewest and products >= least for fewest, least in limits.items())


def _plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, padding=1)


class _Winograd(torch.autograd.Function):
    """`conv3x3`. Where its backward pass is to be differentiated again, it is that of the plain convolution."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _form(x, weight).convolve(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients.of_convolution(ctx, grads[0], _plain, _input_gradient, _weight_gradient)


def _input_gradient(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return _form(x, weight).input_gradient(grad.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)


def _weight_gradient(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return _form(x, weight).weight_gradient(x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1))


def _form(x: torch.Tensor, weight: torch.Tensor) -> ModuleType:
    """What has the sums: kernels, or torch's operations."""
    return winograd_kernels if x.dtype == weight.dtype and kernels.usable(x) else winograd_sums
