"""Kernel distance: unbiased squared MMD with a cubic kernel over random subsets (Bińkowski et al. 2018, KID)."""

from __future__ import annotations

import torch

from torch_utils import rng

SUBSETS = 100
SUBSET_SIZE = 1000
_ENTRIES = 1 << 22  # of a kernel matrix held at once


def polynomial_kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """k(x, y) = (x·y / D + 1)³ for ``x [n, D]``, ``y [m, D]`` -> ``[n, m]``."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _draw(count: int, size: int, subsets: int, *keys: int | str) -> list[torch.Tensor]:
    generator = rng.generator("kid", *keys)
    return [torch.randperm(count, generator=generator)[:size] for _ in range(subsets)]


def _sums_by_subset(
    x: torch.Tensor, y: torch.Tensor, rows: list[torch.Tensor], columns: list[torch.Tensor]
) -> torch.Tensor:
    """``[S]``: the sum of k over the pairs of each subset, one small kernel matrix after the other."""
    sums = [
        polynomial_kernel(x[r].double(), y[c].double()).sum() for r, c in zip(rows, columns, strict=True)
    ]
    return torch.stack(sums)


def _sums_at_once(
    x: torch.Tensor, y: torch.Tensor, rows: list[torch.Tensor], columns: list[torch.Tensor]
) -> torch.Tensor:
    """The same from one pass over the whole kernel matrix: uᵀ K v with 0/1 columns u, v for every subset."""

    def membership(count: int, subsets: list[torch.Tensor]) -> torch.Tensor:
        member = torch.zeros(count, len(subsets), dtype=torch.float64)
        for k, subset in enumerate(subsets):
            member[subset, k] = 1
        return member

    u, v, y64 = membership(len(x), rows), membership(len(y), columns), y.double()
    sums = torch.zeros(len(rows), dtype=torch.float64)
    step = max(_ENTRIES // len(y), 1)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        sums += (u[part] * (polynomial_kernel(x[part].double(), y64) @ v)).sum(0)
    return sums


def _subset_sums(
    x: torch.Tensor, y: torch.Tensor, rows: list[torch.Tensor], columns: list[torch.Tensor]
) -> torch.Tensor:
    """Whichever of the two costs fewer multiplications; small sets are much cheaper as a whole."""
    dim, subsets = x.shape[1], len(rows)
    whole = len(x) * len(y) * (dim + subsets)
    apart = subsets * len(rows[0]) * len(columns[0]) * dim
    return (_sums_at_once if whole <= apart else _sums_by_subset)(x, y, rows, columns)


def kernel_distance(
    x: torch.Tensor, y: torch.Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the unbiased squared MMD of ``x [n, D]`` and ``y [m, D]``.

    Each subset takes min(n, m, `subset_size`) vectors of both sets without replacement, drawn from `seed`.
    Computed in float64. n and m at least 2.
    """
    size = min(len(x), len(y), subset_size)
    assert size >= 2, "an unbiased MMD needs two vectors on both sides"
    rows, columns = _draw(len(x), size, subsets, seed, "x"), _draw(len(y), size, subsets, seed, "y")
    same = torch.zeros(subsets, dtype=torch.float64)
    for features, picks in ((x, rows), (y, columns)):
        # The unbiased estimate leaves out each vector's kernel with itself.
        norms = torch.cat([block.double().square().sum(1) for block in features.split(4096)])
        own = (norms / features.shape[1] + 1) ** 3
        diagonal = torch.stack([own[pick].sum() for pick in picks])
        same += _subset_sums(features, features, picks, picks) - diagonal
    cross = _subset_sums(x, y, rows, columns)
    values = same / (size * (size - 1)) - 2 * cross / size**2
    return values.mean().item(), values.std(correction=0).item()
