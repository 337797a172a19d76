"""The projected discriminator (Sauer et al. 2021), plainly."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference.backbone import CHANNELS, Backbone
from benchmarks.reference.diffaug import diffaug
from benchmarks.reference.layers import sn_conv, unit_second_moment
from pg_modules.discriminator import down_blocks

WIDTHS = (64, 128, 256, 512)  # of the last four down-blocks of a head
PROJECTION = 64  # channels that a condition is projected on


class CrossScaleMixing(nn.Module):
    """Adds the coarser map, enlarges ×2 and mixes the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """``[N, in, H, W]`` twice to ``[N, out, 2H, 2W]``."""
        x = x if coarser is None else x + coarser
        return self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


class Projector(nn.Module):
    """Fixed random 1×1 convolutions: within each map (CCM), then across scales (CSM)."""

    def __init__(self, cout: int) -> None:
        super().__init__()
        wide = [cout * 2**k for k in range(4)]
        self.channels = [wide[0], *(width // 2 for width in wide[1:])]
        self.ccm = nn.ModuleList(nn.Conv2d(cin, width, 1) for cin, width in zip(CHANNELS, wide, strict=True))
        self.csm = nn.ModuleList(CrossScaleMixing(cin, width)
                                 for cin, width in zip(wide, self.channels, strict=True))
        self.requires_grad_(False)

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Four maps, fine to coarse, to four of twice the side."""
        mixed = [conv(x) for conv, x in zip(self.ccm, features, strict=True)]
        outputs: list[torch.Tensor] = []
        for k in (3, 2, 1, 0):
            outputs.insert(0, self.csm[k](mixed[k], outputs[0] if outputs else None))
        return outputs


def down_block(in_channels: int, out_channels: int, separable: bool) -> nn.Sequential:
    """Halves the side, by a strided 4×4 convolution or by a separable 3×3 one and pooling."""
    rest = [nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2)]
    if separable:
        return nn.Sequential(sn_conv(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
                             sn_conv(in_channels, out_channels, 1, bias=False), *rest, nn.AvgPool2d(2))
    return nn.Sequential(sn_conv(in_channels, out_channels, 4, stride=2, padding=1), *rest)


class LabelProjection(nn.Module):
    """A table of width 128, a linear layer, leaky ReLU."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(classes, 128), nn.Linear(128, PROJECTION)

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        """One-hot ``[N, classes]`` to ``[N, PROJECTION]``."""
        return F.leaky_relu(self.linear(self.embed(c.argmax(dim=1))), 0.2)


class InstanceProjection(nn.Linear):
    """A linear map to a root mean square of 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in]`` to ``[N, PROJECTION]``."""
        return unit_second_moment(super().forward(x))


class ConditionProjection(nn.Module):
    """c to the vector that the features are projected on; c has one part."""

    def __init__(self, parts: dict[str, int]) -> None:
        super().__init__()
        (self.kind, width), = parts.items()
        layer = LabelProjection(width) if self.kind == "label" else InstanceProjection(width, PROJECTION)
        self.project = nn.ModuleDict({self.kind: layer})

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        """``[N, width]`` to ``[N, PROJECTION]``."""
        return self.project[self.kind](c)


class Head(nn.Module):
    """Down-blocks, a 4×4 convolution, and with c a projection on it (with an instance beside a logit of its own)."""

    def __init__(self, in_channels: int, size: int, nominal: int, c_parts: dict[str, int], separable: bool,
                 width: float) -> None:
        """size: side of the map. nominal: down-blocks of a head at this scale; small maps have fewer."""
        super().__init__()
        count = down_blocks(nominal, size)
        channels = [in_channels, *(max(8, round(w * width / 8) * 8) for w in WIDTHS[4 - count:])]
        self.down = nn.Sequential(*(down_block(channels[i], channels[i + 1], separable) for i in range(count)))
        outputs = {None: 1, "label": PROJECTION, "instance": PROJECTION + 1}[next(iter(c_parts), None)]
        self.cls = sn_conv(channels[-1], outputs, min(4, size >> count), bias=False)
        self.project = ConditionProjection(c_parts) if c_parts else None

    def forward(self, x: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """``[N, in, H, W]`` to logits ``[N, L]``."""
        x = self.cls(self.down(x))
        if self.project is None:
            return x.flatten(1)
        direction = self.project(c)[:, :, None, None]
        logits = (x[:, :PROJECTION] * direction).sum(dim=1, keepdim=True) / math.sqrt(PROJECTION)
        return (logits + x[:, PROJECTION:] if x.shape[1] > PROJECTION else logits).flatten(1)


class Discriminator(nn.Module):
    """Augmentation, enlarging to `input_size`, frozen features, projection, four heads.

    The arguments are those of `pg_modules.discriminator.ProjectedDiscriminator`; `augment`: whether to use DiffAug.
    """

    def __init__(self, backbone: Backbone, c_parts: dict[str, int], h_channels: int, input_size: int, separable: bool,
                 width: float, augment: bool, cout: int = 64) -> None:
        super().__init__()
        self.frozen, self.input_size, self.augment = (backbone,), input_size, augment
        self.projector = Projector(cout)
        sizes = [input_size // 2, input_size // 4, input_size // 8, input_size // 16]
        self.heads = nn.ModuleList(
            Head(self.projector.channels[k] + h_channels, sizes[k], 4 - k, c_parts, separable, width)
            for k in range(4))

    def maps(self, img: torch.Tensor) -> list[torch.Tensor]:
        """The four projected maps of ``[N, 3, H, W]``."""
        if img.shape[2] != self.input_size:
            img = F.interpolate(img, self.input_size, mode="bilinear", align_corners=False)
        return self.projector(self.frozen[0](img))

    def forward(self, img: torch.Tensor, c: torch.Tensor | None, h: torch.Tensor | None,
                generator: torch.Generator | None) -> torch.Tensor:
        """Logits ``[N, L]`` of ``[N, 3, H, W]``; ``h [N, h_channels, H', W']``; `generator`: for augmentations."""
        if self.augment:
            assert generator is not None
            img = diffaug(img, generator)
        logits = []
        for head, x in zip(self.heads, self.maps(img), strict=True):
            if h is not None:
                h_here = F.interpolate(h, x.shape[2:], mode="bilinear", align_corners=False)
                x = torch.cat([x, h_here], dim=1)
            logits.append(head(x, c))
        return torch.cat(logits, dim=1)
