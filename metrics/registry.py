"""Several metrics in one go over shared features, and their results with provenance."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from metrics.detectors import Detector
from metrics.evaluation import Evaluation, Fakes, References
from metrics.features import Collected, FeatureCache, Progress, no_progress
from metrics.image_sets import ImageSet, describe
from metrics.ivom import Inverter
from metrics.measures import measure
from metrics.memorisation import memorisation_report, warnings
from metrics.names import parse_metrics
from metrics.records import make_record, write_records
from torch_utils.distributed import from_first

__all__ = ["Fakes", "References", "evaluate", "write_records"]


def evaluate(
    metrics: str | Sequence[str],
    fakes: Fakes | ImageSet,
    reals: ImageSet,
    *,
    detector: Detector,
    heldout: ImageSet | None = None,
    refs: References | None = None,
    groups: Callable[[int], int] | None = None,
    inverter: Inverter | None = None,
    cache: FeatureCache | None = None,
    seed: int = 0,
    batch_size: int = 64,
    confidence: bool = True,
    progress: Progress = no_progress,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One record per metric (see `make_record`), in the order given; fakes are generated once, for the largest count.

    Every record also carries the memorisation report. `groups`: number of the condition that sample k was made with,
    for ``diversity``. `inverter`: for ``ivom``. `provenance`: entries to add to each record (checkpoint, its hash,
    where conditions come from); `notes`: sentences to add to those of the result. `cache`: None keeps nothing.
    `batch_size`: of images read from sets. `confidence`: whether distances get an interval, which takes 16 more.
    Several processes call it together: they share images and features, process 0 computes what all return.
    Raises `UserError` for unknown names and for counts that the images don't allow.
    """
    specs = parse_metrics(metrics)
    started = time.monotonic()
    run = Evaluation(detector, fakes, reals, heldout, refs, groups, cache or FeatureCache(None, lambda line: None),
                     seed, batch_size, progress, confidence, inverter)
    run.check(specs)
    made = run.collect_fakes(specs)
    run.collect_sets(specs)

    def records() -> Iterator[dict[str, Any]]:
        copies = _memorisation(run, made, max(run.count(metric) for metric in specs))
        shared = time.monotonic() - started
        for metric in specs:
            begun = time.monotonic()
            found = measure(run, metric, made)
            record = make_record(run, metric, found, copies, shared + time.monotonic() - begun)
            yield {**record, "notes": [*record["notes"], *warnings(copies), *notes], **(provenance or {})}

    return from_first(lambda: list(records()))


def _memorisation(run: Evaluation, made: Collected, total: int) -> dict[str, Any]:
    """The report; the generated images of its closest pairs by their number in a finite set where they are of one."""
    bank, numbers = run.train_bank()
    heldout = run.features_of(run.heldout).features if run.heldout else None
    report = memorisation_report(made.features, bank, numbers, heldout, run.seed)
    if isinstance(run.fakes, ImageSet):
        order = run.order(total)
        report["closest"] = [{**pair, "generated": order[pair["generated"]]} for pair in report["closest"]]
    return {**report, "heldout": describe(run.heldout) if run.heldout else None}
