"""Features of image streams: means and covariances on the fly, vectors where they are needed, a cache by content."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib import UserError
from metrics.detectors import Detector
from metrics.fid import Gaussian, fit_gaussian
from metrics.image_sets import ImageSet, fixed_subset
from torch_utils import checkpoint
from torch_utils.distributed import any_true, rank
from torch_utils.exchange import Numbered, dealt, in_batches

CACHE_VERSION = 1  # to be raised when decoding, resizing or the file's content changes
KEEP = 100_000  # vectors of one data set that are held in memory

Batches = Iterable[torch.Tensor]
Progress = Callable[[Batches, int, str], Batches]  # batches of images or features, images in all, what is done


def no_progress(batches: Batches, total: int, what: str) -> Batches:
    """The `Progress` that shows nothing."""
    return batches


def detected(batches: Batches, detector: Detector) -> Iterator[torch.Tensor]:
    """Features ``[n, D]`` of each of uint8 ``[n, 3 or 1, H, W]`` batches, on process 0 alone.

    `Numbered` batches are made and looked at by all processes, others by process 0.
    """
    if isinstance(batches, Numbered):
        yield from dealt(batches.then(detector))
    elif rank() == 0:
        yield from map(detector, batches)


def detected_in(images: ImageSet, order: Sequence[int], flipped: bool, detector: Detector,
                batch_size: int) -> Iterator[torch.Tensor]:
    """The same of images by number, which all processes read."""
    def look(part: Sequence[int]) -> torch.Tensor:
        return torch.cat([detector(batch) for batch in images.batches(part, flipped, batch_size)])

    return dealt(in_batches(order, batch_size, look))


class Moments:
    """Running mean and covariance of ``[n, D]`` batches in float64."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.shift: torch.Tensor | None = None
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: torch.Tensor) -> None:
        """Takes in a batch."""
        features = features.double()
        if self.shift is None:
            self.shift = features.mean(0)  # near the mean, so that little cancels in the end
        features = features - self.shift
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    def gaussian(self) -> Gaussian:
        """Of everything so far, two vectors or more."""
        assert self.shift is not None
        assert self.count >= 2, "a covariance needs two vectors"
        mean = self.total / self.count
        cov = (self.outer - self.count * mean.outer(mean)) / (self.count - 1)
        return Gaussian(self.count, mean + self.shift, cov=cov)


@dataclass(frozen=True)
class Collected:
    """Of one stream: the first ``features [k, D]`` (float32), and Gaussians of longer beginnings of it.

    Process 0 has it; with others it is empty.
    """

    features: torch.Tensor
    longer: dict[int, Gaussian]

    def gaussian(self, count: int) -> Gaussian:
        """Of the first `count` images, one of the counts given to `collect`."""
        return fit_gaussian(self.features[:count]) if count <= len(self.features) else self.longer[count]


def collect(batches: Batches, detector: Detector, counts: Sequence[int], keep: int = 0) -> Collected:
    """`gathered` features of the first ``max(counts)`` images of uint8 ``[n, 3 or 1, H, W]`` batches."""
    return gathered(detected(batches, detector), detector.feature_dim, counts, keep)


def gathered(stream: Iterable[torch.Tensor], dim: int, counts: Sequence[int], keep: int = 0) -> Collected:
    """The first ``max(counts)`` vectors of a stream of features ``[n, dim]``.

    The first `keep` of them are kept, at least as many as they have dimensions (below that they are smaller than a
    covariance); beyond, only the moments at each of `counts`. All processes have to go through the stream.
    """
    total, keep = max(counts), max(keep, dim)
    moments = Moments(dim) if total > keep else None
    kept: list[torch.Tensor] = []
    longer: dict[int, Gaussian] = {}
    stops = sorted({count for count in counts if count > keep})
    done = 0
    for features in stream:
        features = features[:total - done]
        if done < keep:
            kept.append(features[:keep - done])
        if moments is not None:
            for part in _cut(features, [stop - done for stop in stops]):
                moments.add(part)
                if moments.count in stops:
                    longer[moments.count] = moments.gaussian()
        done += len(features)
        if done == total:
            break
    if rank():
        return Collected(torch.empty(0, dim), {})
    assert done == total, f"the source ended after {done} of {total} images"
    return Collected(torch.cat(kept), longer)


