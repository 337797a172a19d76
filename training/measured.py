"""What the loop is told of a snapshot by its metrics, and when they show a collapse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.dataset import ImageDataset
from training.sampling import Gan, training_sampler


@dataclass(frozen=True)
class Measured:
    """Metrics of a snapshot: values by name, the first one so that lower is better, and what has to be said."""

    values: dict[str, float]
    loss: float
    warnings: list[str]


# Number of images to batches of them, and their provenance, to the fields of `Measured`.
Measure = Callable[[Callable[[int], Iterable[torch.Tensor]], dict[str, Any]], tuple[dict[str, float], float, list[str]]]


def of_snapshots(measure: Measure, dataset: ImageDataset) -> Callable[[Gan, Path], Measured]:
    """`measure` of samples that have the conditions of the training images `dataset`."""
    def measured(gan: Gan, snapshot: Path) -> Measured:
        sampler = training_sampler(gan, dataset)
        provenance = {"snapshot_pkl": snapshot.name, "network_hash": gan.hash, "cur_nimg": gan.progress["cur_nimg"],
                      "conditions": sampler.provenance}
        return Measured(*measure(lambda count: sampler.images(range(count)), provenance))

    return measured


def is_due(progress: dict[str, Any], budget: float | None) -> bool:
    """Whether this state hasn't been measured yet, and metrics have taken no more than their share of the time."""
    if progress["measured_nimg"] == progress["cur_nimg"]:
        return False
    return budget is None or progress["metric_seconds"] <= budget * progress["seconds"]


FALLING = ("recall", "coverage", "diversity")  # metrics that fall when a generator collapses


def collapses(values: dict[str, float], progress: dict[str, Any]) -> list[str]:
    """A line for every metric that has fallen to less than half of what it was at its best, ``progress["peaks"]``."""
    peaks, lines = progress["peaks"], []
    for name, value in values.items():
        if not any(word in name for word in FALLING) or name.endswith("_real"):
            continue
        peaks[name] = max(value, peaks.get(name, value))
        if value < peaks[name] / 2:
            lines.append(f"{name} has fallen from {peaks[name]:.3g} to {value:.3g}: the generator loses variety. "
                         f"The best snapshot so far is that of {progress['best_nimg']} images.")
    return lines
