"""Draws the studies of `training.controls`: single images, the labelled picture, the nearest training images."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dnnlib import atomic_write
from training.controls import Cell, Study
from training.dataset import ImageDataset
from training.labelled_grid import GridRow, labelled_grid
from training.reference_grid import features_name, nearest_indices
from training.sampling import Sampler


def draw_cells(sampler: Sampler, cells: Sequence[Cell], batch_size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Batches of (places in `cells`, images uint8 [n, C, H, W]); a batch has one σ."""
    by_sigma: dict[float | None, list[int]] = {}
    for place, cell in enumerate(cells):
        by_sigma.setdefault(cell.sigma, []).append(place)
    for sigma, places in by_sigma.items():
        one = sampler if sigma is None else at_sigma(sampler, sigma)
        for start in range(0, len(places), batch_size):
            batch = places[start:start + batch_size]
            yield batch, _draw(one, [cells[place] for place in batch])


def at_sigma(sampler: Sampler, sigma: float) -> Sampler:
    """`sampler` with another noise scale."""
    one = copy.copy(sampler)
    one.sigma = sigma
    return one


def _draw(sampler: Sampler, cells: Sequence[Cell]) -> torch.Tensor:
    f, references = torch.stack([cell.f for cell in cells]), [cell.reference for cell in cells]
    z, eps = [cell.z for cell in cells], [cell.eps for cell in cells]
    others = [cell.other for cell in cells if cell.other is not None]
    if not others:
        return sampler.draw(f, sampler._labels(references), z, eps)
    own = torch.tensor([cell.own_blocks for cell in cells])
    with blocks_apart(sampler.gan.G, own):
        return sampler.draw(torch.cat([f, torch.stack(others)]), sampler._labels(references * 2), z * 2,
                            eps * 2)[:len(cells)]


@contextlib.contextmanager
def blocks_apart(G: Any, own: torch.Tensor) -> Iterator[None]:
    """While entered, row i of the first half of G's batch has the condition of row n + i in all but its first own[i]
    blocks: style mixing (Karras et al. 2019, section 3.1), for ĥ and embeddings of c as well as for w.

    own [n] counts blocks, for batches of 2n rows. z, with which generators without a mapping network begin, stays.
    """
    # In front of the noise, every block takes its vector (an embedding of c, or styles) and ĥ: blocks of FastGAN
    # after the map, those of StyleGAN2 after map and image.
    first, n = 2 if G.has_mapping else 1, len(own)

    def take(value: Any, rows: torch.Tensor) -> Any:
        if isinstance(value, torch.Tensor):
            return value[rows.to(value.device)]
        return value if value is None else tuple(part[rows.to(part.device)] for part in value)

    def hook(k: int) -> Any:
        rows = torch.arange(2 * n)
        rows[:n] += n * (own <= k)
        return lambda block, args: (*args[:first], *(take(value, rows) for value in args[first:first + 2]),
                                    *args[first + 2:])

    handles = [block.register_forward_pre_hook(hook(k)) for k, block in enumerate(G.blocks.values())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# What is written.


def save_study(path: Path, study: Study, pictures: torch.Tensor, images: torch.Tensor,
               below: torch.Tensor | None) -> None:
    """The labelled picture of a study as a PNG.

    pictures: the references uint8 [R, C, H, W]; images: of `Study.cells`; below: what stands under each of them.
    """
    stacked = images if below is None else torch.cat([images, below], dim=2)
    parts = stacked.split([len(row.cells) for row in study.rows])
    pair = study.rows[0].last is not None
    labels_below = [] if below is None else ["nearest"]
    rows = []
    for row, cells in zip(study.rows, parts, strict=True):
        end = [] if row.last is None else [pictures[row.last]]
        rows.append(GridRow([row.label, *labels_below], [pictures[row.first], *cells, *end]))
    headings = ["A" if pair else "reference", *study.columns, *(["B"] if pair else [])]
    with atomic_write(path) as file:
        labelled_grid(headings, rows).save(file, format="png")


def save_nearest(path: Path, sampler: Sampler, study: Study, images: torch.Tensor,
                 dataset: ImageDataset) -> torch.Tensor:
    """The training images nearest to `images`, uint8 like them; their numbers and files go into a JSON file.

    Its key ``nearest`` holds, by name of the sample's file, ``index`` and ``file`` in the training set, and ``cosine``
    in the features that `training.reference_grid` compares by.
    """
    indices, cosines = nearest_indices(sampler.gan, images, dataset)
    found = {f"{cell.name}.png": {"index": index, "file": dataset.names[index], "cosine": round(cosine, 4)}
             for cell, index, cosine in zip(study.cells, indices.tolist(), cosines.tolist(), strict=True)}
    record = {"network": sampler.gan.hash, "training_set": dataset.name, "fingerprint": dataset.fingerprint,
              "features": features_name(sampler.gan), "nearest": found}
    with atomic_write(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())
    return torch.stack([dataset[index][0] for index in indices.tolist()])
