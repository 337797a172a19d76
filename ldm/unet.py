"""The U-Net of denoising diffusion models (Ho et al. 2020), compact, for latent maps of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ldm.denoiser import ClassEmbedding, TimeEmbedding, embed

SMALLEST_SIDE = 4


class Norm(nn.GroupNorm):
    """GroupNorm of 32 groups, or of fewer that hold four channels each.

    A group of one channel would take away what time and class add to that channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, max(channels // 4, 1)), channels, eps=1e-6)


class NormSwish(Norm):
    """`Norm`, then swish."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(super().forward(x))


class ResBlock(nn.Module):
    """norm, swish, conv 3x3; plus time; norm, swish, dropout, conv 3x3; plus the input (1x1 when widths differ)."""

    def __init__(self, c_in: int, c_out: int, time_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = NormSwish(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_width, c_out)
        self.norm2 = NormSwish(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.norm1(x))
        h = h + self.time(emb)[:, :, None, None]
        h = self.conv2(self.dropout(self.norm2(h)))
        return self.skip(x) + h


class Attention(nn.Module):
    """Single-head self-attention over all positions, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)  # each [N, C, H*W]
        # On CPU twice as fast as torch's attention, which would want the channels last.
        weights = torch.softmax(torch.bmm((q * q.shape[1] ** -0.5).transpose(1, 2), k), dim=2)
        return x + self.proj(torch.bmm(v, weights.transpose(1, 2)).reshape(x.shape))


class Stage(nn.Module):
    """One residual block, with attention after it where `attend`."""

    def __init__(self, c_in: int, c_out: int, time_width: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.block = ResBlock(c_in, c_out, time_width, dropout)
        self.attention = Attention(c_out) if attend else nn.Identity()

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return self.attention(self.block(x, emb))


class Downsample(nn.Module):
    """Halves both sides: 3x3, stride 2, padded right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, then 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def num_levels(height: int, width: int, wanted: int) -> int:
    """How many of `wanted` levels a map holds: each halving needs even sides and leaves at least `SMALLEST_SIDE`."""
    levels = 1
    while levels < wanted and height % 2 == 0 and width % 2 == 0 and min(height, width) // 2 >= SMALLEST_SIDE:
        height, width, levels = height // 2, width // 2, levels + 1
    return levels


class UNet(nn.Module):
    """U-Net with skip connections.

    shape      (C, H, W) of the latents
    channels   width of the first level; `mult` are the factors of all levels, of which those are built that
               the map's size allows (`num_levels`; a 4x4 map has one)
    blocks     residual blocks per level on the way down, one more on the way up
    attention  sides (the shorter one) of the levels with attention; the middle always has it
    dropout    in every residual block
    classes    number of classes that it is told of; 0 = none

    forward: x ``[N, C, H, W]``, t int64 ``[N]``, classes y int64 ``[N]`` (`classes` or None: no class) -> like x; zero
    at initialisation.
    """

    def __init__(self, shape: Sequence[int], channels: int = 128, mult: Sequence[int] = (1, 2, 2), blocks: int = 2,
                 attention: Sequence[int] = (16, 8), dropout: float = 0.1, classes: int = 0) -> None:
        super().__init__()
        c_data, height, width = shape
        mult = list(mult)[: num_levels(height, width, len(mult))]
        emb = 4 * channels
        attend = [min(height, width) >> level in attention for level in range(len(mult))]
        self.time = TimeEmbedding(channels)
        self.first = nn.Conv2d(c_data, channels, 3, padding=1)

        skips = [channels]
        now = channels
        self.down = nn.ModuleList()
        for level, factor in enumerate(mult):
            for _ in range(blocks):
                self.down.append(Stage(now, channels * factor, emb, dropout, attend[level]))
                now = channels * factor
                skips.append(now)
            if level + 1 < len(mult):
                self.down.append(Downsample(now))
                skips.append(now)
        self.middle = nn.ModuleList([Stage(now, now, emb, dropout, True), Stage(now, now, emb, dropout, False)])
        self.up = nn.ModuleList()
        for level, factor in reversed(list(enumerate(mult))):
            for _ in range(blocks + 1):
                self.up.append(Stage(now + skips.pop(), channels * factor, emb, dropout, attend[level]))
                now = channels * factor
            if level > 0:
                self.up.append(Upsample(now))
        assert not skips
        self.norm = NormSwish(now)
        self.last = nn.Conv2d(now, c_data, 3, padding=1)
        self.label = ClassEmbedding(classes, emb) if classes else None
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return self.with_embedding(x, embed(self.time, self.label, t, y))

    def with_embedding(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """`forward` from what the blocks are told of times and classes."""
        x = self.first(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, emb) if isinstance(layer, Stage) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, emb)
        for layer in self.up:
            x = layer(torch.cat([x, skips.pop()], dim=1), emb) if isinstance(layer, Stage) else layer(x)
        return self.last(self.norm(x))
