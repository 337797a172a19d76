"""Operations and layers of StyleGAN2: FIR resampling, biased activations, equalised layers, modulated convolution.

Two operations have a plain form beside the fast one, which tests compare: `upfirdn2d` and `modulated_conv`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pg_modules.transposed_conv import transposed_conv3x3
from pg_modules.winograd import conv3x3

# Gain of each activation that keeps unit variance.
ACTIVATION_GAINS = {"linear": 1.0, "lrelu": math.sqrt(2)}
LEAK = 0.2  # slope of leaky ReLU below zero

DEMODULATION_EPS = 1e-8


def fir_filter() -> torch.Tensor:
    """The low-pass filter ``[4, 4]`` of StyleGAN2, outer product of [1, 3, 3, 1] with itself, of sum 1."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / taps.sum().square()


def _four(padding: int | tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return (padding,) * 4 if isinstance(padding, int) else padding


def upfirdn2d(x: torch.Tensor, f: torch.Tensor, up: int = 1, down: int = 1,
              padding: int | tuple[int, int, int, int] = 0, gain: float = 1.0) -> torch.Tensor:
    """Enlarges `x` by zeros, pads, filters and thins out (Karras et al. 2020, the resampling of StyleGAN2).

    ``x [N, C, H, W]``; ``f [kh, kw]``, applied as a convolution (turned by 180°) times `gain`; `padding`: zeros at
    (left, right, top, bottom) of the enlarged map, whose size is ``up * H × up * W``; negative ones crop.
    ``[N, C, (up * H + top + bottom - kh) // down + 1, …]``, computed in the type of `x` even under autocast.
    """
    left, right, top, bottom = _four(padding)
    channels, (kh, kw) = x.shape[1], f.shape
    kernel = (f * gain).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if up == 1:
            kernel = kernel.flip(0, 1).expand(channels, 1, kh, kw)
            if left == right and top == bottom and min(left, top) >= 0:
                return F.conv2d(x, kernel, stride=down, padding=(top, left), groups=channels)
            return F.conv2d(F.pad(x, (left, right, top, bottom)), kernel, stride=down, groups=channels)
        # A transposed convolution pads by one less than the kernel's side, and ends at the last sample that is not
        # an inserted zero; what is missing or too much of that is corrected at the border.
        x = F.conv_transpose2d(x, kernel.expand(channels, 1, kh, kw), stride=up, groups=channels)
        x = F.pad(x, (left - kw + 1, right - kw + up, top - kh + 1, bottom - kh + up))
        return x[:, :, ::down, ::down]


def upfirdn2d_plain(x: torch.Tensor, f: torch.Tensor, up: int = 1, down: int = 1,
                    padding: int | tuple[int, int, int, int] = 0, gain: float = 1.0) -> torch.Tensor:
    """`upfirdn2d` step by step, as it is defined."""
    batch, channels, height, width = x.shape
    enlarged = x.new_zeros(batch, channels, height * up, width * up)
    enlarged[:, :, ::up, ::up] = x
    padded = F.pad(enlarged, _four(padding))
    kh, kw = f.shape
    windows = padded.unfold(2, kh, 1).unfold(3, kw, 1)
    return torch.einsum("nchwij,ij->nchw", windows, f.flip(0, 1).to(x.dtype) * gain)[:, :, ::down, ::down]


def bias_act(x: torch.Tensor, b: torch.Tensor | None = None, activation: str = "linear", gain: float = 1.0,
             clamp: float | None = None) -> torch.Tensor:
    """``gain * clip(activation(x + b))``, where the activation is ``linear`` or ``lrelu``: √2 · leaky ReLU (0.2).

    ``x [N, C, …]``; ``b [C]`` or None; `clamp`: the clip is to ±clamp, None for none. `gain` > 0.
    """
    scale = ACTIVATION_GAINS[activation] * gain
    if b is None:
        x = x * scale
    else:  # both activations are homogeneous, so that the gain can go first and cost nothing
        x = torch.add((b * scale).to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2)), x, alpha=scale)
    # x is a new map by now, so that what follows can take its place.
    if activation == "lrelu" and clamp is not None:
        return _ClippedLeakyRelu.apply(x, clamp * gain)
    if activation == "lrelu":
        x = F.leaky_relu(x, LEAK, inplace=True)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


