"""StyleGAN2's generator (Karras et al. 2020) as Projected GAN uses it, in the forms of the official code without CUDA.

Styles scale the input of one shared convolution and demodulation its output, as the official code does in training;
enlarging is a transposed convolution and then the low-pass filter, which runs over zeros that are put in between.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference.layers import Noise, NoiseSource, unit_second_moment

CLAMP = 256.0


def low_pass() -> torch.Tensor:
    """The filter ``[4, 4]``."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64


def upfirdn(x: torch.Tensor, up: int, padding: tuple[int, int, int, int]) -> torch.Tensor:
    """Zeros between pixels (`up` - 1 of them), padding, `low_pass` times 4, channel by channel."""
    n, channels, height, width = x.shape
    if up > 1:
        x = F.pad(x.reshape(n, channels, height, 1, width, 1), (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(n, channels, height * up, width * up)
    kernel = (low_pass() * 4).to(x).expand(channels, 1, 4, 4)
    return F.conv2d(F.pad(x, padding), kernel, groups=channels)


class Dense(nn.Module):
    """Fully connected, with equalised learning rate."""

    def __init__(self, in_features: int, out_features: int, bias_init: float = 0.0, multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / multiplier))
        self.multiplier = multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in_features]`` to ``[N, out_features]``."""
        return F.linear(x, self.weight * (self.multiplier / math.sqrt(x.shape[1])), self.bias * self.multiplier)


def lrelu(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU with the gain that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class Mapping(nn.Module):
    """z to w; ``w_avg [w_dim]`` follows its mean."""

    w_avg: torch.Tensor

    def __init__(self, z_dim: int, w_dim: int, layers: int) -> None:
        super().__init__()
        widths = [z_dim] + [w_dim] * layers
        self.layers = nn.ModuleList(Dense(widths[i], widths[i + 1], multiplier=0.01) for i in range(layers))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """``[N, z_dim]`` to ``[N, w_dim]``."""
        w = unit_second_moment(z)
        for layer in self.layers:
            w = lrelu(layer(w))
        if self.training:
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, 0.998))
        return w


class Layer(nn.Module):
    """Modulated 3×3 convolution, after enlarging ×2 or not, noise, bias, leaky ReLU."""

    noise_const: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, side: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.affine = Dense(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise = Noise()
        self.register_buffer("noise_const", torch.randn(side, side))

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: NoiseSource | None) -> torch.Tensor:
        """``[N, in, H, W]`` and ``[N, w_dim]`` to ``[N, out, side, side]``."""
        styles = self.affine(w)
        own = self.weight[None] * styles[:, None, :, None, None]  # Eq. 1
        factors = torch.rsqrt(own.square().sum(dim=(2, 3, 4)) + 1e-8)  # Eq. 3
        x = x * styles[:, :, None, None]
        if self.up:
            x = upfirdn(F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2), 1, (1, 1, 1, 1))
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = self.noise(x * factors[:, :, None, None], noise)
        return lrelu(x + self.bias[:, None, None]).clamp(-CLAMP, CLAMP)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to an image."""

    def __init__(self, in_channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = Dense(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(3, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """``[N, in, H, W]`` and ``[N, w_dim]`` to ``[N, 3, H, W]``."""
        styles = self.affine(w) / math.sqrt(x.shape[1])
        x = F.conv2d(x * styles[:, :, None, None], self.weight)
        return (x + self.bias[:, None, None]).clamp(-CLAMP, CLAMP)


class Block(nn.Module):
    """A learned constant, or an enlarging layer; a layer; its part of the image."""

    def __init__(self, in_channels: int, channels: int, w_dim: int, side: int) -> None:
        super().__init__()
        if in_channels:
            self.conv0 = Layer(in_channels, channels, w_dim, side, up=True)
        else:
            self.const = nn.Parameter(torch.randn(channels, side, side))
        self.conv1 = Layer(channels, channels, w_dim, side, up=False)
        self.to_rgb = ToRGB(channels, w_dim)

    def forward(self, x: torch.Tensor | None, img: torch.Tensor | None, w: torch.Tensor,
                noise: NoiseSource | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's map and the image so far."""
        x = self.const.repeat(len(w), 1, 1, 1) if x is None else self.conv0(x, w, noise)
        x = self.conv1(x, w, noise)
        rgb = self.to_rgb(x, w)
        return x, rgb if img is None else upfirdn(img, 2, (2, 1, 2, 1)) + rgb


class Generator(nn.Module):
    """StyleGAN2 without conditions; the arguments are those of `pg_modules.stylegan2.Generator`."""

    encoder = None

    def __init__(self, z_dim: int, w_dim: int, img_resolution: int, channel_base: int, channel_max: int,
                 map_layers: int) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.mapping = Mapping(z_dim, w_dim, map_layers)
        self.blocks = nn.ModuleDict()
        side, channels = 4, 0
        while side <= img_resolution:
            wide = min(channel_base // side, channel_max)
            self.blocks[str(side)] = Block(channels, wide, w_dim, side)
            side, channels = 2 * side, wide

    def forward(self, z: torch.Tensor, c: None = None, h: None = None, sigma: float = 0.0,
                noise: NoiseSource | None = None) -> torch.Tensor:
        """Images ``[N, 3, H, W]`` of ``z [N, z_dim]``; c and h are None."""
        w, x, img = self.mapping(z), None, None
        for block in self.blocks.values():
            x, img = block(x, img, w, noise)
        assert img is not None
        return img
