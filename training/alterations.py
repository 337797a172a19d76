"""Changes of reference images (``--alter``): what does an altered reference make of the sample (DISP, manipulation)?

All are pure functions of uint8 images [n, C, H, W], C = 3 or 1, and a seed: image number i is changed the same way
in every call with this seed. They return images of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from dnnlib import UserError
from torch_utils.rng import generator

GREY = 128
# Gradients below this (of 255 per pixel) are no lines: flat images stay blank.
LEAST_GRADIENT = 8.0


def _boxes(images: torch.Tensor, seed: int, name: str) -> Iterator[tuple[int, slice, slice]]:
    """(i, rows, columns) of a box with half the sides of the image, anywhere inside it."""
    height, width = images.shape[2:]
    for i in range(len(images)):
        rng = generator("alter", name, seed, i)
        top = int(torch.randint(height - height // 2 + 1, (), generator=rng))
        left = int(torch.randint(width - width // 2 + 1, (), generator=rng))
        yield i, slice(top, top + height // 2), slice(left, left + width // 2)


def cutmix(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A box of the next image (the first one's for the last), pasted at its place (Yun et al. 2019).

    The box has a quarter of the area. `UserError` for a single image.
    """
    if len(images) < 2:
        raise UserError("--alter cutmix pastes a part of the next reference; give --ref with 2 images or more.")
    result = images.clone()
    for i, rows, columns in _boxes(images, seed, "cutmix"):
        result[i, :, rows, columns] = images[(i + 1) % len(images), :, rows, columns]
    return result


def cutout(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A grey box with a quarter of the area (DeVries & Taylor 2017)."""
    result = images.clone()
    for i, rows, columns in _boxes(images, seed, "cutout"):
        result[i, :, rows, columns] = GREY
    return result


def luminance(images: torch.Tensor) -> torch.Tensor:
    """float [n, 1, H, W] in 0..255 of uint8 [n, C, H, W] (Rec. 601)."""
    if images.shape[1] == 1:
        return images.float()
    weights = torch.tensor([0.299, 0.587, 0.114])
    return (images.float() * weights[:, None, None]).sum(1, keepdim=True)


def gray(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Luminance in all channels; `seed` has no effect."""
    return luminance(images).round().to(torch.uint8).expand(images.shape).contiguous()


def sketch(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Dark lines on white where luminance changes: Sobel gradients after a slight blur; `seed` has no effect.

    Lines are black from the 95th percentile of an image's gradients on, and fade out below.
    """
    tap = torch.tensor([1.0, 2.0, 1.0]) / 4
    blur, slope = tap[:, None] * tap, tap[:, None] * torch.tensor([-1.0, 0.0, 1.0]) / 2
    smooth = F.conv2d(F.pad(luminance(images), (1, 1, 1, 1), mode="replicate"), blur[None, None])
    padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
    gradient = torch.hypot(F.conv2d(padded, slope[None, None]), F.conv2d(padded, slope.T[None, None]))
    flat = gradient.flatten(1).sort(dim=1).values
    black = flat[:, int(0.95 * (flat.shape[1] - 1))].clamp_min(LEAST_GRADIENT)
    lines = (gradient / black[:, None, None, None]).clamp(max=1)
    return (255 * (1 - lines)).round().to(torch.uint8).expand(images.shape).contiguous()


ALTERATIONS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "cutmix": cutmix, "cutout": cutout, "sketch": sketch, "gray": gray,
}


def parse_alterations(text: str) -> list[str]:
    """Names of a comma-separated list; `UserError` for one that isn't in `ALTERATIONS`."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ALTERATIONS:
            raise UserError(f"--alter {name}: choose {', '.join(ALTERATIONS)}, or several with commas.")
    return names


def alter(images: torch.Tensor, names: list[str], seed: int = 0) -> torch.Tensor:
    """uint8 [n, C, H, W] changed by the alterations `names`, in this order."""
    for name in names:
        images = ALTERATIONS[name](images, seed)
    return images
