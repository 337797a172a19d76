"""From a set of satellite pictures to a trained DIC-GAN, samples, metrics and a report, with the project's own scripts.

Prints every command before it runs it. Run again, it continues where it stopped; with more --minutes it trains on.
Exit codes: 0 finished, 2 bad input, 3 interrupted; otherwise that of the command that failed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the project is found from its root, and this folder shadows nothing
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(p for p in sys.path if Path(p).resolve() != _HERE)]

import click

from demo.plan import Command, Step, announce, decide
from demo.steps import ROOT, Demo
from dnnlib import UserError, atomic_write, format_bytes, format_time


def shown(command: Command) -> str:
    """The command as it can be pasted into a shell in the project's folder."""
    python = os.path.relpath(sys.executable, ROOT) if Path(sys.executable).is_relative_to(ROOT) else sys.executable
    return shlex.join([python, *command])


def call(command: Command, step: str) -> None:
    """Runs a command with its output on this terminal; ends the demo when it fails or is interrupted.

    Ctrl-C reaches the command from the terminal, so it is only noted here; SIGTERM is passed on.
    """
    click.secho(f"\n$ {shown(command)}", bold=True)
    stopped: list[int] = []
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)

    def handle(number: int, frame: Any) -> None:
        stopped.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == 0 and not stopped:
        return
    if stopped or code == 3:
        click.echo(f"Interrupted in step {step}. Run the same command again to continue.", err=True)
        sys.exit(3)
    click.echo(f"Step {step} failed with exit code {code}; its message stands above. Finished steps are kept: once the "
               f"cause is removed, run the demo again.\nThe command was: {shown(command)}", err=True)
    sys.exit(code if code > 0 else 128 - code)


def perform(demo: Demo, step: Step, action: str) -> None:
    """Runs the commands of a step and records that it is finished."""
    finished, begun = demo.state["finished"], demo.state["begun"]
    entry: dict[str, Any] = {"params": step.params, "old": demo.run_dirs(step.name) if step.trains else [],
                             "seconds": 0, "commands": []}
    if action == "resume":
        entry = {**(finished.get(step.name) or begun[step.name]), "params": step.params}
    commands = step.commands(action == "resume")
    entry["commands"] = [*entry["commands"], *map(shown, commands)]
    finished.pop(step.name, None)
    begun[step.name] = entry
    demo.save()
    started = time.monotonic()
    try:
        for command in commands:
            call(command, step.name)
    finally:
        entry["seconds"] += time.monotonic() - started
        demo.save()
    finished[step.name] = begun.pop(step.name)
    demo.save()


def clear(out: Path) -> None:
    """Removes a former demo for ``--fresh``, and nothing that isn't one."""
    if (out / "demo.json").is_file():
        shutil.rmtree(out)
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"--fresh: {out} holds no demo.json, so it may not be a demo; empty it yourself or choose "
                        "another --outdir.")


def peak_memory() -> int:
    """Bytes of resident memory of the largest process that the demo started."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10, show_default=True,
              help="Minutes of training of the DIC-GAN; the other steps take about as long again")
@click.option("--control-minutes", type=click.FloatRange(0, min_open=True),
              help="Minutes of training of the control  [default: a quarter, at most 2.5]")
@click.option("--ldm-minutes", type=click.FloatRange(0, min_open=True),
              help="Minutes of training of the latent diffusion model  [default: 0.15 of --minutes, at most 1.5]")
@click.option("--images", default="2k", show_default=True, help="Samples per metric, as in fid2k_full")
@click.option("--outdir", default=str(ROOT / "demo" / "out"), metavar="DIR", help="Work folder  [default: demo/out]")
@click.option("--fresh", is_flag=True, help="Remove what is there and start over")
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and stop")
def main(minutes: float, control_minutes: float | None, ldm_minutes: float | None, images: str, outdir: str,
         fresh: bool, dry_run: bool) -> None:
    started, out = time.monotonic(), Path(outdir).resolve()
    if fresh and not dry_run:
        clear(out)
    demo = Demo(out, minutes, control_minutes or min(2.5, minutes / 4),
                ldm_minutes or min(1.5, minutes * 0.15), images)
    if fresh:
        demo.state = {"finished": {}, "begun": {}}
    finished, begun = demo.params("finished"), demo.params("begun")
    actions = decide(demo.steps, finished, begun, demo.can_resume)
    click.secho(announce(actions, finished, begun, minutes), bold=True)
    if Path.cwd() != ROOT:
        click.echo(f"Commands are run in {ROOT}.")
    whole = 0.1
    for step in demo.steps:
        action = actions[step.name]
        before = finished.get(step.name, {}).get("minutes", 0) if action == "resume" else 0
        minutes_left = 0 if action == "skip" else step.minutes - before
        whole += minutes_left
        click.echo(f"  {step.name:<10s} " + {"skip": "finished", "run": f"about {minutes_left:.1f} min",
                                             "resume": f"continues, about {minutes_left:.1f} min"}[action])
    click.echo(f"  {'report':<10s} about 0.1 min\nTogether about {whole:.0f} min on two cores.")
    if dry_run:
        return
    for step in demo.steps:
        if actions[step.name] != "skip":
            perform(demo, step, actions[step.name])
    report, done = demo.report_command(), demo.state["finished"]
    lines = [line for step in demo.steps for line in done[step.name]["commands"]]
    with atomic_write(out / "commands.txt") as file:
        file.write("\n".join([*lines, shown(report)]).encode() + b"\n")
    call(report, "report")
    total = sum(entry["seconds"] for entry in done.values())
    click.secho(f"\nThe report: {demo.path('report.html')}", bold=True)
    click.echo(f"This took {format_time(time.monotonic() - started)} now, {format_time(total)} over all calls; "
               f"largest process {format_bytes(peak_memory())}.")


if __name__ == "__main__":
    main()
