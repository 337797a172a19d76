"""Opens mutated and hand-made hostile files: ``python tests/fuzz --count 10000 --kind checkpoint``.

Exit code 1 if one of them ran code, hung, took too much memory, crashed, or was answered by a traceback; or if a
hand-made one was accepted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

# Run as a folder; installed packages bring a `tests` of their own, so that this one is found through its parent.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.harness import OUTCOMES, run

KINDS = ("checkpoint", "latents", "prior", "stats", "features", "zip", "tar", "image", "labels", "archive", "run")
SHOWN = 12


@click.command(help=__doc__)
@click.option("--count", type=click.IntRange(min=1), default=10_000, show_default=True, help="Changed files of a kind")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="May be repeated  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the mutations")
@click.option("--start", type=click.IntRange(min=0), default=0, help="Number of the first file, to repeat one")
@click.option("--keep", metavar="DIR", default="", help="Existing folder for files that do what none may do")
def main(count: int, kinds: tuple[str, ...], seed: int, start: int, keep: str) -> None:
    head = "".join(f"{name:>10}" for name in OUTCOMES)
    click.echo(f"{'kind':<11}{'files':<10}{head}  slowest    memory     time")
    jobs = [(kind, mode, start if mode == "mutations" else 0, start + count)
            for kind in kinds or KINDS for mode in ("attacks", "mutations")]
    bad, began = 0, time.monotonic()
    for (kind, mode, *_), report in run(jobs, seed, keep):
        numbers = "".join(f"{report.counts[name]:>10,}" for name in OUTCOMES)
        now = time.monotonic()
        click.echo(f"{kind:<11}{mode:<10}{numbers}{report.slowest:>7.2f} s{report.grown / 1024:>6.0f} MiB"
                   f"{now - began:>7.0f} s")
        began = now
        wrong = [*report.details, *(f"{title}: it was accepted" for title in report.accepted if mode == "attacks")]
        for detail in wrong[:SHOWN]:
            click.echo(f"  {kind} {mode}, {detail}")
        bad += len(wrong)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
