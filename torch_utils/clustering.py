"""k-means (by faiss) and Gaussian mixtures (by scikit-learn) of feature vectors, for sets of any size.

Both libraries are imported where they are used: they are slow to load. All work is done in float32.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dnnlib import UserError
from torch_utils.feature_store import Features, sample_rows, to_array, unit_rows
from torch_utils.rng import generator, mix_seed

_BLOCK = 8192
# k-means++ costs k^2: seconds for 1000 centroids. Above this, random rows start k-means.
_MAX_PLUS_PLUS, _PROJECTED = 5000, 128
# Share of the mean squared distance that an iteration must gain. 300 clusters of 10,000 features stood still after 20
# iterations; the 5 that this saves gained 0.003% together.
_LEAST_GAIN = 1e-4
# Least variance of a component, in units of the variance of the whole set in the same dimension.
_LEAST_VARIANCE = 1e-3


@dataclass(frozen=True)
class Clusters:
    """Result of `kmeans`: `centroids [k, D]` float32, `assignment [N]` and `counts [k]` int64; no count is 0."""

    centroids: torch.Tensor
    assignment: torch.Tensor
    counts: torch.Tensor


def kmeans(features: Features, k: int, seed: int, iterations: int = 100, *, flag: str = "--clusters",
           init: torch.Tensor | None = None, subset: int = 200_000) -> Clusters:
    """k-means with Euclidean distances of `features [N, D]`, the same for the same `seed`.

    The centroids are fitted to at most `subset` random rows (but at least k), then every row is assigned. They
    start from `init [k, D]` if given (re-clustering with labels that keep their meaning: Self-Conditioned GAN,
    Liu et al. 2020, Sec. 3.2), else by k-means++. At most `iterations` are done, fewer if one lessens the mean
    squared distance by less than a ten-thousandth.
    A centroid that ends up without rows takes the row that is farthest from its own centroid, so that
    no cluster is empty. `flag` names the option that gave k in the `UserError` for k > N.
    """
    array = to_array(features)
    if k > len(array):
        raise UserError(f"{flag} {k} is more than the {len(array)} images of the data set; "
                        f"choose at most {len(array)}")
    rows = sample_rows(array, max(subset, k), generator("kmeans rows", seed))
    start: np.ndarray | None = None
    if init is not None:
        start = np.ascontiguousarray(init.detach().cpu().numpy(), np.float32)
    elif k <= _MAX_PLUS_PLUS:
        start = _plus_plus(rows, k, seed)
    centroids = train_centroids(rows, k, seed, iterations, start)
    assignment, distance = assign(array, centroids)
    counts = np.bincount(assignment, minlength=k)
    _fill_empty(array, centroids, assignment, counts, distance)
    return Clusters(torch.from_numpy(centroids), torch.from_numpy(assignment), torch.from_numpy(counts))


def train_centroids(rows: np.ndarray, k: int, seed: int, iterations: int, start: np.ndarray | None) -> np.ndarray:
    """Centroids ``[k, D]`` of `rows [n, D]` (float32, n >= k) by Lloyd's iterations, from `start` or k random rows."""
    import faiss

    if start is not None and start.shape != (k, rows.shape[1]):
        raise ValueError(f"{k} first centroids of width {rows.shape[1]} expected, not {list(start.shape)}")
    machine = faiss.Kmeans(rows.shape[1], k, niter=iterations, seed=mix_seed("kmeans", seed) & 0x7FFFFFFF,
                           min_points_per_centroid=1, max_points_per_centroid=len(rows),
                           early_stop_threshold=_LEAST_GAIN)
    machine.train(rows, init_centroids=start)
    return np.array(machine.centroids, np.float32).reshape(k, -1)


