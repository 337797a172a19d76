"""Nearest neighbours by cosine: of every row of a set, of queries in a bank, and ranks for diagnostics.

The search is faiss's (package faiss-cpu), imported where it is used: it is slow to load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dnnlib import UserError
from torch_utils.clustering import assign, train_centroids
from torch_utils.feature_store import Features, sample_rows, to_array, unit_rows
from torch_utils.rng import generator

_BLOCK = 1024
# Rows of a set that are in memory at a time: 8192 of 1280 dimensions are 40 MiB.
_QUERIES = 8192
_CANDIDATES = 16384
# The approximate search looks through this many times sqrt(N) rows; the lists that it reads have sqrt(N) each.
_PROBES = 16


def knn(features: Features, k: int, *, exact_below: int = 200_000, seed: int = 0) -> torch.Tensor:
    """The `k` nearest other rows of each row by cosine, nearest first: int32 ``[N, k]``.

    `features [N, D]` may have any norms: rows are divided by theirs as they are read (a zero row is equally far
    from all). A row is never its own neighbour, but a copy of it may be; equally near rows are in order of index.
    Memory beyond the features: the result and blocks of rows.

    Exact for N < `exact_below`, at a cost of N^2. Above, an inverted file: k-means parts the set into sqrt(N)
    lists, and the rows of a list are compared exactly with those of the nearest lists, 16 sqrt(N) rows in all;
    the cost is N^1.5. Features in a memory map that is larger than the free memory are read from the disk about
    16 times. Raises `UserError` naming ``--neighbors`` if k >= N.
    """
    array = to_array(features)
    count = len(array)
    if k >= count:
        raise UserError(f"--neighbors {k} needs a data set of more than {k} images, this one has {count}; "
                        f"choose at most {count - 1}")
    result = np.empty((count, k), np.int32)
    for queries, candidates in _all_pairs(count) if count < exact_below else _near_lists(array, k, seed):
        result[queries] = _nearest_others(array, queries, candidates, k)
    return torch.from_numpy(result)


def knn_reference(features: torch.Tensor, k: int) -> torch.Tensor:
    """What `knn` finds without approximation: all similarities at once, in float64, then a stable sort."""
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    similarity = rows @ rows.T
    similarity.fill_diagonal_(-math.inf)
    return similarity.argsort(dim=1, descending=True, stable=True)[:, :k].int()


def nearest_rows(queries: torch.Tensor, bank: Features, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` rows of `bank [N, D]` nearest to each of `queries [M, D]` by cosine, nearest first.

    Returns their indices (int64) and similarities (in the queries' type and on their device), both ``[M, k]``.
    Exact, in blocks of both. Raises ValueError if k > N.
    """
    count = len(bank)
    if k > count:
        raise ValueError(f"{k} nearest of {count} rows")
    array = to_array(bank)
    rows = torch.nn.functional.normalize(queries, dim=1)
    indices = torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
    similarity = rows.new_empty(len(rows), 0)
    for begin in range(0, count, _CANDIDATES):
        block = torch.from_numpy(np.array(array[begin:begin + _CANDIDATES])).to(rows)
        block = torch.nn.functional.normalize(block, dim=1)
        found = [(part @ block.T).topk(min(k, len(block)), dim=1) for part in rows.split(_BLOCK)]
        similarity = torch.cat([similarity, torch.cat([top.values for top in found])], 1)
        indices = torch.cat([indices, begin + torch.cat([top.indices for top in found])], 1)
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        similarity, indices = similarity[:, :k], indices.gather(1, order)[:, :k]
    return indices, similarity


def _all_pairs(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of queries, each with all rows as candidates."""
    everything = np.arange(count)
    for begin in range(0, count, _QUERIES):
        yield everything[begin:begin + _QUERIES], everything


def _near_lists(array: np.ndarray, k: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of each list of an inverted file with the rows of the nearest lists, its own among them.

    All rows of a list share their candidates, so that comparing them is a product of matrices and each row is
    read once per list, not once per query. Lists are added until they hold 16 sqrt(N) rows and more than k.
    """
    lists = math.isqrt(len(array))
    sample = sample_rows(array, 64 * lists, generator("knn lists", seed))
    centroids = train_centroids(unit_rows(sample), lists, seed, 10, None)
    assignment, _ = assign(array, centroids, unit=True)
    order, sizes = np.argsort(assignment, kind="stable"), np.bincount(assignment, minlength=lists)
    ends = sizes.cumsum()
    norms = np.square(centroids).sum(1)
    enough = max(_PROBES * lists, k + 1)
    for number in np.flatnonzero(sizes):
        distance = norms - 2 * centroids @ centroids[number]
        distance[number] = -np.inf
        nearest = np.argsort(distance, kind="stable")
        probed = nearest[:1 + np.searchsorted(sizes[nearest].cumsum(), enough)]
        candidates = np.concatenate([order[ends[i] - sizes[i]:ends[i]] for i in probed])
        members = candidates[:sizes[number]]
        for begin in range(0, len(members), _QUERIES):
            yield members[begin:begin + _QUERIES], candidates


def _nearest_others(array: np.ndarray, queries: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """Indices ``[len(queries), k]`` of the nearest candidates that aren't the query itself."""
    import faiss

    rows = unit_rows(array[queries])
    similarity, indices = np.empty((len(rows), 0), np.float32), np.empty((len(rows), 0), np.int64)
    for begin in range(0, len(candidates), _CANDIDATES):
        part = candidates[begin:begin + _CANDIDATES]
        found = faiss.knn(rows, unit_rows(array[part]), min(k + 1, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        similarity, indices = np.hstack([similarity, found[0]]), np.hstack([indices, part[found[1]]])
        order = np.lexsort((indices, -similarity))[:, :k + 1]
        similarity, indices = np.take_along_axis(similarity, order, 1), np.take_along_axis(indices, order, 1)
    # The query leaves by its index: a copy of it may come first.
    order = np.argsort(indices == queries[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, order, 1)


def retrieval_ranks(
    gen_features: torch.Tensor, real_features: torch.Tensor, indices: Sequence[int] | torch.Tensor
) -> torch.Tensor:
    """Rank ``[n]`` (float64, 1 = first) of real image ``indices[k]`` among all reals, sought from image k.

    ``gen_features [n, D]`` and ``real_features [m, D]`` are compared by cosine after subtracting the real
    mean: without that, all features of one detector point the same way. Equally near images share their
    mean rank, so a detector or generator that tells nothing apart scores chance.
    """
    centre = real_features.double().mean(0)
    reals = torch.nn.functional.normalize(real_features.double() - centre, dim=1)
    fakes = torch.nn.functional.normalize(gen_features.double() - centre, dim=1)
    targets = torch.as_tensor(indices, dtype=torch.long)
    assert len(targets) == len(fakes), "one index per generated image"
    ranks = []
    for start in range(0, len(fakes), _BLOCK):
        part = slice(start, start + _BLOCK)
        similarity = fakes[part] @ reals.T
        own = similarity.gather(1, targets[part, None])
        tie = (similarity - own).abs() <= 1e-12
        nearer = ((similarity > own) & ~tie).sum(1)
        ranks.append(1 + nearer + (tie.sum(1) - 1) / 2)
    return torch.cat(ranks).double()
