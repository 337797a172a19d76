"""Several metrics in one go over shared features, and their results with provenance."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dnnlib import UserError, format_time
from dnnlib.util import write_error
from metrics import copying
from metrics.detectors import Detector
from metrics.features import Collected, FeatureCache, Progress, SetFeatures, collect, no_progress, set_features
from metrics.fid import Gaussian, fit_gaussian, frechet_distance
from metrics.image_sets import ImageSet, describe, fixed_subset
from metrics.kid import kernel_distance
from metrics.names import Metric, parse_metrics
from metrics.retrieval import retrieval_rank, retrieval_similarity
from torch_utils.device import device_description

Fakes = Callable[[int], Iterable[torch.Tensor]]  # number of images -> uint8 [n, 3 or 1, H, W], that many or more


@dataclass(frozen=True)
class References:
    """What samples with instance conditions were made from: sample k from image ``index(k)`` of `images`."""

    images: ImageSet
    index: Callable[[int], int]


@dataclass
class Evaluation:
    """The inputs of one `evaluate` call, and the features that its metrics share.

    fakes     generated images: a function of their number, or a finite `ImageSet`
    reals     images to compare with; its `mirror` says whether training used x-flips
    heldout   real images that never trained, as the bar for the memorisation report
    refs      for ``retrieval``
    """

    detector: Detector
    fakes: Fakes | ImageSet
    reals: ImageSet
    heldout: ImageSet | None
    refs: References | None
    cache: FeatureCache
    seed: int
    batch_size: int
    progress: Progress
    _sets: dict[tuple[str, bool], SetFeatures] = field(default_factory=dict)

    def features_of(self, images: ImageSet, flipped: bool = False) -> SetFeatures:
        """Of a finite set, computed once."""
        key = (images.fingerprint, flipped)
        if key not in self._sets:
            self._sets[key] = set_features(images, self.detector, self.cache, flipped=flipped,
                                           batch_size=self.batch_size, progress=self.progress)
        return self._sets[key]

    def count(self, metric: Metric) -> int:
        """Generated images that `metric` takes."""
        if metric.kind == "retrieval":
            assert self.refs is not None
            return min(self.refs.images.num_images, copying.QUERIES)
        if metric.count is not None:
            return metric.count
        return self.fakes.num_images if isinstance(self.fakes, ImageSet) else self.reals.num_images

    def check(self, metrics: Sequence[Metric]) -> None:
        """`UserError` for what these images can't be asked."""
        for images in (self.reals, self.fakes):
            if isinstance(images, ImageSet) and images.num_images < 2:
                raise UserError(f"{images.name} holds one image; a distance between distributions needs 2 or more.")
        for metric in metrics:
            if metric.kind == "retrieval" and (self.refs is None or self.refs.images.num_images < 2):
                raise UserError("--metrics retrieval asks which reference image a sample was made from; it needs a "
                                "network with instance conditions and --ref IMAGES with 2 images or more.")
            if isinstance(self.fakes, ImageSet) and self.count(metric) > self.fakes.num_images:
                raise UserError(f"--metrics {metric.name}: {self.fakes.name} holds {self.fakes.num_images} images "
                                f"only; use {metric.kind}_full or a smaller count.")

    def collect_fakes(self, metrics: Sequence[Metric]) -> Collected:
        """Features of the generated images, made once for the largest count."""
        counts = [self.count(metric) for metric in metrics]
        total = max(counts)
        keep = max(min(self.count(m), total) if m.kind != "fid" else min(total, copying.QUERIES) for m in metrics)
        if isinstance(self.fakes, ImageSet):
            order = fixed_subset(self.fakes.num_images, total).tolist()
            batches: Iterable[torch.Tensor] = self.fakes.batches(order, batch_size=self.batch_size)
        else:
            batches = self.fakes(total)
        return collect(self.progress(batches, total, "generated images"), self.detector, counts, keep)

    def real_vectors(self, metric: Metric) -> torch.Tensor:
        """``[n, D]`` reals for `metric`: all, or without ``_full`` a fixed subset of images and their flips."""
        if metric.full:
            return self.features_of(self.reals).features
        pool = self.train_bank()[0]
        items = self.reals.num_images * (2 if self.reals.mirror else 1)
        wanted = min(self.count(metric), items)
        if wanted > len(pool):
            raise UserError(f"--metrics {metric.name}: {self.reals.name} is too large for {wanted} capped reals; "
                            f"use {metric.name}_full.")
        return pool[fixed_subset(len(pool), wanted)]

    def real_gaussian(self, metric: Metric) -> Gaussian:
        """The same as a Gaussian; all reals count with ``_full``, also those whose vectors aren't kept."""
        return self.features_of(self.reals).gaussian() if metric.full else fit_gaussian(self.real_vectors(metric))

    def train_bank(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the reals, followed by those of their flips if training used them, and image numbers."""
        parts = [self.features_of(self.reals)]
        if self.reals.mirror:
            parts.append(self.features_of(self.reals, flipped=True))
        return torch.cat([part.features for part in parts]), torch.cat([part.indices for part in parts])


def _measure(run: Evaluation, metric: Metric, fakes: Collected) -> tuple[dict[str, float], int]:
    """Values by name, and the number of reals behind them."""
    count = run.count(metric)
    if metric.kind == "fid":
        real = run.real_gaussian(metric)
        return {metric.name: frechet_distance(fakes.gaussian(count), real)}, real.count
    if metric.kind == "kid":
        vectors = run.real_vectors(metric)
        mean, std = kernel_distance(fakes.features[:count], vectors, seed=run.seed)
        return {metric.name: mean, f"{metric.name}_std": std}, len(vectors)
    assert run.refs is not None
    found = run.features_of(run.refs.images)
    position = {int(i): k for k, i in enumerate(found.indices)}
    # References beyond the kept ones can't be looked up; that takes more than 100,000 of them.
    known = [k for k in range(count) if run.refs.index(k) in position]
    asked = (fakes.features[known], found.features, [position[run.refs.index(k)] for k in known])
    values = {**retrieval_rank(*asked), **retrieval_similarity(*asked)}
    return {f"{metric.name}_{key}": value for key, value in values.items()}, len(found.features)


def evaluate(
    metrics: str | Sequence[str],
    fakes: Fakes | ImageSet,
    reals: ImageSet,
    *,
    detector: Detector,
    heldout: ImageSet | None = None,
    refs: References | None = None,
    cache: FeatureCache | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = no_progress,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One record per metric (see `_record`), in the order given; fakes are generated once, for the largest count.

    Every record also carries the memorisation report. `provenance`: entries to add to each record (checkpoint,
    its hash, where conditions come from); `notes`: sentences to add to those of the result. `cache`: None keeps
    nothing. `batch_size`: of images read from sets.
    Raises `UserError` for unknown names and for counts that the images don't allow.
    """
    specs = parse_metrics(metrics)
    started = time.monotonic()
    run = Evaluation(detector, fakes, reals, heldout, refs, cache or FeatureCache(None, lambda line: None), seed,
                     batch_size, progress)
    run.check(specs)
    made = run.collect_fakes(specs)
    copies = _copying(run, made)
    shared = time.monotonic() - started
    records = []
    for metric in specs:
        begun = time.monotonic()
        results, num_real = _measure(run, metric, made)
        seconds = shared + time.monotonic() - begun
        record = _record(run, metric, results, num_real, copies, seconds)
        records.append({**record, "notes": [*record["notes"], *notes], **(provenance or {})})
    return records


def _copying(run: Evaluation, made: Collected) -> dict[str, Any]:
    bank, groups = run.train_bank()
    heldout = run.features_of(run.heldout) if run.heldout else None
    report = copying.copying_report(made.features, bank, groups, heldout.features if heldout else None)
    return {**report, "heldout": describe(run.heldout) if run.heldout else None}


def _record(run: Evaluation, metric: Metric, results: dict[str, float], num_real: int, copies: dict[str, Any],
            seconds: float) -> dict[str, Any]:
    """A JSON-ready result: values, what they were measured with and on, and how long that took.

    ``total_time`` counts what metrics of one call share (sampling, features) in each of them.
    """
    detector, count = run.detector, run.count(metric)
    notes = [detector.comparability]
    if metric.kind == "fid" and min(count, num_real) <= detector.feature_dim:
        notes.append(f"{min(count, num_real)} images for {detector.feature_dim} feature dimensions: biased upwards, "
                     "comparable only at equal counts")
    return {
        "results": results,
        "metric": metric.name,
        "detector": {"name": detector.name, "network": detector.network, "weights_hash": detector.weights_hash,
                     "feature_dim": detector.feature_dim},
        "resize": detector.resize,
        "num_fake": count,
        "num_real": num_real,
        "xflip": run.reals.mirror and not metric.full,
        "seed": run.seed,
        "dataset": describe(run.reals),
        "copying": copies,
        "notes": notes,
        "device": device_description(detector.device),
        "versions": _versions(),
        "num_gpus": 1,
        "total_time": seconds,
        "total_time_str": format_time(seconds),
        "timestamp": time.time(),
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def write_records(records: Sequence[Mapping[str, Any]], folder: str | os.PathLike) -> list[Path]:
    """Appends each record as one line to ``metric-NAME.jsonl`` in `folder`; `UserError` if that can't be written."""
    paths = []
    for record in records:
        path = Path(folder) / f"metric-{record['metric']}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise write_error(path, error) from error
        paths.append(path)
    return paths