def assign(array: np.ndarray, centroids: np.ndarray, unit: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Nearest of `centroids [k, D]` to every row of `array [N, D]` and the squared distance: int64 and float32 ``[N]``.

    Rows are read in blocks, and divided by their norms if `unit`.
    """
    import faiss

    assignment, distance = np.empty(len(array), np.int64), np.empty(len(array), np.float32)
    for begin in range(0, len(array), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        rows = unit_rows(array[part]) if unit else np.ascontiguousarray(array[part], np.float32)
        found = faiss.knn(rows, centroids, 1)
        distance[part], assignment[part] = found[0][:, 0], found[1][:, 0]
    assert len(array) == 0 or assignment.min() >= 0, "features are finite"
    return assignment, distance


def representatives(features: Features, centroids: torch.Tensor) -> torch.Tensor:
    """The row nearest to each of `centroids [k, D]`, int64 ``[k]`` (stored instances: IC-GAN, Casanova et al. 2021).

    Looked for among the rows of `features [N, D]` that are nearer to this centroid than to any other, so no two
    are the same. A centroid that has none gets the nearest row that isn't taken, or the nearest at all if k > N.
    """
    array, points = to_array(features), np.ascontiguousarray(centroids.detach().cpu().numpy(), np.float32)
    assignment, distance = assign(array, points)
    order = np.lexsort((distance, assignment))  # stable: equally near rows stay in the order of the set
    owners, first = np.unique(assignment[order], return_index=True)
    chosen = np.full(len(points), -1, np.int64)
    chosen[owners] = order[first]
    taken = np.zeros(len(array), bool)
    taken[chosen[owners]] = True
    for empty in np.flatnonzero(chosen < 0):
        away = assign(array, points[empty][None])[1]
        if not taken.all():
            away[taken] = np.inf
        chosen[empty] = away.argmin()
        taken[chosen[empty]] = True
    return torch.from_numpy(chosen)


def _plus_plus(rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    """First centroids ``[k, D]`` from some of `rows` by greedy k-means++ (Arthur & Vassilvitskii 2007, Sec. 5).

    Each is the best of 2 + ln k rows that were drawn with their squared distance from the ones before as weight.
    Distances are those of a random projection to 128 dimensions, right to a tenth or so, which is enough here.
    """
    rng = generator("kmeans++", seed)
    some = torch.tensor(sample_rows(rows, max(8 * k, 10_000), rng))  # a copy: sets are read-only
    centred = some - some.mean(0)  # float32 tells small distances far from the origin apart badly
    if centred.shape[1] > _PROJECTED:
        centred = centred @ torch.randn(centred.shape[1], _PROJECTED, generator=rng)
    norms = centred.square().sum(1, keepdim=True)
    nearest, chosen = torch.full((len(some), 1), torch.inf), torch.randint(len(some), (1,), generator=rng)
    tried = chosen
    while True:
        distance = torch.minimum(nearest, (norms + norms[tried].T - 2 * centred @ centred[tried].T).clamp(min=0))
        best = distance.sum(0).argmin()
        nearest, chosen = distance[:, best, None], torch.cat([chosen, tried[best, None]])
        if len(chosen) > k:
            return some[chosen[1:]].numpy()
        weights = nearest[:, 0].double().clamp(min=1e-30)  # drawable even if every row is a centroid
        tried = torch.multinomial(weights, 2 + int(math.log(k)), replacement=True, generator=rng)


def _fill_empty(array: np.ndarray, centroids: np.ndarray, assignment: np.ndarray, counts: np.ndarray,
                distance: np.ndarray) -> None:
    """Moves each empty centroid, in place, to the row farthest from its own that isn't its cluster's last."""
    empty = np.flatnonzero(counts == 0)
    if len(empty) == 0:
        return
    farthest = iter(np.argsort(-distance, kind="stable").tolist())
    for cluster in empty:
        row = next(row for row in farthest if counts[assignment[row]] > 1)
        counts[assignment[row]] -= 1
        counts[cluster], assignment[row], centroids[cluster] = 1, cluster, array[row]


@dataclass(frozen=True)
class Mixture:
    """Gaussians with diagonal covariance: `weights [k]` (sum 1), `means [k, D]`, `variances [k, D]`, float32."""

    weights: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor

    def sample(self, seeds: Sequence[int]) -> torch.Tensor:
        """Samples ``[len(seeds), D]``; row i depends on ``seeds[i]`` alone."""
        rows = torch.empty(len(seeds), self.means.shape[1], dtype=self.means.dtype)
        for row, seed in enumerate(seeds):
            rng = generator("gmm", seed)
            component = int(torch.multinomial(self.weights, 1, generator=rng))
            noise = torch.randn(rows.shape[1], generator=rng, dtype=rows.dtype)
            rows[row] = self.means[component] + self.variances[component].sqrt() * noise
        return rows

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The three tensors by name, for a checkpoint."""
        return {"weights": self.weights, "means": self.means, "variances": self.variances}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> Mixture:
        """Inverse of `state_dict`."""
        return cls(state["weights"], state["means"], state["variances"])


def fit_gmm(features: Features, k: int, seed: int, subset: int = 200_000) -> Mixture:
    """Mixture of `k` Gaussians with diagonal covariance, fitted by EM to at most `subset` rows of `features [N, D]`.

    EM starts from k-means and the variances within its clusters, pooled. Every dimension is scaled to mean 0
    and variance 1 for the fit, which the result doesn't depend on but for the least variance (0.001 of the set's
    in that dimension): it keeps components of few images from collapsing. Takes about three times the subset's
    float32 bytes of memory. Raises `UserError` if k > N or N < 2.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    array = to_array(features)
    if max(k, 2) > len(array):
        raise UserError(f"--prior gmm:{k} needs at least {max(k, 2)} images, the data set has {len(array)}; "
                        "choose fewer components or another --prior")
    rows = sample_rows(array, max(subset, k), generator("gmm rows", seed))
    mean = rows.mean(0, dtype=np.float64).astype(np.float32)
    rows = rows - mean
    scale = np.sqrt(np.einsum("nd,nd->d", rows, rows, dtype=np.float64) / len(rows)).astype(np.float32)
    scale = np.maximum(scale, max(1e-6 * scale.max(), 1e-12))  # dimensions that tell nothing keep next to no variance
    rows /= scale
    start = kmeans(rows, k, seed, 25, subset=len(rows))
    centres, shares = start.centroids.numpy(), (start.counts.numpy() / len(rows)).astype(np.float32)
    # Within clusters there is what the whole has, 1, without what their centres have.
    spread = np.maximum(1 - shares @ np.square(centres), np.float32(_LEAST_VARIANCE))
    model = GaussianMixture(
        k, covariance_type="diag", reg_covar=_LEAST_VARIANCE, means_init=centres,
        weights_init=shares, precisions_init=np.tile(1 / spread, (k, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more steps would change a prior little
        model.fit(rows)
    weights = torch.from_numpy(np.asarray(model.weights_ / model.weights_.sum(), np.float32))
    return Mixture(weights, torch.from_numpy(np.asarray(model.means_ * scale + mean, np.float32)),
                   torch.from_numpy(np.asarray(model.covariances_ * scale**2, np.float32)))
