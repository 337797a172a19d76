"""Noise, batch normalisation with gain and bias, and the gated linear unit of FastGAN's blocks, in two passes.

    x' = x + weight · noise
    u  = gain · (x' − mean) / √(variance + ε) + bias
    y  = u[:, :C/2] · sigmoid(u[:, C/2:])

In torch's operations (`plain`) these are seven passes over the largest maps of a generator, and ten backward. Here mean
and variance are one pass, y is another one; backward, the sums that the gradients of gain, bias, mean and variance
consist of, and the gradient of x. Only x and the noise are kept.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F

from pg_modules import gradients, kernels
from pg_modules.batch_norm import BatchNorm2d, channels_last

PARTS = 64  # of a batch, whose sums are made at a time


def plain(x: torch.Tensor, noise: torch.Tensor | None, weight: torch.Tensor | None, gain: torch.Tensor,
          bias: torch.Tensor, eps: float) -> torch.Tensor:
    """y ``[N, C/2, H, W]``, by the moments of the batch, in torch's operations. Arguments as of `norm_gate`."""
    if noise is not None and weight is not None:
        x = x + weight * noise
    u = F.batch_norm(x, None, None, training=True, eps=eps)
    return F.glu(u * gain[:, :, None, None] + bias[:, :, None, None], dim=1)


def usable(norm: BatchNorm2d, x: torch.Tensor) -> bool:
    """Whether `norm_gate` takes maps like `x`: with the channels last, where there are kernels.

    In evaluation mode without gradients only.
    """
    known = norm.training or not torch.is_grad_enabled()
    return known and type(norm) is BatchNorm2d and channels_last(x) and kernels.usable(x)


def norm_gate(norm: BatchNorm2d, x: torch.Tensor, noise: torch.Tensor | None, weight: torch.Tensor | None,
              gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Gated maps ``[N, C/2, H, W]`` of `usable` ones ``[N, C, H, W]``; in training, running moments of `norm` follow.

    ``noise [N, 1, H, W]`` and its ``weight [1]``, or None. ``gain`` and ``bias [N, C]`` or ``[1, C]``, in place of what
    `norm` has. Differentiable as often as wanted, except by the noise.
    """
    noise = None if noise is None else noise.to(x.dtype).contiguous()
    if norm.training:
        y, mean, var = _NormGate.apply(x, noise, weight, gain, bias, norm.eps)
        norm.follow(mean, var, x.numel() // x.shape[1])
        return y
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factors = gain * (norm.running_var + norm.eps).rsqrt()
    return _gated(x, noise, _number(weight), norm.running_mean.to(x.dtype), factors.to(x.dtype), bias.to(x.dtype))


def _number(weight: torch.Tensor | None) -> float:
    return 0.0 if weight is None else weight.item()


def _gated(x: torch.Tensor, noise: torch.Tensor | None, weight: float, mean: torch.Tensor, factors: torch.Tensor,
           biases: torch.Tensor) -> torch.Tensor:
    """y, with factors = gain / √(variance + ε)."""
    n, channels, height, width = x.shape
    y = x.new_empty(n, height, width, channels // 2)
    kernels.call("norm_gate", x.permute(0, 2, 3, 1), noise, weight, mean, factors.contiguous(), biases.contiguous(),
                 int(len(factors) == 1), y, n, height * width, channels // 2)
    return y.permute(0, 3, 1, 2)


class _NormGate(torch.autograd.Function):
    """Returns the moments of x', too, without gradient. Differentiated again, its backward pass is that of `plain`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, noise: torch.Tensor | None, weight: torch.Tensor | None, gain: torch.Tensor,
                bias: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n, channels, pixels = x.shape[0], x.shape[1], x.shape[2:].numel()
        number, sums = _number(weight), _sums(x)
        kernels.call("moments", x.permute(0, 2, 3, 1), noise, number, sums, n, pixels, channels, sums.shape[1])
        first = x[0, :, 0, 0].double() + (0 if noise is None else number * noise.flatten()[0].double())
        away, squares = sums.sum((0, 1)) / (n * pixels)
        mean, var = (first + away).to(x.dtype), squares - away.square()
        scale = (var.clamp_min(0) + eps).rsqrt()
        factors = (gain * scale).to(x.dtype)
        ctx.save_for_backward(x, noise, weight, gain, bias, mean, scale, factors)
        ctx.eps = eps
        moments = mean, var.to(x.dtype)
        ctx.mark_non_differentiable(*moments)
        return _gated(x, noise, number, mean, factors, bias.to(x.dtype)), *moments

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, noise, weight, gain, bias, mean, scale, factors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *gradients.differentiable(functools.partial(plain, eps=ctx.eps), (x, noise, weight, gain, bias),
                                             grads[0], ctx.needs_input_grad[:5]), None
        n, half, pixels = x.shape[0], x.shape[1] // 2, x.shape[2:].numel()
        of_y = grads[0].contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        common = (x.permute(0, 2, 3, 1), noise, _number(weight), mean, factors.contiguous(),
                  bias.to(x.dtype).contiguous(), int(len(factors) == 1), of_y)
        sums = _sums(x)
        kernels.call("gate_sums", *common, sums, n, pixels, half, sums.shape[1])
        of_bias, of_factors = sums.sum(1).unbind(1)  # [N, C] each
        # By way of mean and variance (Ioffe and Szegedy 2015, section 3).
        constants = -scale * (gain * of_bias).sum(0) / (n * pixels)
        slopes = -scale.pow(3) * (gain * of_factors).sum(0) / (n * pixels)
        of_x, of_weight = torch.empty_like(x), x.new_empty(n, sums.shape[1], dtype=torch.double)
        kernels.call("gate_backward", *common, constants.to(x.dtype), slopes.to(x.dtype), of_x.permute(0, 2, 3, 1),
                     of_weight, n, pixels, half, sums.shape[1])
        of_gain = of_factors * scale
        if len(gain) == 1:
            of_gain, of_bias = of_gain.sum(0, keepdim=True), of_bias.sum(0, keepdim=True)
        return (of_x, None, None if weight is None else of_weight.sum().to(weight).view_as(weight), of_gain.to(gain),
                of_bias.to(bias), None)


def _sums(x: torch.Tensor) -> torch.Tensor:
    """Room for two sums of every channel over the parts of every sample."""
    return x.new_empty(len(x), max(PARTS // len(x), 1), 2, x.shape[1], dtype=torch.double)
