"""The three-sample test for data copying: Mann-Whitney in cells of the feature space (Meehan et al. 2020, C_T)."""

from __future__ import annotations

from typing import Any

import torch

from metrics.copying import nearest
from torch_utils.clustering import assign, kmeans

LEAST = 10  # generated and held-out images that a cell must have
_PER_CELL = 40
_MOST_CELLS = 50


def mann_whitney_z(x: torch.Tensor, y: torch.Tensor) -> float:
    """Standardised Mann-Whitney U of ``x [n]`` against ``y [m]``: negative where x is mostly smaller.

    Ties count half, and narrow the variance accordingly; 0 if all values are equal.
    """
    n, m = len(x), len(y)
    values, inverse, counts = torch.cat([x, y]).unique(return_inverse=True, return_counts=True)
    counts = counts.double()
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]
    u = ranks[:n].sum().item() - n * (n + 1) / 2
    total = n + m
    ties = (counts**3 - counts).sum().item()
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    return (u - n * m / 2) / variance**0.5 if len(values) > 1 else 0.0


def three_sample_test(fakes: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor, seed: int = 0) -> dict[str, Any]:
    """C_T of ``fakes [n, D]``: are they nearer to ``train [m, D]`` than ``heldout [k, D]`` is?

    The space is cut into k-means cells of the training features. In every cell that holds `LEAST` fakes and held-out
    images or more, distances to the nearest training image of that cell are compared by `mann_whitney_z`; C_T is
    their mean by share of held-out images. About 0 for new images, negative for copies, positive where fakes are
    farther from the training set than real images are (underfitted).

    ``null_std`` is the standard deviation of C_T for new images. Value and deviation are None if no cell is filled.
    """
    cells = max(1, min(_MOST_CELLS, min(len(fakes), len(heldout)) // _PER_CELL))
    clusters = kmeans(train, cells, seed)
    centroids = clusters.centroids.numpy()
    cell_of_fake, cell_of_heldout = (torch.from_numpy(assign(x.numpy(), centroids)[0]) for x in (fakes, heldout))
    scores, weights = [], []
    for cell in range(cells):
        inside, beside = fakes[cell_of_fake == cell], heldout[cell_of_heldout == cell]
        if min(len(inside), len(beside)) < LEAST:
            continue
        bank = train[clusters.assignment == cell]
        scores.append(mann_whitney_z(nearest(inside, bank)[0], nearest(beside, bank)[0]))
        weights.append(len(beside))
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights) if weights else None
    return {
        "c_t": None if share is None else (share @ torch.tensor(scores, dtype=torch.float64)).item(),
        "null_std": None if share is None else share.norm().item(),
        "cells": cells,
        "cells_used": len(scores),
    }
