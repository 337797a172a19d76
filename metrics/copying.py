"""Memorisation: how near are generated images to their nearest training image, against images that never trained?"""

from __future__ import annotations

from typing import Any

import torch

from torch_utils import rng

QUERIES = 2000  # images of each kind that are looked up; medians need no more
_BLOCK = 512


def nearest(
    queries: torch.Tensor,
    bank: torch.Tensor,
    query_groups: torch.Tensor | None = None,
    bank_groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distance ``[n]`` (float64) from ``queries [n, D]`` to the nearest of ``bank [m, D]``, and its index.

    With groups, entries of the bank in the query's own group don't count (an image and its mirror image).
    """
    centre = bank.mean(0)
    shifted = bank - centre  # smaller norms lose fewer digits in the expanded square
    norms = shifted.square().sum(1)
    found = []
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        squared = norms - 2 * (queries[part] - centre) @ shifted.T  # up to the query's own norm
        if query_groups is not None and bank_groups is not None:
            squared[query_groups[part, None] == bank_groups[None]] = torch.inf
        found.append(squared.argmin(1))
    index = torch.cat(found)
    # The search may round; the distance that is reported doesn't: an exact copy is at 0.
    distance = torch.cat(
        [
            (queries[s : s + _BLOCK].double() - bank[index[s : s + _BLOCK]].double()).norm(dim=1)
            for s in range(0, len(queries), _BLOCK)
        ]
    )
    return distance, index


def copying_report(
    fakes: torch.Tensor, train: torch.Tensor, train_groups: torch.Tensor, heldout: torch.Tensor | None = None
) -> dict[str, Any]:
    """Nearest-training-neighbour distances of ``fakes [n, D]`` beside those of images that are no copies.

    ``train [m, D]`` are features of the training images and, where training used them, of their mirror images;
    ``train_groups [m]`` numbers the images, so that a mirror image has its original's number. The bar is
    ``heldout [k, D]``, or without it every training image's nearest *other* training image.

    ``ratio`` is median fake distance over median bar distance: about 1 for new images of the same kind, towards
    0 for copies. It is None when the bar is 0 (duplicates in the training set) or can't be had (one image).
    """
    fakes = fakes[:QUERIES]
    fake_median = nearest(fakes, train)[0].median().item()
    bar_median: float | None
    if heldout is not None:
        count = min(len(heldout), QUERIES)
        bar_median = nearest(_sample(heldout, count), train)[0].median().item()
    elif len(train_groups.unique()) > 1:
        picks = _sample(torch.arange(len(train)), min(len(train), QUERIES))
        count = len(picks)
        bar_median = nearest(train[picks], train, train_groups[picks], train_groups)[0].median().item()
    else:
        count, bar_median = 0, None
    return {
        "ratio": fake_median / bar_median if bar_median else None,
        "fake_median_distance": fake_median,
        "bar_median_distance": bar_median,
        "bar": "held-out images" if heldout is not None else "training images, each against the others",
        "num_fake": len(fakes),
        "num_bar": count,
        "num_train": len(train),
    }


def _sample(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows drawn once and for all; all rows in order when that is all of them."""
    if count == len(rows):
        return rows
    return rows[torch.randperm(len(rows), generator=rng.generator("copying"))[:count].sort().values]
