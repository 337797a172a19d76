"""Nearest ×2 and then a 3×3 convolution, in fewer products than the plain order has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from pg_modules import gradients, kernels
from pg_modules.upsample_kernels import KernelProducts
from pg_modules.upsample_products import Products

# From so many pixels per map on, four outputs of a row are made of five products (`Products`, step 2); and the fewest
# products of input and output channels at which sums around the matrix products are paid back, by step. With kernels
# and without (docs/performance.md).
MANY_PIXELS = {True: 16 * 16, False: 32 * 32}
MIN_CHANNELS = {True: {1: 64 * 128, 2: 64 * 32}, False: {1: 128 * 128, 2: 64 * 64}}


def upsample_conv2d(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Nearest ×2, then ``weight [out, in, 3, 3]`` with a margin of one zero: ``[N, in, H, W]`` to ``[N, out, 2H, 2W]``.

    `Products` on CPU where channels are many, else a transposed convolution; the choice depends on device, channels
    and size of the map, and on whether there are kernels. Follows autocast. Differentiable as often as wanted.
    """
    fast = kernels.usable(x) and not torch.is_autocast_enabled("cpu")
    step = 1 if x.shape[2:].numel() < MANY_PIXELS[fast] else 2
    if x.device.type != "cpu" or weight.shape[:2].numel() < MIN_CHANNELS[fast][step] or x.numel() == 0:
        return transposed_form(x, weight)
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    return _FewerProducts.apply(x.contiguous(memory_format=torch.channels_last), weight, step)


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


class _FewerProducts(torch.autograd.Function):
    """``x [N, in, H, W]`` and ``weight [out, in, 3, 3]`` to ``[N, out, 2H, 2W]``: maps with the channels last.

    Only x and the weight are kept for the backward pass. Where that is to be differentiated again, it is that of
    `transposed_form`.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, step: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.step = step
        with torch.autocast("cpu", enabled=False):
            return _products(x, weight, step).forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            if not torch.is_grad_enabled():
                grad = grads[0].contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
                of_x, of_weight = _products(x, weight, ctx.step).backward(x.permute(0, 2, 3, 1), grad, needs_x,
                                                                          needs_weight)
                return None if of_x is None else of_x.permute(0, 3, 1, 2), of_weight, None
            return *gradients.differentiable(lambda x, weight: transposed_form(x, weight.to(x.dtype)), (x, weight),
                                             grads[0], (needs_x, needs_weight)), None


def _products(x: torch.Tensor, weight: torch.Tensor, step: int) -> Products:
    if x.dtype == weight.dtype and kernels.usable(x):
        return KernelProducts((x.shape[2], x.shape[3]), weight, step)
    return Products((x.shape[2], x.shape[3]), weight, x.dtype, step)
