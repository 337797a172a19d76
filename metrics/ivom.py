"""Inference via optimisation (Metz et al. 2017): can a generator make images that it was not trained on?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dnnlib import UserError
from metrics.image_sets import ImageSet, fixed_subset


@dataclass(frozen=True)
class Inverter:
    """How a generator is asked for given images.

    shape   (channels, height, width) of its images
    name    of the network, for people
    what    how images are inverted, in words
    invert  uint8 ``[n, *shape]`` to such images twice: those that the inversion starts from, and those that it finds
    """

    shape: tuple[int, int, int]
    name: str
    what: str
    invert: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def check(metric: str, count: int, inverter: Inverter | None, images: ImageSet | None) -> None:
    """`UserError` unless there are a generator and `count` held-out images for it."""
    if inverter is None:
        raise UserError(f"--metrics {metric} inverts images with a generator; give --network, without compare.")
    if images is None:
        raise UserError(f"--metrics {metric} inverts images that never trained; give them with --heldout DIR|ZIP.")
    if count > images.num_images:
        raise UserError(f"--metrics {metric}: {images.name} holds {images.num_images} images only; use a smaller "
                        "count.")


def targets(inverter: Inverter, images: ImageSet, count: int) -> torch.Tensor:
    """A fixed subset, uint8 ``[count, *shape]``; `UserError` for an image of another size."""
    return torch.stack([_fitting(inverter, images, i) for i in fixed_subset(images.num_images, count).tolist()])


def _fitting(inverter: Inverter, images: ImageSet, index: int) -> torch.Tensor:
    image = images.read(index)
    if inverter.shape[0] == 1 and len(image) == 3 and (image == image[:1]).all():  # a grey file, read in colour
        image = image[:1]
    if tuple(image.shape) != inverter.shape:
        channels, height, width = inverter.shape
        grey = channels == 1
        raise UserError(f"--heldout {images.name}: {inverter.name} makes {width}x{height} images{' in grey' * grey} "
                        "and can't be asked for others; convert these with dataset_tool.py --resolution "
                        f"{width}x{height}{' --color grey' * grey}.")
    return image


def errors(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared difference ``[n]`` of two uint8 ``[n, C, H, W]``, in units in which values are in [-1, 1]."""
    return ((made.double() - wanted.double()) / 127.5).square().flatten(1).mean(1)
