"""Converts sets of pictures of any packing to the PNGs of one size of training; finds duplicates in sets."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dnnlib import UserError, format_bytes

if TYPE_CHECKING:
    from dnnlib.conversion import Shaping
    from dnnlib.images import ImageSource
    from dnnlib.packing import Write


def dataset_json(
    written: dict[str, str], origins: dict[str, str], labels: dict[str, int] | None, classes: list[str] | None
) -> bytes:
    """The set's dataset.json; `written` maps archive names to source names."""
    content: dict[str, Any] = {
        "labels": None if labels is None else [[name, labels[old]] for name, old in written.items()],
        "sources": {name: origins[old] for name, old in written.items()},
    }
    if classes is not None:
        content["classes"] = classes
    return json.dumps(content).encode()


def convert_into(
    write: Write, source: ImageSource, names: list[str], shaping: Shaping, limit: int, workers: int, on_error: str,
    beside: dict[str, int] | None,
) -> tuple[dict[str, str], list[str], tuple[int, int], int]:
    """Converts and writes up to `limit` images; returns (archive name -> source name, problems, size, enlarged).

    beside: labels by source name, of which each is written beside its image (``.cls``), as WebDataset has it.
    """
    from tqdm import tqdm

    from dnnlib.conversion import check_size, convert_all

    written: dict[str, str] = {}
    problems: list[str] = []
    size: tuple[int, int] | None = None
    enlarged = 0
    tqdm.monitor_interval = 0  # no extra thread beside the worker processes
    interval = 0.2 if sys.stderr.isatty() else 10
    results = convert_all(source, names, shaping, workers)
    with contextlib.closing(results), tqdm(total=limit, unit="img", desc="Converting", mininterval=interval) as bar:
        for result in results:
            if result.problem and (result.fatal or on_error == "fail"):
                bar.leave = False
                raise UserError(f"{source.path}: {result.problem}")
            if result.problem:
                problems.append(result.problem)
                continue
            if shaping.size is None:
                check_size(result, size, source.path)
            size = result.size
            index = f"{len(written):08d}"
            name = f"{index[:5]}/img{index}.png"
            write(name, result.png)
            if beside is not None:
                write(f"{name.removesuffix('.png')}.cls", str(beside[result.name]).encode())
            written[name] = result.name
            enlarged += result.enlarged
            bar.update()
            if len(written) == limit:
                break
    if size is None:
        raise UserError(f"{source.path}: none of its {len(names)} images is usable; the first: {problems[0]}")
    return written, problems, size, enlarged


def _report(dest: Path, count: int, kind: str, classes: int, problems: list[str], enlarged: int, missing: list) -> None:
    if missing:
        shown = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        click.echo(f"Listed in --include but not in the source ({len(missing)}): {shown}", err=True)
    if enlarged:
        click.echo(f"{enlarged} of {count} images were smaller than the resolution and were enlarged.", err=True)
    if problems:
        click.echo(f"Skipped {len(problems)} unusable file{'s'[: len(problems) > 1]}:", err=True)
        for problem in problems:
            click.echo(f"  {problem}", err=True)
    size = f", {format_bytes(dest.stat().st_size)}" if dest.is_file() else ""
    labelled = f", {classes} classes" if classes else ", no labels"
    click.echo(f"Wrote {dest}: {count} image{'s'[: count > 1]} of {kind}{labelled}{size}.")


@click.group(invoke_without_command=True, context_settings={"max_content_width": 120})
@click.option("--source", type=click.Path(path_type=Path), metavar="PATH",
              help="Folder (with subfolders), zip or tar of images, folder of tars (WebDataset), lmdb folder (LSUN), "
                   "CIFAR-10 python .tar.gz, or MNIST images .gz (labels beside it).  [required]")
@click.option("--dest", type=click.Path(path_type=Path), metavar="PATH",
              help="Zip or lmdb folder to write (name ends in .zip, .lmdb), or folder. An existing one is refused.  "
                   "[required]")
@click.option("--shards", is_flag=True, help="Write tars of 1,000 images into the folder DEST, as WebDataset has them.")
@click.option("--resolution", metavar="N|WxH",
              help="Side in pixels, a power of two from 32 to 1024; or width x height with one side twice the other, "
                   "as 128x64 or 64x128.  [default: the source's]")
@click.option("--transform", type=click.Choice(["center-crop", "center-crop-wide", "pad"]),
              help="Give images the shape of --resolution, or make them square: crop; crop to WxH and add black bars "
                   "up to a square; or pad with --background.")
@click.option("--color", type=click.Choice(["rgb", "grey"]), default="rgb", show_default=True,
              help="Three channels, or one of luma.")
@click.option("--background", default="white", show_default=True, metavar="COLOR",
              help="Name or #rrggbb, behind transparent pixels and in padding.")
@click.option("--max-images", type=click.IntRange(min=1), metavar="N", help="Stop after the first N usable images.")
@click.option("--include", metavar="FILE.json:KEY",
              help="Only the names listed under KEY, matched without folder and extension.")
