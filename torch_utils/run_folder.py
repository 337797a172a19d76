"""What keeps a run directory whole: one process at a time, nothing left of killed ones, no signal inside a snapshot."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from dnnlib import UserError, atomic_write
from dnnlib.cli import signals_to
from dnnlib.util import write_error

_TICK = re.compile(rb"tick (\d+)\s")


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Holds `run_dir` for this process, and removes temporary files that killed ones have left there.

    `UserError` if another process trains in it, or it can't be written to. The lock ends with the process, however
    that ends; loader workers don't inherit it.
    """
    path = run_dir / ".lock"
    try:
        path.touch()
    except OSError as error:
        raise write_error(path, error) from error
    with open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir} is in use by another process that trains there; wait for its end, or start a "
                            "new run with --outdir.") from None
        except OSError:  # a file system without locks
            pass
        for leftover in run_dir.glob(".*.tmp"):  # of `atomic_write`
            leftover.unlink(missing_ok=True)
        yield


def forget_later(run_dir: Path, progress: dict[str, Any]) -> None:
    """Drops what was logged after the snapshot that a run goes on from: it will be done, and logged, again.

    Lines of ticks and metrics in ``log.txt``, records in ``metric-*.jsonl``. ``stats.jsonl`` is `JsonLines`'.
    progress: of the snapshot, with ``unfinished`` if its own metrics weren't saved.
    """
    log = run_dir / "log.txt"
    if log.exists():
        _rewrite(log, _kept_lines(log.read_bytes().splitlines(keepends=True), progress))
    last = progress["cur_nimg"] - bool(progress.get("unfinished"))
    for path in run_dir.glob("metric-*.jsonl"):
        _rewrite(path, [line for line in path.read_bytes().splitlines(keepends=True) if _nimg(line) <= last])


def _kept_lines(lines: list[bytes], progress: dict[str, Any]) -> list[bytes]:
    """Lines of a log without later ticks, metrics, and a tick cut short; the last one is ended."""
    kept, tick = [], 0
    for line in lines:
        if match := _TICK.match(line):
            tick = int(match[1])
        cut_short = line.startswith(b"tick") and not line.endswith(b"\n")
        known = tick < progress["cur_tick"] or (tick == progress["cur_tick"] and not progress.get("unfinished"))
        if not (cut_short or (tick > progress["cur_tick"] and match) or (line.startswith(b"metrics ") and not known)):
            kept.append(line if line.endswith(b"\n") else line + b"\n")
    return kept


def _nimg(line: bytes) -> float:
    """``cur_nimg`` of a record; infinite for a line cut short, 0 for one that has none."""
    try:
        return float(json.loads(line).get("cur_nimg", 0))
    except ValueError:
        return float("inf")


def _rewrite(path: Path, lines: list[bytes]) -> None:
    text = b"".join(lines)
    if text != path.read_bytes():
        with atomic_write(path) as file:
            file.write(text)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of the block, and then count once, however many there were."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread only
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    with signals_to(note):
        yield
    if came:
        signal.raise_signal(came[0])
