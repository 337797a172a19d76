"""What benchmarks of two sides share: a process for every measurement, turns that alternate, tables of medians."""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dnnlib.tuning import tune_process

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("reference", "fast")
IMAGES = 64  # of the random data set
AT_ONCE = 5  # steps of a GPU that are timed together
Row = dict[str, Any]


def machine(threads: int | None) -> str:
    """One line: processor, cores, threads of a measurement, versions, load."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    from importlib.metadata import version

    used = threads or os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    return (f"{name}, {os.cpu_count()} cores, threads {used}, Python {platform.python_version()}, "
            f"torch {version('torch')}, load {os.getloadavg()[0]:.1f} at the start")


def measured(script: str, arguments: Sequence[str], threads: int | None) -> Row:
    """The JSON object that a new process of `script` prints last; ClickException with its last line where it fails."""
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=ROOT,
                          env=environment, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(arguments)}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def record(rows: list[Row], row: Row, out: Path | None) -> None:
    """Keeps a measurement, shows it, and adds it to the file `out` as a line of JSON."""
    rows.append(row)
    line = json.dumps(row)
    click.echo(line, err=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def timed(step: Callable[[], object], seconds: float, images: int, device: str) -> Row:
    """Speed of steps of `images` images, run for `seconds`, two at least, after one that isn't counted; peak memory.

    img_per_sec by the median step; cpu_per_img: seconds of all threads, likewise, which a busy machine changes less.
    On another device than the CPU, which works behind the program, `AT_ONCE` steps are timed together.
    """
    count = 1 if device == "cpu" else AT_ONCE
    for _ in range(count):
        step()  # chooses kernels and takes memory
    finish(device)
    walls: list[float] = []
    cpus: list[float] = []
    while len(walls) < 2 or sum(walls) * count < seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            step()
        finish(device)
        walls.append((time.perf_counter() - wall) / count)
        cpus.append((time.process_time() - cpu) / count)
    return {"img_per_sec": images / statistics.median(walls), "cpu_per_img": statistics.median(cpus) / images,
            "steps": len(walls) * count, "peak_mib": peak_mib(device)}


def finish(device: str) -> None:
    """Waits for all that `device` has been asked to do."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def peak_mib(device: str = "cpu") -> float:
    """Peak of this process's resident memory, or of what it had of a GPU's."""
    import resource

    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / (1 << 20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB elsewhere


def middle(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Median of a key."""
    return statistics.median(row[key] for row in rows)


def spread(rows: Sequence[Mapping[str, Any]], key: str, digits: int = 2) -> str:
    """``median (minimum – maximum)``."""
    values = [row[key] for row in rows]
    return f"{middle(rows, key):.{digits}f} ({min(values):.{digits}f} – {max(values):.{digits}f})"


def chosen(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def resolved(cfg: str, resolution: int, batch: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a side, in float32 unless `changes` of the preset's options say otherwise."""
    from training.resolve import resolve

    data = {"path": "", "name": "random", "resolution": resolution, "aspect": (1, 1), "channels": 3,
            "num_images": IMAGES, "label_dim": 0, "fingerprint": ""}
    # A fixed sigma: random images have no neighbours for `auto` to find.
    sigma = 0.5 if cfg.startswith("dicgan") else None
    return resolve(cfg, {"batch": batch, "batch_gpu": batch, "metrics": "none", "sigma": sigma, "amp": "off",
                         **changes}, data)


def parsed(change: str) -> tuple[str, Any]:
    """``key=value``, the value as JSON or, where it is none, as text; UsageError without an equals sign."""
    key, equals, text = change.partition("=")
    if not equals:
        raise click.UsageError(f"--change {change}: write it as amp=bf16.")
    try:
        return key, json.loads(text)
    except json.JSONDecodeError:
        return key, text


def table(rows: list[Row], cfgs: list[str], resolutions: list[int]) -> str:
    """Markdown: medians, ranges and ratios."""
    lines = []
    for resolution in resolutions:
        first = middle(chosen(rows, cfg=cfgs[0], resolution=resolution, side="fast"), "img_per_sec")
        for cfg in cfgs:
            plain, ours = (chosen(rows, cfg=cfg, resolution=resolution, side=side) for side in SIDES)
            speed = middle(ours, "img_per_sec")
            lines.append([f"`{cfg}`", str(resolution), spread(plain, "img_per_sec"), spread(ours, "img_per_sec"),
                          f"{speed / middle(plain, 'img_per_sec'):.2f}",
                          f"{middle(plain, 'cpu_per_img') / middle(ours, 'cpu_per_img'):.2f}",
                          f"{middle(plain, 'peak_mib'):.0f}", f"{middle(ours, 'peak_mib'):.0f}",
                          f"{middle(ours, 'peak_mib') / middle(plain, 'peak_mib'):.2f}", f"{first / speed:.2f}"])
    return markdown(["configuration", "px", "reference img/s", "ours img/s", "ratio", "by CPU time",
                     "reference MiB", "ours MiB", "ratio", f"cost, `{cfgs[0]}` = 1"], lines)


def two_sided(resolution: str, batch: int, seconds: float) -> Callable[[Callable], Callable]:
    """The options of a benchmark of both sides over presets and resolutions, with these defaults."""
    options = [
        click.option("--cfg", default="fastgan,fastgan_lite,stylegan2,dicgan,icgan", show_default=True,
                     help="Presets, comma-separated"),
        click.option("--resolution", default=resolution, show_default=True, help="Sides in pixels, comma-separated"),
        click.option("--batch", type=click.IntRange(min=2), default=batch, show_default=True, help="Images per step"),
        click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of everything"),
        click.option("--threads", type=click.IntRange(min=1), help="Of each process  [default: as torch chooses]"),
        click.option("--seconds", type=click.FloatRange(min=0), default=seconds, show_default=True,
                     help="Of steps per measurement; two steps at least"),
        click.option("--tune-reference", is_flag=True, help="The reference under dnnlib/tuning.py, too"),
        click.option("--device", default="cpu", show_default=True, help="cpu or cuda"),
        click.option("--change", multiple=True, metavar="KEY=VALUE",
                     help="Preset option of our side alone, which changes the mathematics, such as amp=bf16"),
        click.option("--out", type=click.Path(path_type=Path), help="File that lines of JSON are added to"),
        click.option("--one", type=click.Choice(SIDES), hidden=True),
    ]

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def run(script: str, measure: Callable[[str, dict[str, Any], float, str], Row], cfg: str, resolution: str, batch: int,
        rounds: int, threads: int | None, seconds: float, tune_reference: bool, device: str, change: tuple[str, ...],
        out: Path | None, one: str | None) -> None:
    """The command of `two_sided` options: with `one`, that measurement in this process; else all and the table.

    measure: of side, resolved configuration, seconds and device; in processes of `script`.
    """
    cfgs, resolutions = cfg.split(","), [int(side) for side in resolution.split(",")]
    changes = dict(parsed(text) for text in change)
    if one:
        if one == "fast" or tune_reference:
            tune_process()
        config = resolved(cfg, resolutions[0], batch, changes if one == "fast" else {})
        click.echo(json.dumps(measure(one, config, seconds, device)))
        return
    description = machine(threads) + ("" if device == "cpu" else f", on {device}")
    rows: list[Row] = []
    common = ["--batch", str(batch), "--seconds", str(seconds), "--device", device,
              *["--tune-reference"] * tune_reference, *(f"--change={text}" for text in change)]
    for number, pixels, name, side in itertools.product(range(rounds), resolutions, cfgs, SIDES):
        row = measured(script, ["--one", side, "--cfg", name, "--resolution", str(pixels), *common], threads)
        record(rows, {"cfg": name, "resolution": pixels, "batch": batch, "side": side, "round": number, **row,
                      "changes": changes, "machine": description}, out)
    changed = f" Ours with {', '.join(change)}." if change else ""
    click.echo(f"{description}. Batch {batch}, {rounds} rounds of {seconds:g} s, medians (minimum – maximum)."
               f"{changed}\n")
    click.echo(table(rows, cfgs, resolutions))
