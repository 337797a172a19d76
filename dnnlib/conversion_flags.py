"""What the flags of dataset_tool.py mean: sizes, colours, lists of names, and where it may write."""

from __future__ import annotations

import os
import re
from pathlib import Path

from PIL import ImageColor

from dnnlib.sizes import format_size, is_valid_resolution, is_valid_size, suggest_size
from dnnlib.util import UserError, parse_json

_OWN = re.compile(r"\d{5}(\.tar)?|dataset\.json|(data|lock)\.mdb")  # what converted sets consist of, at the top


def parse_resolution(text: str, transform: str | None) -> tuple[int, int]:
    """``64``, ``128x64`` -> (width, height): a valid size; for center-crop-wide any height up to a valid width."""
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
        content = parse_json(Path(file).read_bytes())
    except OSError as error:
        raise UserError(f"--include={option}: cannot read {file} ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"--include={option}: {file} is not valid JSON ({error}).") from error
    lists = {k: v for k, v in content.items() if isinstance(v, list)} if isinstance(content, dict) else {}
    if key not in lists:
        known = ", ".join(lists) or "(none)"
        raise UserError(f"--include={option}: write {file}:KEY with one of its keys that hold a list: {known}.")
    names = lists[key]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"--include={option}: {key} must be a non-empty list of file names.")
    return names


def check_dest(dest: Path, source: Path, force: bool, shards: bool) -> str:
    """What `dest` is to be: "zip", "lmdb", "shards" or "folder". `UserError` if writing it would destroy or mix
    anything."""
    real, real_source = Path(os.path.realpath(dest)), Path(os.path.realpath(source))
    suffix = dest.suffix.lower()
    nested = real in real_source.parents or (suffix != ".zip" and real_source in real.parents)
    if real == real_source or nested:
        raise UserError(f"--dest={dest} and --source={source} overlap; write elsewhere.")
    if shards and suffix in (".zip", ".lmdb"):
        raise UserError(f"--shards: --dest={dest} must be a folder for them, whose name doesn't end in {suffix}.")
    if suffix == ".zip":
        if dest.is_dir():
            raise UserError(f"--dest={dest} is a folder; give a zip file or a folder not named .zip.")
        if dest.exists() and not force:
            raise UserError(f"--dest={dest} exists; choose another name or add --force to replace it.")
        return "zip"
    if suffix in (".tar", ".gz", ".tgz", ".7z", ".rar") or (dest.exists() and not dest.is_dir()):
        raise UserError(f"--dest={dest}: give a name that ends in .zip or .lmdb, or a folder; --shards for tars.")
    content = sorted(os.listdir(dest)) if dest.is_dir() else []
    if content and not force:
        raise UserError(f"--dest={dest} is not empty; choose another folder or add --force to replace an old data set.")
    if content and (not {"dataset.json", "data.mdb"} & set(content) or not all(map(_OWN.fullmatch, content))):
        raise UserError(f"--dest={dest} holds more than a converted data set; --force won't delete it, empty it first.")
    return "lmdb" if suffix == ".lmdb" else "shards" if shards else "folder"
