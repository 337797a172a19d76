"""Layers of generator and discriminator in their plain forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import spectral_norm

# (n, height, width) -> [n, 1, height, width] standard normal noise.
NoiseSource = Callable[[int, int, int], torch.Tensor]


def sn_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1,
            bias: bool = True) -> nn.Conv2d:
    """Convolution with spectral normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
    return spectral_norm(conv, eps=1e-12)


def sn_linear(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer with spectral normalisation."""
    return spectral_norm(nn.Linear(in_features, out_features), eps=1e-12)


def swish(x: torch.Tensor) -> torch.Tensor:
    """x times its sigmoid."""
    return x * torch.sigmoid(x)


def glu(x: torch.Tensor) -> torch.Tensor:
    """The first half of the channels of ``[N, 2C, H, W]`` times the sigmoid of the second: ``[N, C, H, W]``."""
    value, gate = x.chunk(2, dim=1)
    return value * torch.sigmoid(gate)


def unit_second_moment(x: torch.Tensor) -> torch.Tensor:
    """Rows of ``[N, dim]`` divided by their root mean square."""
    return x / torch.sqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class Noise(nn.Module):
    """Adds noise, the same for all channels, times a learned number that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, noise: NoiseSource | None) -> torch.Tensor:
        """``[N, C, H, W]``; without a source x itself."""
        return x if noise is None else x + self.weight * noise(x.shape[0], x.shape[2], x.shape[3])


class Norm(nn.Module):
    """Batch normalisation, with a gain of 1 + … and a bias from an embedded vector, from the map ĥ, or from both."""

    def __init__(self, channels: int, embed_dim: int, h_channels: int) -> None:
        """embed_dim, h_channels: 0 for none of either; without any, gain and bias are learned numbers."""
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not (embed_dim or h_channels))
        if embed_dim:
            self.gain, self.bias = sn_linear(embed_dim, channels), sn_linear(embed_dim, channels)
        if h_channels:
            self.gain_h, self.bias_h = sn_conv(h_channels, channels, 1), sn_conv(h_channels, channels, 1)
        self.has_embed, self.has_h = bool(embed_dim), bool(h_channels)

    def forward(self, x: torch.Tensor, embed: torch.Tensor | None, h_hat: torch.Tensor | None) -> torch.Tensor:
        """``x [N, C, H, W]``, ``embed [N, embed_dim]``, ``h_hat [N, h_channels, H or 1, W or 1]``."""
        x = self.norm(x)
        if not (self.has_embed or self.has_h):
            return x
        gain, bias = torch.ones(()), torch.zeros(())
        if self.has_embed:
            gain = gain + self.gain(embed)[:, :, None, None]
            bias = bias + self.bias(embed)[:, :, None, None]
        if self.has_h:
            gain, bias = gain + self.gain_h(h_hat), bias + self.bias_h(h_hat)
        return x * gain + bias


class VectorEmbedding(nn.Module):
    """One part of c: a label by its row of a table, an instance feature by a linear layer and `unit_second_moment`."""

    def __init__(self, parts: dict[str, int], label_dim: int, instance_dim: int) -> None:
        super().__init__()
        (self.kind, width), = parts.items()  # the measured configurations have one part
        self.out_dim = label_dim if self.kind == "label" else instance_dim
        layer = nn.Embedding(width, self.out_dim) if self.kind == "label" else nn.Linear(width, self.out_dim)
        self.embeds = nn.ModuleDict({self.kind: layer})

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        """``[N, width]``, one-hot for labels, to ``[N, out_dim]``."""
        layer = self.embeds[self.kind]
        return layer(c.argmax(dim=1)) if self.kind == "label" else unit_second_moment(layer(c))
