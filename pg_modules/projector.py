"""Random projections of backbone features: cross-channel and cross-scale mixing (Projected GAN, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pg_modules.resize import bilinear


class CrossScaleMixing(nn.Module):
    """Adds the coarser result to a map, doubles its side bilinearly and mixes channels by a 1×1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, coarser: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        """``x [N, in, H, W]`` and the coarser result of the same shape, to ``[N, out, *size]``.

        The convolution comes before the interpolation: it works pixel by pixel and the interpolation's weights
        add up to 1, so that the result is the same and four times cheaper.
        """
        if coarser is not None:
            x = x + coarser
        return bilinear(self.conv(x), size, align_corners=True)


class Projector(nn.Module):
    """Frozen random 1×1 convolutions over the four maps of a backbone.

    in_channels  of the backbone's maps, fine to coarse
    cout         channels at the finest scale
    expand       double the channels from scale to scale
    proj_type    0: the maps as they are; 1: cross-channel mixing; 2: cross-scale mixing as well, which doubles
                 the side of every map

    The weights are random, so they are part of the state dict; they are never trained. ``channels`` are those of
    the outputs.
    """

    def __init__(self, in_channels: Sequence[int], cout: int = 64, expand: bool = True, proj_type: int = 2) -> None:
        super().__init__()
        if proj_type not in (0, 1, 2):
            raise ValueError(f"proj_type is 0, 1 or 2, not {proj_type}")
        self.proj_type = proj_type
        wide = [cout * 2**k if expand else cout for k in range(len(in_channels))]
        mixed = [wide[0], *(width // 2 if expand else width for width in wide[1:])]
        self.channels: list[int] = list((in_channels, wide, mixed)[proj_type])
        if proj_type >= 1:
            self.ccm = nn.ModuleList(nn.Conv2d(cin, width, 1) for cin, width in zip(in_channels, wide, strict=True))
        if proj_type == 2:
            self.csm = nn.ModuleList(CrossScaleMixing(cin, width) for cin, width in zip(wide, mixed, strict=True))
        self.requires_grad_(False)

    def output_sizes(self, sizes: Sequence[int]) -> list[int]:
        """Sides of the outputs for maps of these sides, fine to coarse."""
        return [2 * sizes[0], *sizes[:-1]] if self.proj_type == 2 else list(sizes)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Four maps, fine to coarse, to four projected maps."""
        if self.proj_type == 0:
            return list(features)
        maps = [conv(x) for conv, x in zip(self.ccm, features, strict=True)]
        if self.proj_type == 1:
            return maps
        outputs: list[torch.Tensor] = []
        coarser = None
        for k in reversed(range(len(maps))):
            # Twice the side; for images whose side is no multiple of 32 that is the finer map's side, rounded.
            height, width = maps[k - 1].shape[2:] if k else (2 * maps[0].shape[2], 2 * maps[0].shape[3])
            coarser = self.csm[k](maps[k], coarser, (height, width))
            outputs.insert(0, coarser)
        return outputs
