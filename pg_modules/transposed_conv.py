"""The transposed 3×3 convolution of stride 2 of StyleGAN2's enlarging layers, with a faster gradient of its weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from pg_modules import gradients
from pg_modules.batch_norm import channels_last
from pg_modules.strips import add_product, strips

# On fewer pixels, or products of input and output channels, torch's own gradient of the weight is as fast
# (docs/performance.md).
MANY_PIXELS, MANY_CHANNELS = 32 * 32, 128 * 128
PLACES = 2048  # of the input that are worked on at once


def transposed_conv3x3(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[N, in, H, W]`` and ``weight [out, in, 3, 3]`` to ``[N, out, 2H + 1, 2W + 1]``.

    Output pixel (2i + a, 2j + b) gets tap (a, b) of the weight times input pixel (i, j). Differentiable as often as
    wanted.
    """
    many = x.shape[2:].numel() >= MANY_PIXELS and weight.shape[:2].numel() >= MANY_CHANNELS
    if not many or x.device.type != "cpu" or not channels_last(x) or torch.is_autocast_enabled("cpu"):
        return _plain(x, weight)
    return _Transposed.apply(x, weight)


def _plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)


class _Transposed(torch.autograd.Function):
    """`transposed_conv3x3`. Where its backward pass is to be differentiated again, it is that of `_plain`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _plain(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients.of_convolution(ctx, grads[0], _plain, input_gradient, weight_gradient)


def input_gradient(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """That of x ``[N, in, H, W]`` from the weight and that of the output."""
    return F.conv2d(grad, weight.transpose(0, 1), stride=2)


def weight_gradient(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """That of the weight ``[out, in, 3, 3]`` from x ``[N, in, H, W]`` and that of the output: a product per tap."""
    inputs, of_outputs = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    width = x.shape[3]
    totals = x.new_zeros(9, grad.shape[1], x.shape[1])
    for strip in strips(len(x), (x.shape[2], width), PLACES):
        part = inputs[strip.images, strip.top:strip.bottom].reshape(-1, x.shape[1])
        for tap, total in enumerate(totals):
            down, right = divmod(tap, 3)
            rows = slice(2 * strip.top + down, 2 * strip.bottom + down - 1, 2)
            own = of_outputs[strip.images, rows, right:right + 2 * width - 1:2].reshape(-1, grad.shape[1])
            add_product(total, own.t(), part)
    return totals.permute(1, 2, 0).reshape(grad.shape[1], x.shape[1], 3, 3)
