"""The frozen network through which tasks look at images, and at what size."""

from __future__ import annotations

import torch

from pg_modules import perceptual
from pg_modules.backbones import Backbone, load_backbone
from pg_modules.perceptual import GUIDE, JUDGE

LEAST_SIDE, MOST_SIDE = 64, 256


def guiding_network() -> Backbone:
    """EfficientNet-Lite0, with gradients to its input."""
    network = load_backbone(GUIDE)
    assert network.name != JUDGE, "the network that judges may not guide"
    return network


def fitted(img: torch.Tensor, least_side: int) -> torch.Tensor:
    """Images ``[N, C, H, W]`` with a short side of `least_side` to `MOST_SIDE` pixels, the aspect ratio kept."""
    return perceptual.fitted(img, least_side, MOST_SIDE)


def unit_maps(img: torch.Tensor) -> list[torch.Tensor]:
    """Maps of the guiding network at strides 4, 8, 16 and 32 for ``[N, C, H, W]``, of length 1 over channels."""
    return perceptual.unit_maps(guiding_network(), fitted(img, LEAST_SIDE))
