"""Projected discriminator (Sauer et al. 2021): small heads on projected features of a frozen network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dnnlib import UserError
from pg_modules.backbones import Backbone, load_backbone
from pg_modules.conditions import INSTANCE, LABEL, TIME, ConditionProjection, split_parts, with_time
from pg_modules.diffaug import diffaug, parse_policy
from pg_modules.layers import SNConv2d, freeze_blocks, resize_map
from pg_modules.projector import Projector
from pg_modules.resize import bilinear

# Output channels of the down-blocks of a head with all four; heads with fewer have the last ones.
LADDER = (64, 128, 256, 512)
CMAP_DIM = 64
OFFICIAL_MIN_SIZE = 224


def down_blocks(nominal: int, size: int) -> int:
    """Number of halvings of a map of side `size`: `nominal`, or fewer so that at least 4 pixels remain."""
    count = 0
    while count < nominal and size >> (count + 1) >= 4:
        count += 1
    return count


class DownBlock(nn.Sequential):
    """Halves the side: convolution 4×4 with stride 2, or a separable 3×3 and pooling; batch norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, separable: bool) -> None:
        activation = [nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2, inplace=True)]
        if separable:
            super().__init__(SNConv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
                             SNConv2d(in_channels, out_channels, 1, bias=False), *activation, nn.AvgPool2d(2))
        else:
            super().__init__(SNConv2d(in_channels, out_channels, 4, stride=2, padding=1), *activation)


