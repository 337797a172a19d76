"""Nearest neighbours by cosine: of every row of a set, of queries in a bank, and ranks for diagnostics.

Products of blocks and their largest entries are faiss's (package faiss-cpu), imported where it is used: it is slow
to load. Its indices aren't used: they would hold a copy of all features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from dnnlib import UserError
from torch_utils.clustering import assign, train_centroids
from torch_utils.feature_store import Features, sample_rows, to_array, unit_rows
from torch_utils.rng import generator

_BLOCK = 1024
# Rows of a set that are in memory at a time: 16384 of 1280 dimensions are 80 MiB.
_QUERIES = 16384
_CANDIDATES = 16384
# Of the approximate search: lists per square root of N, and lists that a query looks into. By benchmarks/
# bench_neighbors.py their recall@50 is 0.97, 0.95 and 0.98 for 10^4, 10^5 and 10^6 rows (with 32 lists 0.94, 0.91);
# half as many lists, of twice the size, cost twice the time for the same recall.
_LISTS, _PROBES = 4, 48
_TRAINING, _ROUNDS = 32, 5  # rows per list and iterations of the k-means that makes the lists


def knn(features: Features, k: int, *, exact_below: int = 200_000, seed: int = 0) -> torch.Tensor:
    """The `k` nearest other rows of each row by cosine, nearest first: int32 ``[N, k]``.

    `features [N, D]` may have any norms: rows are divided by theirs as they are read (a zero row is equally far
    from all). A row is never its own neighbour, but a copy of it may be; equally near rows are in order of index.
    Memory beyond the features and the result: centroids, about 8 bytes per row, and blocks of rows.

    Exact for N < `exact_below`, at a cost of N^2. Above, an inverted file: k-means parts the set into 4 sqrt(N)
    lists, and each row is compared exactly with those of the 48 lists nearest to it; the cost is N^1.5.
    Raises `UserError` naming ``--neighbors`` if k >= N.
    """
    array = to_array(features)
    count = len(array)
    if k >= count:
        raise UserError(f"--neighbors {k} needs a data set of more than {k} images, this one has {count}; "
                        f"choose at most {count - 1}")
    result = np.empty((count, k), np.int32)
    if count < exact_below:
        everything = np.arange(count)
        for begin in range(0, count, _QUERIES):
            nearest = _Nearest(array, everything[begin:begin + _QUERIES], k)
            nearest.look(everything, slice(None))
            result[nearest.queries] = nearest.others()
    else:
        index = InvertedFile(array, k, seed)
        for queries in index.blocks:
            result[queries] = index.search(queries)
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


class _Nearest:
    """The rows found nearest so far to a block of queries, given by their indices in the set."""

    def __init__(self, array: np.ndarray, queries: np.ndarray, k: int) -> None:
        self.array, self.queries, self.rows = array, queries, unit_rows(array[queries])
        # One more than k, as one may be the query itself.
        self.similarity = torch.full((len(queries), k + 1), -torch.inf)
        self.indices = torch.full((len(queries), k + 1), -1)

    def look(self, candidates: np.ndarray, who: np.ndarray | slice) -> None:
        """Compares the queries numbered `who` with the rows `candidates` of the set."""
        import faiss

        rows, keep = self.rows[who], self.indices.shape[1]
        for part in np.split(candidates, range(_CANDIDATES, len(candidates), _CANDIDATES)):
            found = faiss.knn(rows, unit_rows(self.array[part]), min(keep, len(part)),
                              metric=faiss.METRIC_INNER_PRODUCT)
            similarity = torch.cat([self.similarity[who], torch.from_numpy(found[0])], 1)
            indices = torch.cat([self.indices[who], torch.from_numpy(part[found[1]])], 1)
            self.similarity[who], order = similarity.topk(keep, dim=1, sorted=False)
            self.indices[who] = indices.gather(1, order)

    def others(self) -> np.ndarray:
        """Indices ``[queries, k]``, nearest first, without the queries themselves."""
        indices, similarity = self.indices.numpy(), self.similarity.numpy()
        # The query goes by its index: a copy of it may be as near. If it isn't there, the farthest goes.
        similarity[indices == self.queries[:, None]] = -np.inf
        order = np.lexsort((indices, -similarity))[:, :-1]
        return np.take_along_axis(indices, order, 1)


class InvertedFile:
    """The rows of a set `array [N, D]` in lists of rows that are near each other, for `k` neighbours of each.

    `blocks` are the numbers of all rows in the order of the lists: the queries of a block look into few lists.
    """

    def __init__(self, array: np.ndarray, k: int, seed: int) -> None:
        self.array, self.k = array, k
        lists = min(_LISTS * math.isqrt(len(array)), len(array))
        sample = sample_rows(array, _TRAINING * lists, generator("knn lists", seed), unit=True)
        centroids = train_centroids(sample, lists, seed, _ROUNDS, None)
        del sample
        assignment, _ = assign(array, centroids, unit=True)
        order, sizes = np.argsort(assignment, kind="stable"), np.bincount(assignment, minlength=lists)
        self.blocks = np.split(order, range(_QUERIES, len(order), _QUERIES))
        self.centroids, sizes = centroids[sizes > 0], sizes[sizes > 0]
        self.members = np.split(order, sizes.cumsum()[:-1])
        # So many that even the smallest lists hold k others.
        probes = max(_PROBES, 1 + int(np.searchsorted(np.sort(sizes).cumsum(), k + 1)))
        self.probes = min(probes, len(self.members))

    def search(self, queries: np.ndarray) -> np.ndarray:
        """Neighbours ``[n, k]`` of the rows numbered `queries`, nearest first.

        All queries that look into a list are compared with it in one product of matrices.
        """
        import faiss

        nearest = _Nearest(self.array, queries, self.k)
        probed = faiss.knn(nearest.rows, self.centroids, self.probes)[1].ravel()
        who = np.argsort(probed, kind="stable") // self.probes
        ends = np.bincount(probed, minlength=len(self.members)).cumsum()
        for rows, part in zip(self.members, np.split(who, ends[:-1]), strict=True):
            if len(part):
                nearest.look(rows, part)
        return nearest.others()


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
