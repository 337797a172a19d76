"""Converts folders, zips, CIFAR-10, MNIST, LSUN to the PNGs of one size, square or 2:1, RGB or grey, of training."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dnnlib import UserError, format_bytes

if TYPE_CHECKING:
    from dnnlib.conversion import Shaping, Write
    from dnnlib.images import ImageSource


def parse_resolution(text: str, transform: str | None) -> tuple[int, int]:
    """``64``, ``128x64`` -> (width, height): a valid size; for center-crop-wide any height up to a valid width."""
    from dnnlib.sizes import format_size, is_valid_resolution, is_valid_size, suggest_size

    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text, re.ASCII)
    if match is None:
        raise UserError(f"--resolution={text}: write one number, or WIDTHxHEIGHT as in 128x64.")
    width, height = int(match[1]), int(match[2] or match[1])
    if transform == "center-crop-wide":
        if not is_valid_resolution(width):
            raise UserError(f"--resolution={text}: the width must be a power of two from 32 to 1024.")
        if not 0 < height <= width:
            raise UserError(f"--resolution={text}: the height must be from 1 to the width.")
    elif not is_valid_size(width, height):
        near = format_size(*suggest_size(width, height))
        other = "; only --transform=center-crop-wide takes others" * (is_valid_resolution(width) and height < width)
        raise UserError(f"--resolution={text}: the short side must be a power of two from 32 to 1024 and the other one "
                        f"equal or exactly twice it, for example {near}{other}.")
    return width, height


def parse_background(text: str) -> tuple[int, int, int]:
    """A colour name or ``#rrggbb`` -> RGB."""
    from PIL import ImageColor

    try:
        colour = ImageColor.getrgb(text)
    except ValueError:
        colour = (0,) * 4
    if len(colour) != 3:
        raise UserError(f"--background={text}: write a colour name (white) or #rrggbb (#ffffff).")
    return colour


def read_split(option: str) -> list[str]:
    """The names listed under KEY of ``FILE.json:KEY``."""
    file, colon, key = option.rpartition(":")
    if not colon or Path(option).is_file():
        file, key = option, ""
    try:
        content = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise UserError(f"--include={option}: cannot read {file} ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--include={option}: {file} is not valid JSON ({error}).") from error
    lists = {k: v for k, v in content.items() if isinstance(v, list)} if isinstance(content, dict) else {}
    if key not in lists:
        known = ", ".join(lists) or "(none)"
        raise UserError(f"--include={option}: write {file}:KEY with one of its keys that hold a list: {known}.")
    names = lists[key]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"--include={option}: {key} must be a non-empty list of file names.")
    return names


def check_dest(dest: Path, source: Path, force: bool) -> bool:
    """True if `dest` is a zip, False for a folder. `UserError` if writing it would destroy or mix anything."""
    real, real_source = Path(os.path.realpath(dest)), Path(os.path.realpath(source))
    suffix = dest.suffix.lower()
    nested = real in real_source.parents or (suffix != ".zip" and real_source in real.parents)
    if real == real_source or nested:
        raise UserError(f"--dest={dest} and --source={source} overlap; write elsewhere.")
    if suffix == ".zip":
        if dest.is_dir():
            raise UserError(f"--dest={dest} is a folder; give a zip file or a folder not named .zip.")
        if dest.exists() and not force:
            raise UserError(f"--dest={dest} exists; choose another name or add --force to replace it.")
        return True
    if suffix in (".tar", ".gz", ".tgz", ".7z", ".rar") or (dest.exists() and not dest.is_dir()):
        raise UserError(f"--dest={dest}: give a name that ends in .zip, or a folder.")
    content = sorted(os.listdir(dest)) if dest.is_dir() else []
    if content and not force:
        raise UserError(f"--dest={dest} is not empty; choose another folder or add --force to replace an old data set.")
    if content and ("dataset.json" not in content or any(not re.fullmatch(r"\d{5}|dataset\.json", c) for c in content)):
        raise UserError(f"--dest={dest} holds more than a converted data set; --force won't delete it, empty it first.")
    return False


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
    write: Write, source: ImageSource, names: list[str], shaping: Shaping, limit: int, workers: int, on_error: str
) -> tuple[dict[str, str], list[str], tuple[int, int], int]:
    """Converts and writes up to `limit` images; returns (archive name -> source name, problems, size, enlarged)."""
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


@click.command(context_settings={"max_content_width": 120})
@click.option("--source", required=True, type=click.Path(path_type=Path), metavar="PATH",
              help="Folder (with subfolders) or zip of images, CIFAR-10 python .tar.gz, MNIST images .gz (labels "
                   "beside it), or LSUN lmdb folder.")
@click.option("--dest", required=True, type=click.Path(path_type=Path), metavar="PATH",
              help="Zip to write (name ends in .zip) or folder. An existing one is refused.")
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
def main(
    source: Path, dest: Path, resolution: str | None, transform: str | None, color: str, background: str,
    max_images: int | None, include: str | None, labels: str | None, on_error: str, workers: int | None, force: bool,
) -> None:
    """Convert pictures to a data set for train.py: PNGs of one size and dataset.json with their labels.

    They are square, or 2:1 where --resolution says so or the source is. Resizing is Lanczos. The result is the same
    for any number of workers and appears under DEST only when complete.

    \b
    python dataset_tool.py --source photos/ --dest photos.zip --resolution 256 --transform center-crop
    """
    from dnnlib.archives import PackedSource, open_any
    from dnnlib.conversion import Shaping, folder_writer, zip_writer
    from dnnlib.labels import select, source_labels

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    if transform == "center-crop-wide" and resolution is None:
        raise UserError("--transform=center-crop-wide needs --resolution=WIDTHxHEIGHT, for example 256x160.")
    size = parse_resolution(resolution, transform) if resolution is not None else None
    shaping = Shaping(size, transform, parse_background(background), grey=color == "grey")
    listed = read_split(include) if include is not None else None
    to_zip = check_dest(dest, source, force)
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
        with zip_writer(dest) if to_zip else folder_writer(dest) as write:
            written, problems, (width, height), enlarged = convert_into(
                write, images, names, shaping, limit, workers or cores, on_error
            )
            write("dataset.json", dataset_json(written, origins, label_of, classes))
    class_count = 0 if label_of is None else len(classes or ()) or max(label_of.values()) + 1
    kind = f"{width}x{height}{', grey' * shaping.grey}"
    _report(dest, len(written), kind, class_count, problems, enlarged, missing)


if __name__ == "__main__":
    main()
