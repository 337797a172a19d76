"""The inputs of a measurement, and the features that its metrics share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from dnnlib import UserError
from metrics import confidence, copying, ivom
from metrics.detectors import Detector
from metrics.features import (
    Collected,
    FeatureCache,
    Progress,
    SetFeatures,
    detected,
    detected_in,
    gathered,
    set_features,
)
from metrics.fid import Gaussian, fit_gaussian
from metrics.image_sets import ImageSet, fixed_subset
from metrics.names import Metric

# Number of images -> uint8 [n, 3 or 1, H, W], that many or more; as `Numbered` batches, exactly that many.
Fakes = Callable[[int], Iterable[torch.Tensor]]
VECTORS = {"kid", "fidinf", "pr", "dc", "is", "diversity", "retrieval"}  # need every generated image's features
LEAST_EXTRAPOLATED = 10


@dataclass(frozen=True)
class References:
    """What samples with instance conditions were made from: sample k from image ``index(k)`` of `images`."""

    images: ImageSet
    index: Callable[[int], int]


@dataclass
class Evaluation:
    """The inputs of one `metrics.registry.evaluate` call, and the features that its metrics share.

    fakes       generated images: a function of their number, or a finite `ImageSet`
    reals       images to compare with; its `mirror` says whether training used x-flips
    heldout     real images that never trained, for the memorisation report
    refs        for ``retrieval``
    groups      number of the condition that sample k was made with, for ``diversity``
    confidence  whether distances get an interval
    inverter    for ``ivom``
    """

    detector: Detector
    fakes: Fakes | ImageSet
    reals: ImageSet
    heldout: ImageSet | None
    refs: References | None
    groups: Callable[[int], int] | None
    cache: FeatureCache
    seed: int
    batch_size: int
    progress: Progress
    confidence: bool
    inverter: ivom.Inverter | None = None
    _sets: dict[tuple[str, bool], SetFeatures] = field(default_factory=dict)

    def features_of(self, images: ImageSet, flipped: bool = False) -> SetFeatures:
        """Of a finite set that `collect_sets` has looked at."""
        return self._sets[images.fingerprint, flipped]

    def collect_sets(self, metrics: Sequence[Metric]) -> None:
        """Features of all real images that `metrics` and the memorisation report need; all processes take part."""
        wanted = [(self.reals, False), *[(self.reals, True)] * self.reals.mirror]
        if self.heldout is not None:
            wanted.append((self.heldout, False))
        if self.refs is not None and any(metric.kind == "retrieval" for metric in metrics):
            wanted.append((self.refs.images, False))
        for images, flipped in wanted:
            key = (images.fingerprint, flipped)
            if key not in self._sets:
                self._sets[key] = set_features(images, self.detector, self.cache, flipped=flipped,
                                               batch_size=self.batch_size, progress=self.progress)

    def count(self, metric: Metric) -> int:
        """Generated images that `metric` takes."""
        if metric.kind == "retrieval":
            assert self.refs is not None
            return min(self.refs.images.num_images, copying.QUERIES)
        if metric.count is not None:
            return metric.count
        return self.fakes.num_images if isinstance(self.fakes, ImageSet) else self.reals.num_images

    def check(self, metrics: Sequence[Metric]) -> None:
        """`UserError` for what these images and this detector can't be asked."""
        for images in (self.reals, self.fakes):
            if isinstance(images, ImageSet) and images.num_images < 2:
                raise UserError(f"{images.name} holds {'one image' if images.num_images else 'no images'}; a distance "
                                "between distributions needs 2 or more.")
        for metric in metrics:
            if metric.kind == "ivom":
                ivom.check(metric.name, self.count(metric), self.inverter, self.heldout)
            if metric.kind == "retrieval" and (self.refs is None or self.refs.images.num_images < 2):
                raise UserError("--metrics retrieval asks which reference image a sample was made from; it needs a "
                                "network with instance conditions and --ref IMAGES with 2 images or more.")
            if metric.kind == "is" and self.detector.head is None:
                raise UserError(f"--metrics {metric.name}: {self.detector.name} has no classifier, and the score is of "
                                "class probabilities; use --detector efficientnet_lite2 or inception.")
            if metric.kind == "fidinf" and self.count(metric) < LEAST_EXTRAPOLATED:
                raise UserError(f"--metrics {metric.name}: a line through the distances of several counts needs "
                                f"{LEAST_EXTRAPOLATED} images or more.")
            if isinstance(self.fakes, ImageSet) and self.count(metric) > self.fakes.num_images:
                remedy = f"{metric.kind}_full or a smaller count" if metric.kind in ("fid", "fidinf", "kid") else (
                    "a smaller count")
                raise UserError(f"--metrics {metric.name}: {self.fakes.name} holds {self.fakes.num_images} images "
                                f"only; use {remedy}.")
            reals = self.reals.num_images if metric.full else self._capped(metric)
            if metric.neighbours is not None and min(reals, self.count(metric)) <= metric.neighbours:
                raise UserError(f"--metrics {metric.name}: {metric.neighbours} neighbours need more than "
                                f"{min(reals, self.count(metric))} images on both sides.")

    def _capped(self, metric: Metric) -> int:
        """Real images and flips that a metric without ``_full`` is measured against."""
        return min(self.count(metric), self.reals.num_images * (2 if self.reals.mirror else 1))

    def collect_fakes(self, metrics: Sequence[Metric]) -> Collected:
        """Features of the generated images, made once for the largest count; all processes take part."""
        counts = [self.count(metric) for metric in metrics]
        total = max(counts)
        few = min(total, confidence.FID_POOL if self.confidence else copying.QUERIES)
        keep = max([few, *(count for m, count in zip(metrics, counts, strict=True) if m.kind in VECTORS)])
        if isinstance(self.fakes, ImageSet):
            stream: Iterator[torch.Tensor] = detected_in(self.fakes, self.order(total), False, self.detector,
                                                         self.batch_size)
        else:
            stream = detected(self.fakes(total), self.detector)
        return gathered(self.progress(stream, total, "generated images"), self.detector.feature_dim, counts, keep)

    def order(self, total: int) -> list[int]:
        """Numbers of the images of a finite set that count as the first `total` generated ones."""
        assert isinstance(self.fakes, ImageSet)
        return fixed_subset(self.fakes.num_images, total).tolist()

    def real_vectors(self, metric: Metric) -> torch.Tensor:
        """``[n, D]`` reals for `metric`: all, or without ``_full`` a fixed subset of images and their flips."""
        if metric.full:
            return self.features_of(self.reals).features
        pool = self.train_bank()[0]
        wanted = self._capped(metric)
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
