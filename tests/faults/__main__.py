"""Kills commands at random moments: ``python tests/faults --kills 1000``. Exit code 1 if one of them lost something."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import click

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Run as a folder; installed packages bring a `tests` of their own, so that this one is found through its parent.
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from conftest import make_pictures, run_script  # noqa: E402 found through the lines above

SHARES = {"train": 3, "ldm_train": 3, "dataset_tool": 1, "calc_metrics": 1}  # rounds of a command per turn


@click.command(help=__doc__)
@click.option("--kills", type=click.IntRange(min=1), default=1000, show_default=True, help="Processes to kill")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all moments")
@click.option("--minutes", type=float, help="Ends after so long in any case")
def main(kills: int, seed: int, minutes: float | None) -> None:
    from faults.harness import Tally
    from faults.jobs import make_jobs, one_thread

    with tempfile.TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        pictures, data = make_pictures(folder / "raw", 40, 32), folder / "tiny.zip"
        made = run_script("dataset_tool.py", "--source", pictures, "--dest", data, "--resolution", "32")
        assert made.returncode == 0, made.stderr
        jobs, began, turn = make_jobs(folder, pictures, data), time.monotonic(), 0
        tallies = {job.name: Tally() for job in jobs}

        def total() -> int:
            return sum(tally.kills for tally in tallies.values())

        while total() < kills and (minutes is None or time.monotonic() - began < minutes * 60):
            for job in jobs:
                for part in range(SHARES[job.name]):
                    try:
                        job.check(seed * 100_000 + turn * 10 + part, kills=3, tally=tallies[job.name])
                    except AssertionError as error:
                        raise click.ClickException(f"{job.name}, turn {turn}, part {part}: {error}") from error
            turn += 1
        for job in jobs:
            click.echo(f"{job.name:<14}{tallies[job.name].kills:>6} kills  {tallies[job.name].counts}")
        click.echo(f"{total()} kills in {time.monotonic() - began:.0f} s, nothing lost")


if __name__ == "__main__":
    main()
