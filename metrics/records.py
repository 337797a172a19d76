"""Results with everything that is needed to judge and repeat them, as lines of JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dnnlib import format_time
from dnnlib.util import write_error
from metrics.evaluation import Evaluation
from metrics.image_sets import describe
from metrics.measures import Measured
from metrics.names import Metric
from torch_utils.device import device_description
from torch_utils.distributed import world


def make_record(run: Evaluation, metric: Metric, found: Measured, copies: dict[str, Any],
                seconds: float) -> dict[str, Any]:
    """A JSON-ready result: values, what they were measured with and on, and how long that took.

    ``total_time`` counts what metrics of one call share (sampling, features) in each of them. ``intervals``: by the
    name of the value that they belong to.
    """
    detector = run.detector
    return {
        "results": found.values,
        "intervals": {name: interval.to_json() for name, interval in found.intervals.items()},
        "metric": metric.name,
        "detector": {"name": detector.name, "network": detector.network, "weights_hash": detector.weights_hash,
                     "feature_dim": detector.feature_dim},
        "resize": detector.resize,
        "num_fake": run.count(metric),
        "num_real": found.num_real,
        "xflip": run.reals.mirror and not metric.full,
        "seed": run.seed,
        "dataset": describe(run.reals),
        "copying": copies,
        "notes": [detector.comparability, *found.notes],
        "device": device_description(detector.device),
        "versions": _versions(),
        "num_gpus": world(),
        "total_time": seconds,
        "total_time_str": format_time(seconds),
        "timestamp": time.time(),
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _drop_half_record(file: IO[bytes]) -> None:
    """Cuts off what follows the last newline: a command that was killed may have left half a line."""
    file.seek(0)
    content = file.read()
    if not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)


def write_records(records: Sequence[Mapping[str, Any]], folder: str | os.PathLike) -> list[Path]:
    """Appends each record as one line to ``metric-NAME.jsonl`` in `folder`; `UserError` if that can't be written."""
    paths = []
    for record in records:
        path = Path(folder) / f"metric-{record['metric']}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a+b") as file:
                _drop_half_record(file)
                file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise write_error(path, error) from error
        paths.append(path)
    return paths
