"""A perceptual distance of images: LPIPS without its learned weights, in the maps of a frozen network.

Zhang et al. (2018), "The unreasonable effectiveness of deep features as a perceptual metric", Eq. 1. What is optimised
looks through one network (`GUIDE`) and is judged by another (`JUDGE`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pg_modules.backbones import Backbone
from pg_modules.resize import bilinear

GUIDE, JUDGE = "tf_efficientnet_lite0", "tf_efficientnet_lite2"
_TINY = 1e-10


def fitted(img: torch.Tensor, least_side: int, most_side: int) -> torch.Tensor:
    """Images ``[N, C, H, W]`` with a short side of `least_side` to `most_side` pixels, the aspect ratio kept."""
    short = min(img.shape[2:])
    side = min(max(short, least_side), most_side)
    if side == short:
        return img
    height, width = (length * side // short for length in img.shape[2:])
    return bilinear(img, (height, width), antialias=side < short)


def unit_maps(network: Backbone, img: torch.Tensor) -> list[torch.Tensor]:
    """Maps of `network` at strides 4, 8, 16 and 32 for ``[N, C, H, W]``, of length 1 over channels."""
    x = img.contiguous(memory_format=torch.channels_last)
    return [f * (f.square().sum(1, keepdim=True) + _TINY).rsqrt() for f in network.features(x)]


def map_distance(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """``[N]``: squared distance of `unit_maps` summed over channels, mean over positions and then over the four maps.

    From 0 for equal images over 2 for orthogonal features to 4 for opposite ones.
    """
    parts = [(x - y).square().sum(1).mean(dim=(1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(parts).mean(0)
