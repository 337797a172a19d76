"""A picture of images in rows and columns with their labels, as a PIL image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont

SMALLEST = 64  # pixels across that a cell is shown with at least
GAP, MARGIN = 4, 6  # pixels between cells, and around text
INK, PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class GridRow:
    """Labels, and images uint8 [C, H, W] or several below each other in one; the first has the height of a label."""

    labels: Sequence[str]
    images: Sequence[torch.Tensor]


def to_picture(image: torch.Tensor, factor: int) -> Image.Image:
    """uint8 [1 or 3, H, W] as an RGB picture, each pixel as a square of `factor`."""
    array = image.permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy()
    picture = Image.fromarray(array)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def labelled_grid(columns: Sequence[str], rows: Sequence[GridRow]) -> Image.Image:
    """Images in rows below the headings `columns`, which are as many as each row has images.

    Texts are ASCII: the font that comes with PIL has no Greek letters.
    """
    width = rows[0].images[0].shape[2]
    factor = -(-SMALLEST // width)
    font = ImageFont.load_default(max(12, width * factor // 12))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength
    cell = max([width * factor, *(round(measure(text, font)) for text in columns)]) + GAP
    left = max(round(measure(label, font)) for row in rows for label in row.labels) + 2 * MARGIN
    line = round(font.getbbox("Ag")[3]) + 2 * MARGIN
    heights = [max(image.shape[1] for image in row.images) * factor + GAP for row in rows]
    picture = Image.new("RGB", (left + cell * len(columns), line + sum(heights)), PAPER)
    draw = ImageDraw.Draw(picture)
    for k, text in enumerate(columns):
        draw.text((left + cell * k + (cell - GAP) // 2, line // 2), text, INK, font, anchor="mm")
    top = line
    for row, height in zip(rows, heights, strict=True):
        for k, label in enumerate(row.labels):
            middle = top + (2 * k + 1) * row.images[0].shape[1] * factor // 2
            draw.text((MARGIN, middle), label, INK, font, anchor="lm")
        for k, image in enumerate(row.images):
            picture.paste(to_picture(image, factor), (left + cell * k + (cell - GAP - width * factor) // 2, top))
        top += height
    return picture
