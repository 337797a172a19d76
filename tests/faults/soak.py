"""Trains for half an hour and watches the process: ``python tests/faults/soak.py``. Exit code 1 if something grows.

Metrics, snapshots by ticks and by the clock; every few minutes the run is ended by SIGTERM and resumed, with loader
workers and without in turn. Memory, open files and threads are read every few seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import psutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from conftest import make_pictures, run_script  # noqa: E402 found through the line above

FLAGS = ["--cfg", "dicgan_demo", "--latent", "4", "--ngf", "2", "--amp", "off", "--batch", "4", "--tick", "0.016",
         "--snap", "8", "--snap-minutes", "0.4", "--keep", "3", "--kimg", "100000",
         "--metrics", "fid16_full,kid16_full,pr16n3_full", "--device", "cpu"]
MIB = 1 << 20
WARM_UP = 0.3  # share of a session that comes before steady work: imports, the first ticks and metrics
MEMORY = ("resident", "anonymous", "of workers")
COUNTS = ("files", "threads")
# The allocator keeps what it once had, so that memory goes up in rare steps; a leak would go on in every session.
STEP, LEAK, BETWEEN = 0.1, 0.01, 0.2  # most of memory, as a share: in any session, in the median one, from the first on


@dataclass(frozen=True)
class Sample:
    """What a process used at one time, `seconds` after its start: bytes, and numbers of files and threads."""

    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class Session:
    """One process of train.py, from its start to SIGTERM, after its warm-up. workers: of the loader."""

    workers: int
    samples: list[Sample]

    def series(self, name: str) -> np.ndarray:
        """Times in seconds and values, ``[2, n]``."""
        return np.array([(sample.seconds, sample.values[name]) for sample in self.samples]).T

    def median(self, name: str) -> float:
        """Of all values."""
        return float(np.median(self.series(name)[1]))

    def growth(self, name: str) -> float:
        """Median of the last third of the values minus that of the first third."""
        parts = np.array_split(self.series(name)[1], 3)
        return float(np.median(parts[2]) - np.median(parts[0]))

    def slope(self, name: str) -> float:
        """Least-squares line through the values, per hour."""
        seconds, values = self.series(name)
        return float(np.polyfit(seconds, values, 1)[0] * 3600)


def look(process: psutil.Process) -> dict[str, float]:
    """What a process uses now. Anonymous memory is what isn't a file's, which the system may drop and read again;
    children are its loader workers, which share most of theirs with it."""
    children = process.children(recursive=True)
    with process.oneshot():
        memory = process.memory_info()
        return {"resident": memory.rss, "anonymous": memory.rss - memory.shared,
                "of workers": sum(child.memory_info().rss for child in children),
                "files": process.num_fds(), "threads": process.num_threads()}


def watch(command: list[str], workers: int, seconds: float, every: float, log: Path) -> Session:
    """Runs train.py for `seconds`, then asks it to end; AssertionError if it ends otherwise."""
    began, samples = time.monotonic(), []
    with open(log, "a") as output:
        child = subprocess.Popen([sys.executable, ROOT / "train.py", *command, "--workers", str(workers)],
                                 stdout=output, stderr=subprocess.STDOUT)
    process = psutil.Process(child.pid)
    while time.monotonic() - began < seconds and child.poll() is None:
        time.sleep(every)
        if time.monotonic() - began > WARM_UP * seconds:
            try:
                samples.append(Sample(time.monotonic() - began, look(process)))
            except psutil.NoSuchProcess:  # a worker that has just ended, or the process itself
                continue
    child.send_signal(signal.SIGTERM)
    code = child.wait(timeout=180)
    assert code == 3, f"exit code {code}\n" + log.read_text()[-2000:]
    return Session(workers, samples)


def table(sessions: list[Session]) -> str:
    """Minimum, median and maximum of every session, its growth and slope, as a table in Markdown."""
    heads = ["session", "workers", "looks", *(f"{name}, MiB" for name in MEMORY), "growth", "per hour", *COUNTS]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for number, session in enumerate(sessions, 1):
        cells = [str(number), str(session.workers), str(len(session.samples))]
        ranges = []
        for name in (*MEMORY, *COUNTS):
            values = session.series(name)[1] / (MIB if name in MEMORY else 1)
            ranges.append(f"{values.min():.0f} / {np.median(values):.0f} / {values.max():.0f}")
        change = [f"{session.growth('anonymous') / MIB:+.1f}", f"{session.slope('anonymous') / MIB:+.0f}"]
        lines.append(f"| {' | '.join([*cells, *ranges[:len(MEMORY)], *change, *ranges[len(MEMORY):]])} |")
    return "\n".join(lines)


def grown(sessions: list[Session]) -> list[str]:
    """What is not flat: within a session, or from the first one with as many workers to a later one."""
    found = []
    for name in MEMORY:
        shares = [session.growth(name) / max(session.median(name), 1) for session in sessions]
        if max(shares) > STEP or float(np.median(shares)) > LEAK:
            found.append(f"memory ({name}) grew by {max(shares):.1%} in one session, {np.median(shares):.1%} in the "
                         "median one")
    for number, session in enumerate(sessions, 1):
        first = next(other for other in sessions if other.workers == session.workers)
        found += [f"session {number}: memory ({name}) is {session.median(name) / first.median(name):.2f} times that of "
                  "the first of its kind"
                  for name in MEMORY if session.median(name) > (1 + BETWEEN) * first.median(name)]
        found += [f"session {number}: more {name} than at first" for name in COUNTS
                  if session.growth(name) > 0 or session.median(name) > first.median(name)]
    return found


def check_run(run_dir: Path) -> str:
    """What the run has done; AssertionError if a tick is missing or doubled."""
    stats = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert [line["Progress/tick"] for line in stats] == list(range(1, len(stats) + 1)), "ticks are missing or doubled"
    measured = (run_dir / "metric-fid16_full.jsonl").read_text().splitlines()
    return (f"{len(stats)} ticks, {stats[-1]['Progress/kimg']:.1f} thousand images, {len(measured)} snapshots with "
            f"metrics")


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(min=1), default=30, show_default=True, help="In all")
@click.option("--session", type=click.FloatRange(min=0.5), default=5, show_default=True, help="Minutes until a resume")
@click.option("--every", type=click.FloatRange(min=0.1), default=2, show_default=True, help="Seconds between two looks")
def main(minutes: float, session: float, every: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.monotonic()
        os.environ["DICGAN_CACHE"] = str(folder / "cache")
        made = run_script("dataset_tool.py", "--source", make_pictures(folder / "raw", 80, 32), "--dest",
                          folder / "tiny.zip", "--resolution", "32")
        assert made.returncode == 0, made.stderr
        command = ["--outdir", str(folder / "runs"), "--data", str(folder / "tiny.zip"), *FLAGS]
        sessions: list[Session] = []
        while time.monotonic() - began < minutes * 60 - 5:
            left = minutes * 60 - (time.monotonic() - began)
            seconds = left if left < session * 90 else session * 60  # no short one at the end
            sessions.append(watch(command, 2 * (len(sessions) % 2), seconds, every, folder / "log"))
            (run_dir,) = (folder / "runs").iterdir()
            command = ["--resume", str(run_dir)]
            click.echo(f"{(time.monotonic() - began) / 60:.1f} min: {check_run(run_dir)}", err=True)
        click.echo(f"{table(sessions)}\n\n{check_run(run_dir)}, {len(sessions) - 1} resumes")
    if found := grown(sessions):
        raise click.ClickException("; ".join(found))
    click.echo(f"Flat: files and threads as at first; memory grew by at most {STEP:.0%} in a session and {LEAK:.0%} in "
               f"the median one, and no session is above the first of its kind by {BETWEEN:.0%}")


if __name__ == "__main__":
    main()
