"""What the command lines share: seed lists, numbered run folders, clean stops. Standard library only."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dnnlib.util import UserError, write_error

MAX_SEEDS = 10_000_000


def parse_seeds(text: str) -> list[int]:
    """``"0-63"`` or ``"1,5,9-12"`` as a list of integers >= 0, in the order given (ranges include both ends).

    Anything else (empty, negative, a range that runs backwards, more than `MAX_SEEDS`) is a `UserError`.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part, flags=re.ASCII)
        if match is None:
            raise UserError(f"--seeds {text!r}: {part.strip()!r} is no seed; write numbers and ranges as in 0-63 or "
                            "1,5,9-12.")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise UserError(f"--seeds {text!r}: the range {part.strip()} runs backwards; write {last}-{first}.")
        if len(seeds) + last - first + 1 > MAX_SEEDS:
            raise UserError(f"--seeds {text!r}: more than {MAX_SEEDS:,} seeds; ask for fewer.")
        seeds.extend(range(first, last + 1))
    if max(seeds) >= 1 << 63:
        raise UserError(f"--seeds {text!r}: seeds must be below 2**63.")
    return seeds


def format_seeds(seeds: Sequence[int]) -> str:
    """The shortest text that `parse_seeds` turns back into `seeds`: ``[0, 1, 2, 7]`` gives ``"0-2,7"``."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(seeds) + 1):
        if i == len(seeds) or seeds[i] != seeds[i - 1] + 1:
            parts.append(f"{seeds[start]}-{seeds[i - 1]}" if i - start > 1 else str(seeds[start]))
            start = i
    return ",".join(parts)


def next_run_dir(outdir: Path, name: str) -> Path:
    """``outdir/NNNNN-name`` with the number after the highest one there; the folder is not made."""
    taken = [0]
    if outdir.is_dir():
        taken += [int(match[1]) + 1 for child in outdir.iterdir() if (match := re.match(r"(\d{5})-", child.name))]
    return outdir / f"{max(taken):05d}-{name}"


def make_run_dir(outdir: Path, name: str) -> Path:
    """Makes and returns `next_run_dir`; two processes that start at once get two folders."""
    while True:
        path = next_run_dir(outdir, name)
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not path.is_dir() or not outdir.is_dir():
                raise UserError(f"--outdir {outdir}: not a folder; choose another path.") from None
        except NotADirectoryError:
            raise UserError(f"--outdir {outdir}: a part of this path is a file; choose another path.") from None
        except OSError as error:
            raise write_error(path, error) from error


@contextlib.contextmanager
def signals_to(handle: Callable[[int, FrameType | None], None]) -> Iterator[dict[signal.Signals, Any]]:
    """Ctrl-C and SIGTERM call `handle` within the block; in the main thread only, which alone may set handlers.

    Yields the handlers that they get after the block: those from before, unless they are changed.
    """
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_on_sigterm() -> None:
    """From now on SIGTERM ends the process as Ctrl-C does, so that temporary files are removed; exit code 143."""
    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # supervisors send it again and again
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, handle)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM has come; a second Ctrl-C interrupts at once.

    Training loops ask it between steps, so that what they then write is a state between two steps. SIGTERM may come
    again and again, as supervisors send it: it is ignored from then on, after the block too, so that a process that is
    about to end does so with its own exit code.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: bool(came)  # only the main thread may set handlers
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.append(number)

    with signals_to(handle) as after:
        try:
            yield lambda: bool(came)
        finally:
            if signal.SIGTERM in came:
                after[signal.SIGTERM] = signal.SIG_IGN
