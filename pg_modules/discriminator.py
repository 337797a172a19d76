"""Projected discriminator (Sauer et al. 2021): small heads on projected features of a frozen network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dnnlib import UserError
from pg_modules.backbones import Backbone, load_backbone
from pg_modules.diffaug import diffaug, parse_policy
from pg_modules.layers import Embedding, SNConv2d, resize_map
from pg_modules.projector import Projector

# Output channels of the down-blocks of a head with all four; heads with fewer have the last ones.
LADDER = (64, 128, 256, 512)
EMBED_DIM = 128
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

    With labels the last convolution has 64 outputs, which are projected on the embedded label.
    """

    def __init__(self, in_channels: int, size: int, nominal: int, c_dim: int, separable: bool, width: float) -> None:
        super().__init__()
        count = down_blocks(nominal, size)
        ladder = [max(8, round(channels * width / 8) * 8) for channels in LADDER[len(LADDER) - count:]]
        channels = [in_channels, *ladder]
        self.down = nn.Sequential(*(DownBlock(channels[i], channels[i + 1], separable) for i in range(count)))
        kernel = min(4, size >> count)
        self.cls = SNConv2d(channels[-1], CMAP_DIM if c_dim else 1, kernel, bias=False)
        self.num_logits = ((size >> count) - kernel + 1) ** 2
        if c_dim:
            self.embed = Embedding(c_dim, EMBED_DIM)
            self.embed_proj = nn.Linear(EMBED_DIM, CMAP_DIM)

    def forward(self, x: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """``[N, in, S, S]`` to logits ``[N, num_logits]``."""
        x = self.cls(self.down(x))
        if c is not None:
            cmap = F.leaky_relu(self.embed_proj(self.embed(c)), 0.2)
            x = (x * cmap[:, :, None, None]).sum(dim=1) / math.sqrt(CMAP_DIM)
        return x.flatten(1)


class ProjectedDiscriminator(nn.Module):
    """Augmentation, resize, frozen features, random projection, heads.

    img_resolution  side of the images
    c_dim           width of the condition vector, 0 for none
    h_channels      channels of the noised representation that every head sees beside its map, 0 for none
    backbone        name of a network of `pg_modules.backbones`
    input_size      side that the network sees; None = at least 224, as in the official code
    cout, expand, proj_type  of the `Projector`
    num_discs       heads, from the finest scale on
    separable       separable convolutions in the heads
    width           multiplies the heads' channels, rounded to multiples of 8
    diffaug         augmentations of `pg_modules.diffaug`, "" for none
    official_zero_pass  shift the backbone's batch-norm statistics as the official constructor does
    backbone_weights    weights file of the backbone; None = where `load_backbone` looks

    The backbone is frozen and known by its hash, so it is no part of the state dict.
    """

    def __init__(self, img_resolution: int, c_dim: int = 0, h_channels: int = 0,
                 backbone: str = "tf_efficientnet_lite0", input_size: int | None = None, cout: int = 64,
                 expand: bool = True, proj_type: int = 2, num_discs: int = 4, separable: bool = False,
                 width: float = 1.0, diffaug: str = "color,translation,cutout", official_zero_pass: bool = False,
                 backbone_weights: str | None = None) -> None:
        super().__init__()
        self.img_resolution, self.c_dim, self.h_channels = img_resolution, c_dim, h_channels
        self.input_size = max(img_resolution, OFFICIAL_MIN_SIZE) if input_size is None else input_size
        if self.input_size < 32:
            raise UserError(f"The discriminator needs images of at least 32 pixels, not {self.input_size}.")
        parse_policy(diffaug)
        self.diffaug = diffaug
        # In a list, so that it is not registered: weights of others don't belong into every checkpoint.
        self._backbone = [load_backbone(backbone, backbone_weights, official_zero_pass)]
        self.projector = Projector(self.backbone.channels, cout, expand, proj_type)
        if not 1 <= num_discs <= len(self.backbone.channels):
            raise ValueError(f"num_discs is 1 to {len(self.backbone.channels)}, not {num_discs}")
        sizes = self.projector.output_sizes(self.backbone.map_sizes(self.input_size))
        self.heads = nn.ModuleList(
            Head(self.projector.channels[k] + h_channels, sizes[k], 4 - k, c_dim, separable, width)
            for k in range(num_discs))

    @property
    def backbone(self) -> Backbone:
        """The frozen network."""
        return self._backbone[0]

    @property
    def num_logits(self) -> int:
        """Logits per image, of all heads together."""
        return sum(head.num_logits for head in self.heads)  # type: ignore[misc]

    def prepare(self, img: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Augments images ``[N, 3, R, R]`` and resizes them to the backbone's input."""
        img = diffaug(img, self.diffaug, generator)
        if img.shape[-1] == self.input_size:
            return img
        # The filter widens when shrinking, as a plain bilinear look-up would skip pixels.
        return F.interpolate(img, (self.input_size, self.input_size), mode="bilinear", align_corners=False,
                             antialias=img.shape[-1] > self.input_size)

    def judge(self, maps: Sequence[torch.Tensor], c: torch.Tensor | None = None,
              h: torch.Tensor | None = None) -> torch.Tensor:
        """Logits ``[N, num_logits]`` from projected maps; conditions as in `forward`."""
        c = self._check_c(c)
        if (h.shape[1] if h is not None else 0) != self.h_channels:
            raise ValueError(f"the discriminator takes h with {self.h_channels} channels, "
                             f"not {0 if h is None else h.shape[1]}")
        logits = []
        for head, x in zip(self.heads, maps, strict=False):
            if h is not None:
                side = (x.shape[2], x.shape[3])
                x = torch.cat([x, resize_map(h, side).expand(-1, -1, *side).to(x.dtype)], dim=1)
            logits.append(head(x, c))
        return torch.cat(logits, dim=1)

    def forward(self, img: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                generator: torch.Generator | None = None) -> torch.Tensor:
        """Logits ``[N, num_logits]`` for images ``[N, 3, R, R]`` in [-1, 1].

        ``c [N, c_dim]`` (None or zero-width where c_dim is 0); ``h [N, h_channels, H, W]`` of any size, resized
        bilinearly to each head's map; `generator`: CPU source of the augmentations, needed unless diffaug is "".
        Raises ValueError when a condition or the generator is missing or not expected.
        """
        return self.judge(self.projector(self.backbone.features(self.prepare(img, generator))), c, h)

    def _check_c(self, c: torch.Tensor | None) -> torch.Tensor | None:
        width = 0 if c is None else c.shape[1]
        if width != self.c_dim:
            raise ValueError(f"the discriminator takes a condition vector of width {self.c_dim}, not {width}")
        return c if self.c_dim else None