class _ClippedLeakyRelu(torch.autograd.Function):
    """Leaky ReLU (0.2) clipped to ±bound, in place. Its gradient needs the result alone, so that one map is kept less.

    Where the result is the bound itself the gradient is that of what was clipped, zero.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bound: float) -> torch.Tensor:
        F.leaky_relu(x, LEAK, inplace=True).clamp_(-bound, bound)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        y, = ctx.saved_tensors
        y = y.detach()  # its slope is constant, so that gradients of gradients need nothing of it
        inside = torch.ops.aten.hardtanh_backward(grads[0], y, -ctx.bound, ctx.bound)
        return torch.ops.aten.leaky_relu_backward(inside, y, LEAK, True), None


class Dense(nn.Module):
    """Fully connected layer with equalised learning rate, then `bias_act` (Karras et al. 2018, section 4.1).

    activation     ``linear`` or ``lrelu``
    lr_multiplier  factor of the learning rate of weight and bias; the layer starts the same for any
    bias_init      bias at the start

    Computes in the type of its weight even under autocast.
    """

    def __init__(self, in_features: int, out_features: int, activation: str = "linear", lr_multiplier: float = 1.0,
                 bias_init: float = 0.0) -> None:
        super().__init__()
        self.activation, self.lr_multiplier = activation, lr_multiplier
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in_features]`` to ``[N, out_features]``."""
        with torch.autocast(x.device.type, enabled=False):
            x = F.linear(x.to(self.weight.dtype), self.weight * self.weight_gain)
            return bias_act(x, self.bias * self.lr_multiplier, self.activation)


class EqualConv(nn.Module):
    """Convolution with equalised learning rate, padded to keep the size, then `bias_act`.

    kernel      side of the kernel, odd
    down        1, or 2 to low-pass filter and halve the map (its sides must be even)
    activation  ``linear`` or ``lrelu``
    clamp       bound of the output's magnitude, None for none
    """

    fir: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, down: int = 1,
                 activation: str = "linear", bias: bool = True, clamp: float | None = None) -> None:
        super().__init__()
        self.kernel, self.down, self.activation, self.clamp = kernel, down, activation, clamp
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel**2)
        if down > 1:
            self.register_buffer("fir", fir_filter(), persistent=False)

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, H / down, W / down]``, times `gain` (the clamp, too)."""
        weight = self.weight * self.weight_gain
        if self.down == 1:
            x = F.conv2d(x, weight, padding=self.kernel // 2)
        elif self.kernel == 1:  # thinning out first saves three quarters of both
            x = F.conv2d(upfirdn2d(x, self.fir, down=2, padding=1), weight)
        else:
            x = F.conv2d(upfirdn2d(x, self.fir, padding=self.kernel // 2 + 1), weight, stride=2)
        return bias_act(x, self.bias, self.activation, gain, self.clamp)


def modulated_conv(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor,
                   fir: torch.Tensor | None = None) -> torch.Tensor:
    """Convolution whose input channels are scaled per sample (Karras et al. 2020, Eq. 1 and 2), keeping the size.

    ``x [N, in, H, W]``, ``weight [out, in, k, k]``, ``styles [N, in]``. `fir`: None, or the filter of an enlargement
    ×2 before the convolution (k = 3), which is turned by 180° then, as in the official code.

    One convolution for all samples: scaling weights is scaling its input by the styles, and Eq. 3 scales its output by
    `demodulation`. The maps follow autocast.
    """
    x = x * styles.to(x.dtype)[:, :, None, None]
    if fir is not None:
        return upfirdn2d(transposed_conv3x3(x, weight), fir, padding=1, gain=4)
    return conv3x3(x, weight) if weight.shape[2] == 3 else F.conv2d(x, weight)


def demodulation(weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """Eq. 3's factors ``[N, out]`` of ``weight [out, in, k, k]`` and ``styles [N, in]``, in the type of the styles.

    With them outputs have unit variance, under the assumption of unit variance inputs.
    """
    with torch.autocast(styles.device.type, enabled=False):
        return (styles.square() @ weight.square().sum(dim=(2, 3)).t() + DEMODULATION_EPS).rsqrt()


def modulated_conv_plain(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, demodulate: bool = True,
                         fir: torch.Tensor | None = None) -> torch.Tensor:
    """`modulated_conv`, with `demodulation` if wanted, as the paper has it: every sample has its own weights."""
    outputs = []
    for sample, style in zip(x, styles, strict=True):
        own = style[None, :, None, None] * weight  # Eq. 1
        if demodulate:
            own = own / (own.square().sum(dim=(1, 2, 3), keepdim=True) + DEMODULATION_EPS).sqrt()  # Eq. 3
        if fir is None:
            outputs.append(F.conv2d(sample[None], own, padding=weight.shape[2] // 2))
        else:
            enlarged = upfirdn2d_plain(sample[None], fir, up=2, padding=(3, 2, 3, 2), gain=4)
            outputs.append(F.conv2d(enlarged, own.flip(2, 3)))
    return torch.cat(outputs)
