"""One picture of what a network makes of references (``--ref-grid``), with the training images nearest to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from pg_modules.encoder import Backboned
from torch_utils.neighbors import nearest_rows
from training.dataset import ImageDataset
from training.loader import to_float
from training.sampling import Gan, Sampler
from training.sources import at_reference
from training.tables import LatentTable

LINE = 4  # pixels between two references
PIXEL_SIDE = 32  # short side that images are averaged to where they are compared by pixels


def comparison_features(gan: Gan, img: torch.Tensor) -> torch.Tensor:
    """Vectors [n, D] by whose cosine images [n, C, H, W] in [-1, 1] are compared.

    The frozen features that f is made of, averaged over the image; where f has none, the pixels at low resolution.
    """
    if isinstance(gan.G.encoder, Backboned):
        return gan.G.encoder.grid(img).mean(dim=(2, 3))
    height, width = (side * PIXEL_SIDE // min(img.shape[2:]) for side in img.shape[2:])
    return F.adaptive_avg_pool2d(img, (height, width)).flatten(1)


def features_name(gan: Gan) -> str:
    """What `comparison_features` are, for files."""
    encoder = gan.G.encoder
    return f"pooled {encoder.backbone.name}" if isinstance(encoder, Backboned) else f"pixels at {PIXEL_SIDE}"


@torch.no_grad()
def nearest_indices(gan: Gan, cells: torch.Tensor, dataset: ImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [n] of the training images (unflipped) nearest to each of `cells` uint8 [n, C, H, W], and cosines [n]."""
    queries = torch.cat([comparison_features(gan, to_float(part.to(gan.device))).float().cpu()
                         for part in cells.split(64)])
    with LatentTable.temporary(lambda img: comparison_features(gan, img), dataset, gan.device) as bank:
        indices, cosines = nearest_rows(queries, bank.flat())
    return indices[:, 0], cosines[:, 0]


def nearest_images(gan: Gan, cells: torch.Tensor, dataset: ImageDataset) -> torch.Tensor:
    """The training image (unflipped) nearest to each of `cells`; both uint8 [n, C, H, W]."""
    return torch.stack([dataset[index][0] for index in nearest_indices(gan, cells, dataset)[0].tolist()])


def reference_grid(sampler: Sampler, pictures: torch.Tensor, dataset: ImageDataset, seeds: Sequence[int],
                   per_reference: int, batch_size: int) -> torch.Tensor:
    """uint8 [C, R · 2H + (R − 1) · 4, (1 + per_reference) · W] for R references.

    A row per reference: itself and samples of it. Sample j of row r has seed number r · per_reference + j of `seeds`,
    which start again when they end. Below it, for every cell, the nearest training image. White lines between
    references. pictures: the references uint8 [R, C, H, W], in the order of ``sampler.references``.
    """
    rows = []
    for r, picture in enumerate(pictures):
        row_seeds = [seeds[(r * per_reference + j) % len(seeds)] for j in range(per_reference)]
        rows.append(torch.cat([picture[None], *at_reference(sampler, r).images(row_seeds, batch_size)]))
    nearest = nearest_images(sampler.gan, torch.cat(rows), dataset).split(1 + per_reference)
    strips: list[torch.Tensor] = []
    for cells, neighbors in zip(rows, nearest, strict=True):
        strip = torch.cat([torch.cat(list(line), dim=2) for line in (cells, neighbors)], dim=1)
        strips += [strip, torch.full((strip.shape[0], LINE, strip.shape[2]), 255, dtype=torch.uint8)]
    return torch.cat(strips[:-1], dim=1)
