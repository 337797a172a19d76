"""The discriminator of StyleGAN2-ADA (Karras et al. 2020a, 2020b): residual, with minibatch statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pg_modules.ada import AdaAugment
from pg_modules.conditions import LABEL, split_parts, with_time
from pg_modules.layers import freeze_blocks, normalize_second_moment, resize_map
from pg_modules.stylegan2_ops import Dense, EqualConv

SMALLEST = 4  # short side of the last map
MAP_LR_MULTIPLIER = 0.01


class Block(nn.Module):
    """Halves the side of a map: two convolutions beside a filtered shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualConv(in_channels, in_channels, 3, activation="lrelu")
        self.conv1 = EqualConv(in_channels, out_channels, 3, down=2, activation="lrelu")
        self.skip = EqualConv(in_channels, out_channels, 1, down=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, H / 2, W / 2]``."""
        gain = math.sqrt(0.5)  # the sum keeps the variance
        return self.skip(x, gain) + self.conv1(self.conv0(x), gain)


def minibatch_std(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """``[N, C, H, W]`` with one more channel: the mean standard deviation within each group of samples.

    Groups have `group_size` samples or, where that doesn't divide N, the next smaller number that does
    (Karras et al. 2018, section 3). Sample i is in the group of i + N / size, and so on.
    """
    n, _, height, width = x.shape
    size = next(size for size in range(min(group_size, n), 0, -1) if n % size == 0)
    groups = (x if x.dtype == torch.float64 else x.float()).unflatten(0, (size, n // size))
    deviation = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    statistic = deviation.repeat(size).to(x.dtype).view(n, 1, 1, 1)
    return torch.cat([x, statistic.expand(n, 1, height, width)], dim=1)


class ConditionMap(nn.Module):
    """c to the vector that features are projected on: an embedding per part, then fully connected layers."""

    def __init__(self, c_parts: Mapping[str, int], dim: int, layers: int) -> None:
        super().__init__()
        self.c_parts = dict(c_parts)
        self.embeds = nn.ModuleDict({name: Dense(width, dim) for name, width in c_parts.items()})
        widths = [dim * len(c_parts)] + [dim] * layers
        self.layers = nn.Sequential(*(
            Dense(widths[i], widths[i + 1], "lrelu", MAP_LR_MULTIPLIER) for i in range(layers)))

    def forward(self, c: torch.Tensor | None) -> torch.Tensor:
        """``[N, c_dim]`` to ``[N, dim]``; ValueError for another width."""
        # Parts of different scales, as one-hot labels and features of unit length are, get equal weight.
        parts = split_parts(c, self.c_parts).items()
        return self.layers(torch.cat([normalize_second_moment(self.embeds[name](part)) for name, part in parts], dim=1))


class Discriminator(nn.Module):
    """Augmentation, noise, residual blocks down to 4 pixels, epilogue.

    img_resolution     short side of the images, a power of two from 8
    img_channels       1 or 3
    aspect             (height, width) of the images in multiples of img_resolution
    c_parts            widths of the parts of c by name; None = no c. The logit is the projection on the mapped c; with
                       other parts than "label" an unconditional logit is added (IC-GAN, DISP)
    h_channels         channels of the noised representation beside the epilogue's map, 0 for none
    channel_base, channel_max  a map of side S has channel_base / S channels, at least 1 and at most channel_max
    mbstd_group_size   samples that `minibatch_std` takes together
    map_layers         fully connected layers that map c
    cmap_dim           width of the mapped c; None = channels of the last map
    ada                whether there is an `AdaAugment` as `augment` (with p = 0 at first), else that is None
    """

    def __init__(self, img_resolution: int, img_channels: int = 3, aspect: Sequence[int] = (1, 1),
                 c_parts: Mapping[str, int] | None = None, h_channels: int = 0, channel_base: int = 32768,
                 channel_max: int = 512, mbstd_group_size: int = 4, map_layers: int = 8, cmap_dim: int | None = None,
                 ada: bool = True) -> None:
        super().__init__()
        steps = int(math.log2(max(img_resolution // SMALLEST, 1)))
        if steps < 1 or SMALLEST << steps != img_resolution:
            raise ValueError(f"img_resolution is a power of two from 8, not {img_resolution}")
        self.h_channels = h_channels
        self.img_size = (img_resolution * aspect[0], img_resolution * aspect[1])
        self.mbstd_group_size = mbstd_group_size
        self.c_parts = dict(c_parts or {})
        self.augment = AdaAugment() if ada else None

        channels = [max(min(channel_base // (img_resolution >> i), channel_max), 1) for i in range(steps + 1)]
        last = channels[-1]
        self.from_rgb = EqualConv(img_channels, channels[0], 1, activation="lrelu")
        self.blocks = nn.ModuleList(Block(channels[i], channels[i + 1]) for i in range(steps))
        self.conv = EqualConv(last + 1 + h_channels, last, 3, activation="lrelu")
        self.dense = Dense(last * SMALLEST**2 * aspect[0] * aspect[1], last, "lrelu")
        self.cmap_dim = last if cmap_dim is None else cmap_dim
        self.map = ConditionMap(self.c_parts, self.cmap_dim, map_layers) if self.c_parts else None
        self.project = Dense(last, self.cmap_dim) if self.c_parts else None
        self.score = Dense(last, 1) if set(self.c_parts) != {LABEL} else None

    def freeze(self, count: int) -> None:
        """Stops training the first `count` blocks from the image side (FreezeD); `UserError` if there are fewer."""
        freeze_blocks(list(self.blocks), count)
        self.from_rgb.requires_grad_(count == 0)

    def last_map(self, img: torch.Tensor) -> torch.Tensor:
        """Images ``[N, img_channels, H, W]`` to ``[N, C, 4 * aspect[0], 4 * aspect[1]]``, without augmentation."""
        x = self.from_rgb(img)
        for block in self.blocks:
            x = block(x)
        return x

    def features(self, img: torch.Tensor) -> torch.Tensor:
        """Images ``[N, img_channels, H, W]`` to ``[N, C]``: the last map's mean, for clustering."""
        return self.last_map(img).mean(dim=(2, 3))

    def forward(self, img: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                generator: torch.Generator | None = None, d_noise: Any = None) -> torch.Tensor:
        """Logits ``[N, 1]`` for images ``[N, img_channels, H, W]`` in [-1, 1].

        ``c [N, c_dim]``, without the part "time", which `d_noise` gives; ``h [N, h_channels, H', W']`` of any size;
        `generator`: CPU source of augmentation and noise, needed where there is any. Raises ValueError when a condition
        or the generator is missing or not expected.
        """
        time = None
        if self.augment is not None:
            img = self.augment(img, generator)
        if d_noise is not None:
            img, time = d_noise.image(img, generator)
        c = with_time(c, time)
        split_parts(c, self.c_parts)  # one clear error before the work
        if (h.shape[1] if h is not None else 0) != self.h_channels:
            raise ValueError(f"the discriminator takes h with {self.h_channels} channels, "
                             f"not {0 if h is None else h.shape[1]}")
        x = minibatch_std(self.last_map(img), self.mbstd_group_size)
        if h is not None:
            side = (x.shape[2], x.shape[3])
            x = torch.cat([x, resize_map(h, side).expand(-1, -1, *side).to(x.dtype)], dim=1)
        x = self.dense(self.conv(x).flatten(1))
        logits = [] if self.score is None else [self.score(x)]
        if self.map is not None and self.project is not None:
            products = self.project(x) * self.map(c)
            logits.append(products.sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim))
        return sum(logits[1:], logits[0])
