"""What condition.py is shown: targets, and holes that are to be filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dnnlib import UserError
from dnnlib.images import decode
from torch_utils.rng import generator
from training.sources import read_references

HOLES = ("left-half", "right-half", "top-half", "bottom-half", "center")
_WHITE = 128


def read_targets(path: str, shape: Sequence[int], samples: int) -> torch.Tensor:
    """Images uint8 ``[M, *shape]`` of a file, folder or zip, as `read_references` crops and resizes them.

    M is at most `samples`: of more images, a fixed random choice, since the first ones are often of one kind.
    """
    if not Path(path).exists():
        raise UserError(f"--target {path} does not exist; give an image file, or a folder or zip of images.")
    images = read_references(path, shape)
    if len(images) > samples:
        images = images[torch.randperm(len(images), generator=generator("targets"))[:samples]]
    return images


def hole(name: str, height: int, width: int) -> torch.Tensor:
    """A hole of `HOLES`, bool ``[H, W]``, True where pixels are missing; ``center`` has half the sides."""
    missing = torch.zeros(height, width, dtype=torch.bool)
    rows = {"top-half": slice(0, height // 2), "bottom-half": slice(height // 2, height),
            "center": slice(height // 4, height - height // 4)}
    columns = {"left-half": slice(0, width // 2), "right-half": slice(width // 2, width),
               "center": slice(width // 4, width - width // 4)}
    missing[rows.get(name, slice(None)), columns.get(name, slice(None))] = True
    return missing


def read_hole(mask: str, height: int, width: int) -> torch.Tensor:
    """bool ``[H, W]``, True where pixels are missing: one of `HOLES`, or the white part (128 and above) of a picture.

    A picture of another size is resized if its shape is the same. `UserError` for other shapes, and where nothing is
    missing or nothing kept.
    """
    if mask in HOLES:
        return hole(mask, height, width)
    if not Path(mask).is_file():
        raise UserError(f"--mask {mask}: there is no such file; give a picture that is white where pixels are missing, "
                        f"or {', '.join(HOLES)}.")
    pixels = decode(Path(mask).read_bytes(), f"--mask {mask}")
    if pixels.shape[0] * width != pixels.shape[1] * height:
        raise UserError(f"--mask {mask} is {pixels.shape[1]}x{pixels.shape[0]}, but the network makes images of "
                        f"{width}x{height}; give a mask of that shape.")
    grey = Image.fromarray(pixels).convert("L").resize((width, height), Image.Resampling.NEAREST)
    missing = torch.from_numpy(np.array(grey) >= _WHITE)
    if not bool(missing.any()):
        raise UserError(f"--mask {mask} is black all over, so that nothing is missing; make the hole white, or use "
                        "condition.py similar.")
    if bool(missing.all()):
        raise UserError(f"--mask {mask} is white all over, so that nothing of the target is kept; make the kept part "
                        "black.")
    return missing
