"""Metrics of the snapshots of a training run: which can be asked for, and what its loop needs to know of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib import UserError, cache_folder
from metrics import detectors, registry
from metrics.detectors import DEFAULT
from metrics.evaluation import Fakes
from metrics.features import FeatureCache
from metrics.image_sets import ImageSet
from metrics.names import HIGHER_IS_BETTER, parse_metrics
from torch_utils.distributed import rank

COPYING = 0.5  # ratio of distances below which a run is warned
REFUSED = {
    "retrieval": "train.py logs retrieval at every tick already; leave it out here.",
    "ivom": "inversion takes hundreds of steps per image; measure it with calc_metrics.py --heldout, and leave it out "
            "here.",
}


def check_metrics(names: str, networks: Collection[str]) -> None:
    """`UserError` for unknown metrics, for what isn't measured in training, and for a detector that a run, which
    trains on the frozen `networks`, would be flattered by."""
    if f"tf_{DEFAULT}" in networks:
        raise UserError(f"--metrics: they look at images through {DEFAULT}, which this run would train on itself; "
                        "use --metrics none, and calc_metrics.py with another --detector.")
    for metric in parse_metrics(names):
        if metric.kind in REFUSED:
            raise UserError(f"--metrics {metric.kind}: {REFUSED[metric.kind]}")


class SnapshotMetrics:
    """Measures samples of a run against its data; records go to ``metric-*.jsonl`` in its folder."""

    def __init__(self, names: str, reals: ImageSet, heldout: ImageSet | None, run_dir: Path,
                 device: torch.device) -> None:
        self.names, self.reals, self.heldout, self.run_dir = names, reals, heldout, run_dir
        self.detector = detectors.load_detector(DEFAULT, None, device)
        self.cache = FeatureCache(cache_folder(), click.echo)

    def measure(self, fakes: Fakes, provenance: Mapping[str, Any]) -> tuple[dict[str, float], float, list[str]]:
        """Values by name, the first one so that lower is better, and warnings: the same on all processes, which
        measure together."""
        records = registry.evaluate(self.names, fakes, self.reals, detector=self.detector, cache=self.cache,
                                    heldout=self.heldout, confidence=False, provenance=provenance)
        if rank() == 0:
            registry.write_records(records, self.run_dir)
        values = {name: value for record in records for name, value in record["results"].items()}
        first = next(iter(values.values()))
        higher = parse_metrics(self.names)[0].kind in HIGHER_IS_BETTER
        return values, -first if higher else first, copying_warnings(records[0]["copying"])


def copying_warnings(report: Mapping[str, Any]) -> list[str]:
    """One line if samples lie much nearer to training images than other real images do."""
    if report["ratio"] is None or report["ratio"] >= COPYING:
        return []
    return [f"samples are {report['ratio']:.2f} times as far from their nearest training image as {report['bar']} are: "
            "the generator is copying. Use more images, or an earlier snapshot."]
