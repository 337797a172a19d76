"""Runs workers, restarts those that die, and counts what became of the files."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
SILENCE = 120  # seconds without a word after which a worker hangs where no signal reaches it
GOOD = ("accepted", "refused")
OUTCOMES = (*GOOD, "traceback", "hang", "memory", "crash", "executed")


@dataclass
class Report:
    """What became of the files of one kind.

    details: of those that did what none may do; messages: of those that were refused, by title; accepted: titles
    """

    counts: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    slowest: float = 0.0
    grown: int = 0  # KiB of resident memory
    before: int = 0
    reached: int = -1
    title: str = ""
    running: bool = False
    finished: bool = False

    def take(self, line: dict[str, Any]) -> None:
        """A line of a worker."""
        self.before = line.get("before", self.before)
        self.finished = self.finished or "finished" in line
        if "start" in line:
            self.reached, self.title, self.running = line["start"], line["title"], True
        if "index" in line:
            self.running = False
            self.count(line["outcome"], line["detail"])
            self.slowest = max(self.slowest, line["seconds"])
            self.grown = max(self.grown, line["memory"] - self.before)

    def count(self, outcome: str, detail: str) -> None:
        """One file more."""
        self.counts[outcome] += 1
        if outcome == "refused":
            self.messages[self.title] = detail
        elif outcome == "accepted":
            self.accepted.append(self.title)
        else:
            self.details.append(f"{self.title}: {outcome}: {detail}")

    @property
    def bad(self) -> int:
        """How many files did what none may do."""
        return sum(count for outcome, count in self.counts.items() if outcome not in GOOD)


Job = tuple[str, str, int, int]  # kind, ``mutations`` or ``attacks``, first file, and the one behind the last


def run(jobs: Sequence[Job], seed: int = 0, keep: str = "") -> Iterator[tuple[Job, Report]]:
    """Opens the files of all jobs, in one process as long as it lives; yields each when it is done.

    Of attacks there are as many as there are, whatever the job says. keep: a folder for files that do what none may do.
    """
    reports = {job: Report() for job in jobs}
    left = list(jobs)
    while left:
        worker = _Worker([(*job[:2], max(job[2], reports[job].reached + 1), job[3]) for job in left], seed, keep)
        before = sum(report.reached for report in reports.values())
        with worker:
            while left and worker.serve(reports[left[0]]):
                yield left[0], reports[left.pop(0)]
        if left and before == sum(report.reached for report in reports.values()):
            raise RuntimeError(f"the worker for {left[0][0]} could not start")


class _Worker:
    """The other process."""

    def __init__(self, jobs: Sequence[Job], seed: int, keep: str) -> None:
        places = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places, "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "fuzz.worker", json.dumps(jobs), str(seed), keep]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def _listen(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            self.lines.put(line)
        self.lines.put(b"")

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def serve(self, report: Report) -> bool:
        """Follows a job to its end; False if the process died or had to be given up."""
        while not report.finished:
            try:
                line = self.lines.get(timeout=SILENCE)
            except queue.Empty:
                line = b""
            if line.startswith(b"{"):  # everything else is what a reader prints
                report.take(json.loads(line))
            elif not line:
                code = self.process.poll()
                if report.running:
                    report.count("hang" if code is None else "crash", f"exit code {code}")
                    report.running = False
                return False
        return True
