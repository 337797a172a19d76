"""Fidelity and variety apart: precision and recall, density and coverage, by balls around nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import torch

_ENTRIES = 1 << 24  # of a distance matrix held at once


def _distances(x: torch.Tensor, y: torch.Tensor) -> Iterator[torch.Tensor]:
    """Squared Euclidean distances of blocks of ``x [n, D]`` to all of ``y [m, D]``: ``[b, m]`` in float64."""
    y = y.double()
    centre = y.mean(0)  # smaller norms lose fewer digits in the expanded square
    y = y - centre
    norms = y.square().sum(1)
    for block in x.split(max(_ENTRIES // len(y), 1)):
        rows = block.double() - centre
        yield (rows.square().sum(1, keepdim=True) + norms - 2 * rows @ y.T).clamp_(min=0)


def neighbour_radii(x: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance ``[n]`` of each of ``x [n, D]`` to its `k`-th nearest other one, n above k."""
    assert len(x) > k, "a k-th neighbour needs more than k vectors"
    radii, start = [], 0
    for squared in _distances(x, x):
        rows = torch.arange(len(squared))
        squared[rows, start + rows] = -1  # each is nearest to itself, whatever rounding says
        radii.append(squared.kthvalue(k + 1, dim=1).values)
        start += len(squared)
    return torch.cat(radii)


def precision_recall(fakes: torch.Tensor, reals: torch.Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, Eq. 1-3) of ``fakes [n, D]`` and ``reals [m, D]``.

    Precision: the share of fakes in a ball around some real image that reaches to its k-th nearest other real one;
    recall: the same with the parts exchanged. n and m above k.
    """
    def share_inside(queries: torch.Tensor, bank: torch.Tensor) -> float:
        radii = neighbour_radii(bank, k)
        inside = [(squared <= radii).any(1) for squared in _distances(queries, bank)]
        return torch.cat(inside).double().mean().item()

    return share_inside(fakes, reals), share_inside(reals, fakes)


def density_coverage(fakes: torch.Tensor, reals: torch.Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, Eq. 3, 6) of ``fakes [n, D]`` and ``reals [m, D]``.

    Density: in how many of the reals' balls a fake lies, over k: may exceed 1. Coverage: the share of reals whose
    ball holds a fake. m above k.
    """
    radii = neighbour_radii(reals, k)
    hits = 0
    nearest = torch.full((len(reals),), torch.inf, dtype=torch.float64)
    for squared in _distances(fakes, reals):
        hits += int((squared < radii).sum())
        nearest = torch.minimum(nearest, squared.min(0).values)
    return hits / (k * len(fakes)), (nearest < radii).double().mean().item()