@click.option("--labels", type=click.Choice(["folders", "none"]),
              help="Class = top-level subfolder in sorted order, or drop labels.  [default: the source's dataset.json]")
@click.option("--on-error", type=click.Choice(["skip", "fail"]), default="skip", show_default=True,
              help="What to do with unreadable files; skipped ones are listed at the end.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: one per core]")
@click.option("--force", is_flag=True, help="Replace an existing DEST: a zip, or a folder that holds a converted set.")
@click.pass_context
def main(ctx: click.Context, **flags: Any) -> None:
    """Convert pictures to a data set for train.py: PNGs of one size and dataset.json with their labels.

    They are square, or 2:1 where --resolution says so or the source is. Resizing is Lanczos. The result is the same
    for any number of workers and appears under DEST only when complete.

    \b
    python dataset_tool.py --source photos/ --dest photos.zip --resolution 256 --transform center-crop
    """
    if ctx.invoked_subcommand is None:
        for param in ctx.command.params:
            if param.name in ("source", "dest") and flags[param.name] is None:
                raise click.MissingParameter(ctx=ctx, param=param)
        convert(**flags)
        return
    given = [key for key in flags if ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} belongs to conversion; {ctx.invoked_subcommand} takes sets "
                        "and flags of its own, written after it.")


def convert(
    source: Path, dest: Path, resolution: str | None, transform: str | None, color: str, background: str,
    max_images: int | None, include: str | None, labels: str | None, on_error: str, workers: int | None, force: bool,
    shards: bool,
) -> None:
    """The form without a sub-command."""
    from dnnlib.archives import PackedSource, open_any
    from dnnlib.cli import end_on_sigterm
    from dnnlib.conversion import Shaping
    from dnnlib.conversion_flags import check_dest, parse_background, parse_resolution, read_split
    from dnnlib.labels import select, source_labels
    from dnnlib.packing import WRITERS

    end_on_sigterm()
    if transform == "center-crop-wide" and resolution is None:
        raise UserError("--transform=center-crop-wide needs --resolution=WIDTHxHEIGHT, for example 256x160.")
    size = parse_resolution(resolution, transform) if resolution is not None else None
    shaping = Shaping(size, transform, parse_background(background), grey=color == "grey")
    listed = read_split(include) if include is not None else None
    kind = check_dest(dest, source, force, shards)
    with open_any(source) as images:
        label_of, classes = source_labels(images, labels)
        old = {} if isinstance(images, PackedSource) else (images.json() or {}).get("sources")
        origins = {name: str(old.get(name, name)) if isinstance(old, dict) else name for name in images.names}
        names, missing = images.names, list[str]()
        if listed is not None:
            assert include is not None
            names, missing = select(origins, listed, include)
        limit = min(max_images or len(names), len(names))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with WRITERS[kind](dest) as write:
            written, problems, (width, height), enlarged = convert_into(
                write, images, names, shaping, limit, workers or cores, on_error, label_of if shards else None
            )
            write("dataset.json", dataset_json(written, origins, label_of, classes))
    class_count = 0 if label_of is None else len(classes or ()) or max(label_of.values()) + 1
    size_and_color = f"{width}x{height}{', grey' * shaping.grey}"
    _report(dest, len(written), size_and_color, class_count, problems, enlarged, missing)


@main.command()
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SET [OTHER …]")
@click.option("--threshold", type=float, metavar="S",
              help="Similarity from which two images are one, over 0 up to 1.  [default: 0.9]")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.json", help="Report with all groups and links.")
@click.option("--grid", type=click.Path(path_type=Path), metavar="PNG", help="Picture of the ten closest pairs.")
def check(sets: tuple[Path, ...], threshold: float | None, out: Path | None, grid: Path | None) -> None:
    """Find duplicates within image sets and leaks between them: folders or zips, images of any sizes.

    Copies that were encoded anew, resized, cropped by a few per cent, brightened or mirrored count too. Exit code 0:
    none; 1: some; 2: bad input.

    \b
    python dataset_tool.py check train.zip test.zip --out leaks.json --grid closest.png
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: give a similarity over 0 and up to 1.")
    if grid is not None and grid.suffix.lower() != ".png":
        raise UserError(f"--grid {grid}: name a .png file.")
    from metrics.pairs import save_pairs
    from torch_utils.duplicate_report import check_sets, closest_pairs, save_report, summary
    from torch_utils.duplicates import THRESHOLD

    checked = check_sets(sets, THRESHOLD if threshold is None else threshold)
    for problem in checked.unreadable:
        click.echo(f"Skipped: {problem}", err=True)
    click.echo("\n".join(summary(checked)))
    if out is not None:
        save_report(out, checked)
    if grid is not None and (pairs := closest_pairs(checked)):
        save_pairs(grid, pairs)
    elif grid is not None:
        click.echo(f"No two images look alike, so {grid} was not written.")
    if checked.found.groups:
        sys.exit(1)


if __name__ == "__main__":
    main()
