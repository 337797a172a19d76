"""What follows a convolution in StyleGAN2's layers, in one pass, and another one backward.

    y = clip(√2 · leaky ReLU (factors · x + weight · noise + bias))

In torch's operations (`plain`) these are five passes over the map, and nine backward. Only x, y and the noise are kept.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from pg_modules import gradients, kernels
from pg_modules.batch_norm import channels_last
from pg_modules.layers import add_noise
from pg_modules.norm_gate import PARTS
from pg_modules.stylegan2_ops import ACTIVATION_GAINS, bias_act

GAIN = ACTIVATION_GAINS["lrelu"]


def styled_activation(x: torch.Tensor, factors: torch.Tensor, noise: torch.Tensor | None, weight: torch.Tensor,
                      bias: torch.Tensor, bound: float) -> torch.Tensor:
    """y ``[N, C, H, W]`` of x; ``factors [N, C]``, ``noise [N, 1, H, W]``, ``[H, W]`` or None, ``weight [1]``,
    ``bias [C]``.

    Differentiable as often as wanted, except by the noise.
    """
    same_type = factors.dtype == bias.dtype == x.dtype and not torch.is_autocast_enabled("cpu")
    if not same_type or not channels_last(x) or not kernels.usable(x):
        return plain(x, factors, noise, weight, bias, bound)
    drawn = None if noise is None else noise.to(x.dtype).expand(len(x), 1, *x.shape[2:]).contiguous()
    return _Styled.apply(x, factors, drawn, weight, bias, bound)


def plain(x: torch.Tensor, factors: torch.Tensor, noise: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor,
          bound: float) -> torch.Tensor:
    """`styled_activation` in torch's operations, in the type of x."""
    return bias_act(add_noise(x * factors.to(x.dtype)[:, :, None, None], noise, weight), bias, "lrelu", clamp=bound)


class _Styled(torch.autograd.Function):
    """Differentiated again, its backward pass is that of `plain`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factors: torch.Tensor, noise: torch.Tensor | None, weight: torch.Tensor,
                bias: torch.Tensor, bound: float) -> torch.Tensor:
        y = torch.empty_like(x)
        number = 0.0 if noise is None else weight.item()
        kernels.call("styled", x.permute(0, 2, 3, 1), factors.contiguous(), noise, number, bias, GAIN, bound,
                     y.permute(0, 2, 3, 1), len(x), x.shape[2:].numel(), x.shape[1])
        ctx.save_for_backward(x, factors, noise, weight, bias, y)
        ctx.bound = bound
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, factors, noise, weight, bias, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, factors, noise, weight, bias)
            return *gradients.differentiable(functools.partial(plain, bound=ctx.bound), inputs, grads[0],
                                             ctx.needs_input_grad[:5]), None
        n, channels, pixels = x.shape[0], x.shape[1], x.shape[2:].numel()
        parts = max(PARTS // n, 1)
        of_x, sums = torch.empty_like(x), x.new_empty(n, parts, 2, channels, dtype=torch.double)
        of_weight = x.new_empty(n, parts, dtype=torch.double)
        of_y = grads[0].contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        kernels.call("styled_backward", x.permute(0, 2, 3, 1), factors.contiguous(), noise, GAIN, ctx.bound,
                     y.permute(0, 2, 3, 1), of_y, of_x.permute(0, 2, 3, 1), sums, of_weight, n, pixels, channels, parts)
        of_factors, of_bias = sums.sum(1).unbind(1)  # [N, C] each
        return (of_x, of_factors.to(factors), None, of_weight.sum().to(weight).view_as(weight),
                of_bias.sum(0).to(bias), None)
