"""Runs a command in a forked process, kills it at a random moment, and starts it again until it has ended by itself.

Forks spare the start of PyTorch, which takes longer than a tiny run. Every moment follows from a seed: the n-th time
that the command opens, renames or removes a file of its output, or a share of the time that it takes undisturbed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")
KILLED = -signal.SIGKILL


@dataclass
class Undisturbed:
    """What a command does when nothing happens to it."""

    seconds: float
    events: int


@dataclass
class Tally:
    """How often processes were killed, by the kind of moment; ones that ended before it don't count."""

    counts: dict[str, int] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        return sum(self.counts.values())


def _child(main: Callable[[Sequence[str]], object], args: Sequence[str], output: Path, watched: Path, last: int,
           counter: Path | None) -> None:
    """The forked process: `main(args)`, killed before file event number `last` under `watched`."""
    seen, code = 0, 1
    prefix, own = str(watched), os.getpid()

    def hook(event: str, details: tuple) -> None:
        nonlocal seen
        if event in EVENTS and os.getpid() == own and str(details[0]).startswith(prefix):
            seen += 1
            if seen == last:
                os.kill(own, signal.SIGKILL)

    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        sys.addaudithook(hook)
        main(args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        if counter is not None:
            counter.write_text(str(seen))
        os._exit(code)


def start(main: Callable[[Sequence[str]], object], args: Sequence[str | Path], output: Path,
          watched: Path = Path("/"), last: int = 0, counter: Path | None = None) -> int:
    """Begins what `run` does; the number of the process."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _child(main, [str(arg) for arg in args], output, watched, last, counter)
    return child


def run(main: Callable[[Sequence[str]], object], args: Sequence[str | Path], output: Path, watched: Path, *,
        last: int = 0, seconds: float | None = None, counter: Path | None = None) -> int:
    """Exit code of `main(args)` in a process of its own, `KILLED` if it was killed.

    watched: folder whose file events count; `last` is the number of the fatal one, 0 = none. seconds: time after which
    it is killed. counter: file for the number of events. What it prints is appended to `output`.
    """
    child = start(main, args, output, watched, last, counter)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def storm(main: Callable[[Sequence[str]], object], args: Sequence[str | Path], output: Path, begun: Callable[[], bool],
          numbers: Sequence[int], rng: random.Random) -> tuple[int, float]:
    """Exit code of `main(args)` in a process of its own that gets one of the signals `numbers` every few milliseconds.

    begun: whether the first may come. Also returns how many seconds after that it ended.
    """
    child = start(main, args, output)
    while not begun():
        time.sleep(0.01)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), output.read_text()
    began = time.monotonic()
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        os.kill(child, rng.choice(numbers))
        time.sleep(rng.random() * 0.05)
    return os.waitstatus_to_exitcode(ended[1]), time.monotonic() - began


def measure(main: Callable[[Sequence[str]], object], args: Sequence[str | Path], output: Path,
            watched: Path) -> Undisturbed:
    """Runs a command to its end; AssertionError if it fails."""
    began, counter = time.monotonic(), output.with_suffix(".count")
    code = run(main, args, output, watched, counter=counter)
    assert code == 0, output.read_text()
    return Undisturbed(time.monotonic() - began, int(counter.read_text()))


def until_done(main: Callable[[Sequence[str]], object], next_args: Callable[[], Sequence[str | Path]], output: Path,
               watched: Path, usual: Undisturbed, rng: random.Random, kills: int, tally: Tally) -> int:
    """Starts the command at most `kills` times with a random end, then once without; returns the last exit code.

    next_args: the arguments for the next start, after a look at what the former ones have left.
    """
    for _ in range(kills):
        kind = rng.choice(("event", "event", "time"))
        last = rng.randint(1, usual.events) if kind == "event" else 0
        seconds = rng.random() * usual.seconds if kind == "time" else None
        code = run(main, next_args(), output, watched, last=last, seconds=seconds)
        if code != KILLED:
            return code
        tally.counts[kind] = tally.counts.get(kind, 0) + 1
    return run(main, next_args(), output, watched)