def _cut(features: torch.Tensor, stops: Sequence[int]) -> list[torch.Tensor]:
    """`features` split after each of `stops` that lies inside."""
    edges = [0, *(stop for stop in stops if 0 < stop < len(features)), len(features)]
    return [features[a:b] for a, b in itertools.pairwise(edges)]


class FeatureCache:
    """Files of features under a folder, named by the hash of what they are features of.

    Written atomically, so that readers and concurrent writers never meet half a file. A file that can't be read
    or belongs to another key is ignored, and replaced by the next `put`; `notify` is told in one line.
    """

    def __init__(self, folder: str | os.PathLike | None, notify: Callable[[str], None]) -> None:
        """folder: None switches the cache off."""
        self.folder = None if folder is None else Path(folder)
        self.notify = notify

    def _path(self, key: dict[str, Any]) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / "features" / f"{digest}.pkl"

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """What was put under `key`, or None."""
        if self.folder is None or not self._path(key).is_file():
            return None
        try:
            state = checkpoint.load(self._path(key), "stats")
        except UserError as error:
            self.notify(f"Cached features are damaged and computed again: {error.message}")
            return None
        if state.get("key") != key:
            self.notify(f"Cached features in {self._path(key)} belong to something else and are computed again.")
            return None
        return state

    def put(self, key: dict[str, Any], state: dict[str, Any]) -> None:
        """Stores `state`; where that fails the run goes on without."""
        if self.folder is None:
            return
        try:
            checkpoint.save(self._path(key), "stats", {**state, "key": key})
        except UserError as error:
            self.notify(f"Features are not cached: {error.message}")


@dataclass(frozen=True)
class SetFeatures:
    """Features of an `ImageSet`: ``features [k, D]`` of images ``indices [k]`` (all, or `KEEP` of a larger set).

    Process 0 has them; with others there are none.
    """

    features: torch.Tensor
    indices: torch.Tensor
    of_all: Gaussian | None  # of the whole set, where not all features are kept

    def gaussian(self) -> Gaussian:
        """Of the whole set."""
        return self.of_all or fit_gaussian(self.features)


def set_features(
    images: ImageSet, detector: Detector, cache: FeatureCache, *, flipped: bool = False, batch_size: int = 64,
    progress: Progress = no_progress, keep: int = KEEP,
) -> SetFeatures:
    """Features of all images (or all mirror images) of a set, from the `cache` of process 0 where it has them."""
    count = images.num_images
    indices = fixed_subset(count, keep)
    key = {"version": CACHE_VERSION, "images": images.fingerprint, "count": count, "flipped": flipped, "keep":
           len(indices), "detector": detector.network, "weights": detector.weights_hash, "resize": detector.resize}
    state = cache.get(key) if rank() == 0 else None
    if state is not None and not _fits(state, count, len(indices), detector.feature_dim):
        cache.notify(f"Cached features of {images.name} are not what they say they are and are computed again.")
        state = None
    if not any_true(state is not None)[0]:
        if len(indices) < count:  # the kept ones first, then the rest
            rest = torch.ones(count, dtype=torch.bool)
            rest[indices] = False
            order = torch.cat([indices, rest.nonzero()[:, 0]]).tolist()
        else:
            order = list(range(count))
        what = f"features of {images.name}" + (", mirrored" if flipped else "")
        stream = progress(detected_in(images, order, flipped, detector, batch_size), count, what)
        found = gathered(stream, detector.feature_dim, [count], keep)
        if rank() == 0:
            state = {"features": found.features[:keep].clone()}  # a view would be saved with all of its storage
            if count > len(indices):
                whole = found.gaussian(count)
                state |= {"mean": whole.mean, "cov": whole.covariance()}
            cache.put(key, state)
    if state is None:
        return SetFeatures(torch.empty(0, detector.feature_dim), indices[:0], None)
    of_all = Gaussian(count, state["mean"], cov=state["cov"]) if count > len(indices) else None
    return SetFeatures(state["features"], indices, of_all)


def _fits(state: dict[str, Any], count: int, kept: int, dim: int) -> bool:
    """Whether a cached entry has what `set_features` puts into one: whoever shares a folder can write into it."""
    shapes = {"features": (kept, dim)} | ({"mean": (dim,), "cov": (dim, dim)} if count > kept else {})
    types = {"features": torch.float32, "mean": torch.float64, "cov": torch.float64}
    return all(isinstance(state.get(name), torch.Tensor) and state[name].dtype == types[name]
               and tuple(state[name].shape) == shape for name, shape in shapes.items())
