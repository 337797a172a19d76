"""What the report reads: run directories, statistics, metric records. Plain data; nothing is shown here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnlib import UserError, format_time

LARGEST = 1e100  # number that is shown; beyond it differences overflow
MAX_LEVELS = 20  # of nested containers
MAX_SIDE = 1 << 20  # pixels


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
            x = as_number(line.get("Progress/kimg", 0))
            y = as_number(value.get("mean") if isinstance(value, Mapping) else value)
            if x is not None and y is not None:
                points.append((x, y))
        return points

    def last(self, name: str) -> float | None:
        """The newest finite value of `name`, or None."""
        return next((value for _, value in reversed(self.curve(name)) if math.isfinite(value)), None)

    def logged(self, word: str) -> str | None:
        """The rest of the newest log line that begins with ``word:``."""
        found = re.findall(rf"^{re.escape(word)}:[ \t]*(.+)$", self.log, re.MULTILINE)
        return found[-1].strip() if found else None


def as_number(value: Any) -> float | None:
    """`value` as a float (NaN included) if it is a number that a report can show, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if abs(value) > LARGEST else float(value)


def _is_shallow(value: Any, levels: int = MAX_LEVELS) -> bool:
    """Whether containers are nested at most `levels` deep."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)


def _parse(text: str) -> dict[str, Any]:
    """A JSON object; ValueError for anything else."""
    try:
        record = json.loads(text)
    except RecursionError:
        record = None
    if not isinstance(record, dict) or not _is_shallow(record):
        raise ValueError("no named entries, or nested too deeply")
    return record


def read_run(path: str, flag: str) -> RunFiles:
    """Reads a run directory; `UserError` naming `flag` if it isn't one or a file of it is damaged."""
    folder = Path(path)
    try:
        options = _parse((folder / "training_options.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag} {path}: no training_options.json there; give a run directory of "
                        f"{'ldm/train.py' if flag == '--ldm' else 'train.py'}.") from error
    except ValueError as error:
        raise UserError(f"{flag} {path}: training_options.json is damaged ({error}).") from error
    if odd := _odd_options(options):
        raise UserError(f"{flag} {path}: training_options.json is damaged ({odd} has another kind of value).")
    log = folder / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return RunFiles(folder, options, read_lines(folder / "stats.jsonl"), text, _newest_state(folder))


def _odd_options(options: Mapping[str, Any]) -> str | None:
    """The first part of a run's options that the report couldn't show, or None."""
    for key in ("data", "G", "run"):
        if not isinstance(options.get(key, {}), dict):
            return key
    encoder = options.get("G", {}).get("encoder")
    if not isinstance(encoder, dict | None) or not isinstance((encoder or {}).get("latent_shape", []), list):
        return "encoder"
    return None if 0 < (as_number(options.get("data", {}).get("resolution", 64)) or 0) < MAX_SIDE else "resolution"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a ``.jsonl`` file, [] if it doesn't exist; a torn last line (a killed run) doesn't count."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for index, line in enumerate(lines):
        try:
            record = _parse(line)
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
    best, progress, versions, conditioning = (
        value if isinstance(value := state.get(key), dict) else {}
        for key in ("best", "progress", "versions", "conditioning"))
    return {"versions": {str(name): str(version) for name, version in versions.items()},
            "progress": _numbers(progress, "cur_nimg", "seconds"), "best": _numbers(best, "loss", "cur_nimg"),
            "sigma": as_number(conditioning.get("sigma")), "guess": as_number(state.get("gaussian_guess"))}


def _numbers(values: Mapping[str, Any], *keys: str) -> dict[str, float]:
    """Those of `keys` that are finite numbers."""
    found = {key: as_number(values.get(key)) for key in keys}
    return {key: value for key, value in found.items() if value is not None and math.isfinite(value)}


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
        if not records or not _is_metric(records[-1]):
            raise UserError(f"--metrics {option}: {path} is not a metric-NAME.jsonl of calc_metrics.py.")
        title = title or path.resolve().parent.name
        rows.setdefault(title, Measured(title, [])).records.append(records[-1])
    return list(rows.values())


def _is_metric(record: Mapping[str, Any]) -> bool:
    """Whether everything that the report shows of a metric's record has its kind."""
    results, notes, copying = record.get("results"), record.get("notes") or [], record.get("copying") or {}
    if not isinstance(record.get("metric"), str) or not isinstance(results, dict) or not isinstance(copying, dict):
        return False
    test = copying.get("three_sample") or {}
    if not isinstance(test, dict) or not isinstance(record.get("detector") or {}, dict):
        return False
    counts = [record[key] for key in ("num_fake", "num_real") if key in record]
    numbers = [value for value in (*results.values(), copying.get("ratio"), test.get("c_t")) if value is not None]
    return (all(as_number(number) is not None for number in numbers + counts)
            and isinstance(notes, list) and all(isinstance(note, str) for note in notes))


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