class Head(nn.Module):
    """One mini-discriminator: down-blocks to about 8×8 pixels, then a valid 4×4 convolution to logits.

    With c the last convolution has 64 outputs, which are projected on the embedded c. With labels alone that is the
    whole logit, as in the official code; with other parts a logit of its own is added (IC-GAN; DISP, Eq. 1).
    """

    def __init__(self, in_channels: int, size: tuple[int, int], nominal: int, c_parts: Mapping[str, int],
                 separable: bool, width: float) -> None:
        super().__init__()
        count = down_blocks(nominal, min(size))
        ladder = [max(8, round(channels * width / 8) * 8) for channels in LADDER[len(LADDER) - count:]]
        channels = [in_channels, *ladder]
        self.down = nn.Sequential(*(DownBlock(channels[i], channels[i + 1], separable) for i in range(count)))
        kernel = min(4, min(size) >> count)
        self.c_parts = dict(c_parts)
        self.own_logit = set(c_parts) != {LABEL}
        self.cls = SNConv2d(channels[-1], (CMAP_DIM if c_parts else 0) + self.own_logit, kernel, bias=False)
        self.num_logits = math.prod((side >> count) - kernel + 1 for side in size)
        if c_parts:
            self.project = ConditionProjection(c_parts, CMAP_DIM)

    def forward(self, x: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """``[N, in, H, W]`` to logits ``[N, num_logits]``."""
        x = self.cls(self.down(x))
        if not self.c_parts:
            return x.flatten(1)
        logits = (x[:, :CMAP_DIM] * self.project(c)[:, :, None, None]).sum(dim=1) / math.sqrt(CMAP_DIM)
        return (logits + x[:, -1] if self.own_logit else logits).flatten(1)


class ProjectedDiscriminator(nn.Module):
    """Augmentation, resize, frozen features, random projection, heads.

    img_resolution  short side of the images
    img_channels    1 or 3; grey images are shown to the network in three equal channels
    aspect          height and width of the images in multiples of the short side
    c_parts         widths of the parts of the condition vector by name, None or {} for none
    h_channels      channels of the noised representation that every head sees beside its map, 0 for none
    backbone        name of a network of `pg_modules.backbones`
    input_size      short side that the network sees; None = at least 224, as in the official code
    cout, expand, proj_type  of the `Projector`
    num_discs       heads, from the finest scale on
    separable       separable convolutions in the heads
    width           multiplies the heads' channels, rounded to multiples of 8
    diffaug         augmentations of `pg_modules.diffaug`, "" for none
    official_zero_pass  shift the backbone's batch-norm statistics as the official constructor does
    backbone_weights    weights file of the backbone; None = where `load_backbone` looks

    The backbone is frozen and known by its hash, so it is no part of the state dict.
    """

    def __init__(self, img_resolution: int, img_channels: int = 3, aspect: Sequence[int] = (1, 1),
                 c_parts: Mapping[str, int] | None = None, h_channels: int = 0,
                 backbone: str = "tf_efficientnet_lite0", input_size: int | None = None, cout: int = 64,
                 expand: bool = True, proj_type: int = 2, num_discs: int = 4, separable: bool = False,
                 width: float = 1.0, diffaug: str = "color,translation,cutout", official_zero_pass: bool = False,
                 backbone_weights: str | None = None) -> None:
        super().__init__()
        self.c_parts, self.h_channels = dict(c_parts or {}), h_channels
        assert set(self.c_parts) <= {LABEL, INSTANCE, TIME}, self.c_parts
        self.img_channels = img_channels
        input_size = max(img_resolution, OFFICIAL_MIN_SIZE) if input_size is None else input_size
        if input_size < 32:
            raise UserError(f"The discriminator needs images of at least 32 pixels, not {input_size}.")
        self.input_size = (input_size * aspect[0], input_size * aspect[1])
        parse_policy(diffaug)
        self.diffaug = diffaug
        # In a list, so that it is not registered: weights of others don't belong into every checkpoint.
        self._backbone = [load_backbone(backbone, backbone_weights, official_zero_pass)]
        self.projector = Projector(self.backbone.channels, cout, expand, proj_type)
        if not 1 <= num_discs <= len(self.backbone.channels):
            raise ValueError(f"num_discs is 1 to {len(self.backbone.channels)}, not {num_discs}")
        heights, widths = (self.projector.output_sizes(self.backbone.map_sizes(side)) for side in self.input_size)
        self.heads = nn.ModuleList(
            Head(self.projector.channels[k] + h_channels, (heights[k], widths[k]), 4 - k, self.c_parts, separable,
                 width)
            for k in range(num_discs))

    @property
    def backbone(self) -> Backbone:
        """The frozen network."""
        return self._backbone[0]

    @property
    def num_logits(self) -> int:
        """Logits per image, of all heads together."""
        return sum(head.num_logits for head in self.heads)  # type: ignore[misc]

    def prepare(self, img: torch.Tensor, generator: torch.Generator | None, augment: bool = True) -> torch.Tensor:
        """Augments images ``[N, C, H, W]``."""
        return diffaug(img, self.diffaug, generator) if augment else img

    def maps(self, img: torch.Tensor, generator: torch.Generator | None = None,
             d_noise: Any = None) -> list[torch.Tensor]:
        """Projected maps of images, with the noise that `d_noise` adds in front of and behind the projection."""
        if img.shape[1] == 1:
            img = img.expand(-1, 3, -1, -1)
        if tuple(img.shape[2:]) != self.input_size:
            # The filter widens when shrinking, as a plain bilinear look-up would skip pixels.
            img = bilinear(img, self.input_size, antialias=img.shape[-1] > self.input_size[-1])
        features = self.backbone.features(img)
        if d_noise is None:
            return self.projector(features)
        return d_noise.last(self.projector(d_noise.first(features, generator)), generator)

    def judge(self, maps: Sequence[torch.Tensor], c: torch.Tensor | None = None,
              h: torch.Tensor | None = None) -> torch.Tensor:
        """Logits ``[N, num_logits]`` from projected maps; conditions as in `forward`."""
        split_parts(c, self.c_parts)  # one clear error instead of one from every head
        if (h.shape[1] if h is not None else 0) != self.h_channels:
            raise ValueError(f"the discriminator takes h with {self.h_channels} channels, "
                             f"not {0 if h is None else h.shape[1]}")
        logits = [head(self._with_h(x, h), c) for head, x in zip(self.heads, maps, strict=False)]
        return torch.cat(logits, dim=1)

    @staticmethod
    def _with_h(x: torch.Tensor, h: torch.Tensor | None) -> torch.Tensor:
        """A map with h, resized, concatenated: what the draft calls the input of D_cls."""
        if h is None:
            return x
        side = (x.shape[2], x.shape[3])
        return torch.cat([x, resize_map(h, side).expand(-1, -1, *side).to(x.dtype)], dim=1)

    def forward(self, img: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                generator: torch.Generator | None = None, d_noise: Any = None, augment: bool = True) -> torch.Tensor:
        """Logits ``[N, num_logits]`` for images ``[N, C, H, W]`` in [-1, 1].

        ``c [N, c_dim]`` without its time part (None or zero-width where c_dim is 0); ``h [N, h_channels, H', W']`` of
        any size, resized bilinearly to each head's map; `generator`: CPU source of augmentations and noise, needed
        unless there are none; `d_noise`: a `training.d_noise.base.DNoise` or None; `augment`: False shows the image as
        it is. Raises ValueError when a condition or the generator is missing or not expected.
        """
        img, time = self.prepare(img, generator, augment), None
        if d_noise is not None:
            img, time = d_noise.image(img, generator)
        return self.judge(self.maps(img, generator, d_noise), with_time(c, time), h)

    def features(self, img: torch.Tensor) -> torch.Tensor:
        """``[N, D]``: what the heads see in front of their last convolution, averaged over space (no condition h).

        Self-Conditioned GAN clusters these. ValueError for a discriminator that needs h.
        """
        if self.h_channels:
            raise ValueError("features of images without h are undefined for this discriminator")
        trunks = [head.down(x) for head, x in zip(self.heads, self.maps(img), strict=False)]  # type: ignore[operator]
        return torch.cat([trunk.mean(dim=(2, 3)) for trunk in trunks], dim=1)

    def freeze(self, count: int) -> None:
        """Stops training the first `count` down-blocks of every head (FreezeD); UserError if no head has as many."""
        most = max(len(head.down) for head in self.heads)  # type: ignore[arg-type]
        for head in self.heads:
            freeze_blocks(list(head.down), count, most)  # type: ignore[arg-type]
