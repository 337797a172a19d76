"""What an inversion lowers: distances from a given image, a number per image."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pg_modules.backbones import load_backbone
from pg_modules.perceptual import GUIDE, JUDGE, fitted, map_distance, unit_maps

Distance = Callable[[torch.Tensor], torch.Tensor]  # images [n, C, H, W] in [-1, 1] -> [n]
Loss = Callable[[torch.Tensor], Distance]  # n targets like them -> distance from these
LOSSES = ("mse", "perceptual", "mse+perceptual")


def mean_squared(target: torch.Tensor) -> Distance:
    """Mean squared difference of the values, ‖G − x‖² over their number (DISP, image inversion; IvOM)."""
    return lambda img: (img - target).square().flatten(1).mean(1)


def perceptual(network: str, least_side: int, most_side: int) -> Loss:
    """`map_distance` in a frozen network, of images at a short side of `least_side` to `most_side` pixels."""
    backbone = load_backbone(network)

    def maps(img: torch.Tensor) -> list[torch.Tensor]:
        return unit_maps(backbone, fitted(img, least_side, most_side))

    def loss(target: torch.Tensor) -> Distance:
        wanted = maps(target)
        return lambda img: map_distance(maps(img), wanted)

    return loss


def open_loss(name: str) -> Loss:
    """The loss `name` of `LOSSES`; of a sum both parts count alike."""
    assert name in LOSSES, name
    if name == "mse":
        return mean_squared
    looks = perceptual(GUIDE, 128, 256)
    if name == "perceptual":
        return looks

    def both(target: torch.Tensor) -> Distance:
        pixels, maps = mean_squared(target), looks(target)
        return lambda img: pixels(img) + maps(img)

    return both


def open_judge() -> Loss:
    """The perceptual distance that results are measured with, at the size at which the metrics look at images."""
    return perceptual(JUDGE, 192, 192)
