"""The closest pairs as a picture: generated images above, the training images that they are nearest to below."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from dnnlib import UserError, atomic_write

CELL, _GAP, _TEXT = 128, 4, 14


def draw_pairs(pairs: Sequence[tuple[torch.Tensor, torch.Tensor, float]]) -> Image.Image:
    """pairs: generated and real image, uint8 ``[3 or 1, H, W]`` of any sizes, and their distance; side by side."""
    width = len(pairs) * (CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, 2 * (CELL + _GAP) + _GAP + _TEXT), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (fake, real, distance) in enumerate(pairs):
        left = _GAP + k * (CELL + _GAP)
        for row, image in enumerate((fake, real)):
            sheet.paste(_cell(image), (left, _GAP + row * (CELL + _GAP)))
        draw.text((left, 2 * (CELL + _GAP) + _GAP), f"{distance:.4g}", fill="black")
    return sheet


def _cell(image: torch.Tensor) -> Image.Image:
    """Fitted into the cell; small pictures are enlarged without smoothing, so that pixels can be compared."""
    picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    scale = CELL / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    filter_ = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(picture.resize(size, filter_), ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def check_target(path: str | os.PathLike) -> None:
    """`UserError` for a name that isn't a PNG's, before anything is measured."""
    if not str(path).lower().endswith(".png"):
        raise UserError(f"--pairs {path}: name a .png file.")


def save_pairs(path: str | os.PathLike, pairs: Sequence[tuple[torch.Tensor, torch.Tensor, float]]) -> None:
    """`draw_pairs` as a PNG, written atomically; `UserError` where that can't be done."""
    data = io.BytesIO()
    draw_pairs(pairs).save(data, format="png")
    with atomic_write(path) as file:
        file.write(data.getvalue())
