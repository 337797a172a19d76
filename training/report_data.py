"""What the report reads: run directories, statistics, metric records. Plain data; nothing is shown here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnlib import UserError, format_time


@dataclass(frozen=True)
class RunFiles:
    """A run directory of train.py or ldm/train.py.

    options: ``training_options.json``. stats: lines of ``stats.jsonl``. log: text of ``log.txt``.
    state: of the newest snapshot, empty if there is none: ``versions``, ``progress``, ``sigma``; of latent diffusion
           also its ``best`` held-out loss and the Gaussian ``guess``.
    """

    path: Path
    options: dict[str, Any]
    stats: list[dict[str, Any]]
    log: str
    state: dict[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(kimg, value) of every tick that has `name`; means of collected values."""
        points = []
        for line in self.stats:
            value = line.get(name)
            value = value.get("mean") if isinstance(value, Mapping) else value
            if isinstance(value, int | float):
                points.append((float(line.get("Progress/kimg", 0)), float(value)))
        return points

    def last(self, name: str) -> float | None:
        """The newest value of `name`, or None."""
        points = self.curve(name)
        return points[-1][1] if points else None

    def logged(self, word: str) -> str | None:
        """The rest of the newest log line that begins with ``word:``."""
        found = re.findall(rf"^{re.escape(word)}:[ \t]*(.+)$", self.log, re.MULTILINE)
        return found[-1].strip() if found else None


def read_run(path: str, flag: str) -> RunFiles:
    """Reads a run directory; `UserError` naming `flag` if it isn't one or a file of it is damaged."""
    folder = Path(path)
    try:
        options = json.loads((folder / "training_options.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag} {path}: no training_options.json there; give a run directory of "
                        f"{'ldm/train.py' if flag == '--ldm' else 'train.py'}.") from error
    except ValueError as error:
        raise UserError(f"{flag} {path}: training_options.json is damaged ({error}).") from error
    if not isinstance(options, dict):
        raise UserError(f"{flag} {path}: training_options.json is damaged (no named entries).")
    log = folder / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return RunFiles(folder, options, read_lines(folder / "stats.jsonl"), text, _newest_state(folder))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a ``.jsonl`` file, [] if it doesn't exist; a torn last line (a killed run) doesn't count."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for index, line in enumerate(lines):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no named entries")
        except ValueError as error:
            if index == len(lines) - 1:
                break
            raise UserError(f"{path}: line {index + 1} is damaged ({error}); remove it.") from error
        records.append(record)
    return records


def _newest_state(folder: Path) -> dict[str, Any]:
    snapshots = sorted(folder.glob("network-snapshot-??????.pkl"))
    if not snapshots:
        return {}
    from torch_utils import checkpoint

    state = checkpoint.load(snapshots[-1], ("gan", "ldm"))
    best = state.get("best") or {}
    return {"versions": state.get("versions") or {}, "progress": state.get("progress") or {},
            "sigma": (state.get("conditioning") or {}).get("sigma"), "guess": state.get("gaussian_guess"),
            "best": {key: best[key] for key in ("loss", "cur_nimg") if key in best}}


def images_seen(run: RunFiles) -> float | None:
    """Images of the newest snapshot, or of the newest tick."""
    kimg = run.last("Progress/kimg")
    return run.state.get("progress", {}).get("cur_nimg", None if kimg is None else kimg * 1000)


def training_time(run: RunFiles) -> str | None:
    """Time in training, over all sessions."""
    seconds = run.state.get("progress", {}).get("seconds", run.last("Timing/total_sec"))
    return None if seconds is None else format_time(seconds)


@dataclass
class Measured:
    """All metric records of one kind of images, newest of each metric."""

    title: str
    records: list[dict[str, Any]]

    def value(self, key: str) -> float | None:
        """A result by its full name, such as ``kid2k_full_std``."""
        for record in self.records:
            if key in record["results"]:
                return record["results"][key]
        return None

    def first(self, key: str) -> Any:
        """Provenance that the records share."""
        return next((record[key] for record in self.records if record.get(key) is not None), None)

    def names(self, kind: str) -> list[str]:
        """Metric names that begin with `kind`."""
        return [record["metric"] for record in self.records if str(record["metric"]).startswith(kind)]


def read_metrics(options: Sequence[str]) -> list[Measured]:
    """Rows from ``[TITLE=]FILE.jsonl`` options: equal titles make one row, the newest line of a file counts.

    Without a title, the name of the file's folder stands in. `UserError` for a file that isn't a metric's.
    """
    rows: dict[str, Measured] = {}
    for option in options:
        title, path = split_title(option)
        if not path.is_file():
            raise UserError(f"--metrics {option}: {path} does not exist; give a metric-NAME.jsonl of calc_metrics.py.")
        records = read_lines(path)
        if not records or not isinstance(records[-1].get("results"), dict) or "metric" not in records[-1]:
            raise UserError(f"--metrics {option}: {path} is not a metric-NAME.jsonl of calc_metrics.py.")
        title = title or path.resolve().parent.name
        rows.setdefault(title, Measured(title, [])).records.append(records[-1])
    return list(rows.values())


def split_title(option: str) -> tuple[str, Path]:
    """``TITLE=PATH`` → (title, path); a path alone has the title ``""``."""
    title, equals, path = option.partition("=")
    return (title, Path(path)) if equals and path and not Path(option).exists() else ("", Path(option))


def flatten(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += flatten(value, name + ".")
        elif isinstance(value, list | tuple):
            pairs.append((name, "; ".join(map(str, value))))
        else:
            pairs.append((name, "–" if value is None else str(value)))
    return pairs
