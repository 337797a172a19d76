"""The U-Net of the published DDIM code for CIFAR-10, written plainly: what `benchmarks/bench_ldm.py` compares with.

Width 128, factors 1, 2, 2, 2, two residual blocks per level and three on the way up, attention at 16 px and in the
middle, time as sinusoids through two layers of 512, GroupNorm of 32 groups with eps 1e-6, swish, strided convolutions
padded right and below, nearest-neighbour enlargement, dropout 0.1. Attention is two matrix products and a softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

CHANNELS, FACTORS, BLOCKS, ATTENTION, DROPOUT = 128, (1, 2, 2, 2), 2, (16,), 0.1


def swish(x: torch.Tensor) -> torch.Tensor:
    """x times its sigmoid."""
    return x * torch.sigmoid(x)


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm as published."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class Res(nn.Module):
    """Two convolutions around the time."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(4 * CHANNELS, c_out)
        self.norm2, self.dropout, self.conv2 = norm(c_out), nn.Dropout(DROPOUT), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = h + self.time(swish(time))[:, :, None, None]
        h = self.conv2(self.dropout(swish(self.norm2(h))))
        return h + (x if self.skip is None else self.skip(x))


class Attend(nn.Module):
    """Self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, height, width = x.shape
        h = self.norm(x)
        q = self.q(h).reshape(n, c, height * width).permute(0, 2, 1)
        weights = torch.softmax(torch.bmm(q, self.k(h).reshape(n, c, height * width)) / math.sqrt(c), dim=2)
        h = torch.bmm(self.v(h).reshape(n, c, height * width), weights.permute(0, 2, 1))
        return x + self.out(h.reshape(n, c, height, width))


def attention_at(side: int, channels: int) -> nn.Module:
    """Attention on maps of the published sizes, nothing on others."""
    return Attend(channels) if side in ATTENTION else nn.Identity()


class PlainUNet(nn.Module):
    """The published network for maps of `shape` (C, H, W); levels below one pixel are left out.

    forward: x ``[N, C, H, W]``, t int64 ``[N]`` -> noise estimate like x.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        side = min(shape[1:])
        factors = [f for level, f in enumerate(FACTORS) if side >> level >= 1]
        self.levels = len(factors)
        self.time1, self.time2 = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, 4 * CHANNELS)
        self.first = nn.Conv2d(shape[0], CHANNELS, 3, padding=1)
        now, skips = CHANNELS, [CHANNELS]
        self.down, self.down_attention, self.shrink = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, factor in enumerate(factors):
            for _ in range(BLOCKS):
                self.down.append(Res(now, factor * CHANNELS))
                self.down_attention.append(attention_at(side >> level, factor * CHANNELS))
                now = factor * CHANNELS
                skips.append(now)
            if level + 1 < self.levels:
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2))
                skips.append(now)
        self.middle = nn.ModuleList([Res(now, now), Attend(now), Res(now, now)])
        self.up, self.up_attention, self.enlarge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, factor in reversed(list(enumerate(factors))):
            for _ in range(BLOCKS + 1):
                self.up.append(Res(now + skips.pop(), factor * CHANNELS))
                self.up_attention.append(attention_at(side >> level, factor * CHANNELS))
                now = factor * CHANNELS
            if level:
                self.enlarge.append(nn.Conv2d(now, now, 3, padding=1))
        self.norm, self.last = norm(now), nn.Conv2d(now, shape[0], 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        half = CHANNELS // 2
        rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000) / (half - 1)))
        angles = t[:, None].float() * rates[None, :]
        time = self.time2(swish(self.time1(torch.cat([angles.sin(), angles.cos()], dim=1))))
        x = self.first(x)
        kept = [x]
        for number, (block, attend) in enumerate(zip(self.down, self.down_attention, strict=True)):
            x = attend(block(x, time))
            kept.append(x)
            level = number // BLOCKS
            if number % BLOCKS == BLOCKS - 1 and level + 1 < self.levels:
                x = self.shrink[level](nn.functional.pad(x, (0, 1, 0, 1)))
                kept.append(x)
        x = self.middle[0](x, time)
        x = self.middle[2](self.middle[1](x), time)
        for number, (block, attend) in enumerate(zip(self.up, self.up_attention, strict=True)):
            x = attend(block(torch.cat([x, kept.pop()], dim=1), time))
            if number % (BLOCKS + 1) == BLOCKS and number // (BLOCKS + 1) + 1 < self.levels:
                x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self.enlarge[number // (BLOCKS + 1)](x)
        return self.last(swish(self.norm(x)))
