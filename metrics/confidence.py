"""How far a distance may be off: its standard error, and its value for infinitely many images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metrics.fid import Gaussian, fit_gaussian, frechet_distance
from metrics.image_sets import fixed_subset
from metrics.kid import polynomial_kernel
from torch_utils import rng

REPEATS = 16
FID_POOL = 10_000  # generated vectors that are held for a standard error
KID_POOL = 2000
POINTS = 15
FIRST_POINT = 5000


@dataclass(frozen=True)
class Interval:
    """95 % interval of a value over other draws of the generated images; the real ones stay as they are."""

    low: float
    high: float
    standard_error: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)


def interval(value: float, error: float, method: str, least: float = -torch.inf) -> Interval:
    """`value` ± 1.96 standard errors, not below `least`."""
    return Interval(max(value - 1.96 * error, least), value + 1.96 * error, error, method)


def standard_error(statistic: Callable[[torch.Tensor], float], pool: int, total: int, seed: int = 0) -> float:
    """Of a statistic of `total` vectors, from its values on random halves of the first `pool` of them.

    statistic: indices ``[pool // 2]`` to a number. Subsets of r out of p vary by σ² (1/r − 1/p) where independent
    samples of n vary by σ²/n (delete-d jackknife, Shao & Wu 1989). A bootstrap would not do: its repeated vectors
    make every FID larger. `pool` at least 4.
    """
    size = pool // 2
    generator = rng.generator("confidence", seed)
    values = torch.tensor([statistic(torch.randperm(pool, generator=generator)[:size]) for _ in range(REPEATS)],
                          dtype=torch.float64)
    return (values.var() / (1 / size - 1 / pool) / total).sqrt().item()


def fid_error(features: torch.Tensor, total: int, real: Gaussian, seed: int = 0) -> float:
    """Standard error of the FID of `total` images, of which ``features [n, D]`` are the first, n at least 4."""
    pool = features[:FID_POOL]
    return standard_error(lambda rows: frechet_distance(fit_gaussian(pool[rows]), real), len(pool), total, seed)


def kid_error(features: torch.Tensor, reals: torch.Tensor, seed: int = 0) -> float:
    """Standard error of the KID of ``features [n, D]`` against ``reals [m, D]``, n at least 4.

    Where both have the same distribution it is too large by up to √2, as for any degenerate U-statistic.
    """
    x = features[:KID_POOL].double()
    own = polynomial_kernel(x, x).fill_diagonal_(0)
    cross = polynomial_kernel(x, reals[fixed_subset(len(reals), KID_POOL)].double()).mean(1)

    def statistic(rows: torch.Tensor) -> float:
        return (own[rows][:, rows].sum() / (len(rows) * (len(rows) - 1)) - 2 * cross[rows].mean()).item()

    return standard_error(statistic, len(x), len(features), seed)


def fid_infinity(features: torch.Tensor, real: Gaussian, seed: int = 0) -> tuple[float, list[tuple[int, float]]]:
    """FID for infinitely many images, and the (count, FID) pairs behind it (Chong & Forsyth 2020, FID∞).

    The bias of FID is linear in 1/N: a line through the FIDs of random subsets of ``features [n, D]``, n at least 4,
    met at 1/N = 0. 15 counts from 5,000 (as published) or n/2, if that is less, to n. With fewer vectors than
    dimensions the bias is no longer linear, and the value only less biased.
    """
    count = len(features)
    order = torch.randperm(count, generator=rng.generator("fid infinity", seed))
    sizes = torch.linspace(min(FIRST_POINT, count // 2), count, POINTS).round().long().unique().tolist()
    generator = rng.generator("fid infinity", seed, "subsets")
    values = []
    for size in sizes:
        rows = order if size == count else order[torch.randperm(count, generator=generator)[:size]]
        values.append(frechet_distance(fit_gaussian(features[rows]), real))
    inverse = 1 / torch.tensor(sizes, dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    intercept = torch.linalg.lstsq(design, torch.tensor(values, dtype=torch.float64)[:, None]).solution[0].item()
    return intercept, list(zip(sizes, values, strict=True))
