"""Reading image sets: folders and zips of pictures."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dnnlib.pixels import center_crop, decode, pad, resize
from dnnlib.util import UserError

__all__ = [
    "IMAGE_EXTENSIONS",
    "ImageSource",
    "center_crop",
    "decode",
    "is_image_name",
    "open_source",
    "pad",
    "resize",
    "strip_extension",
]

IMAGE_EXTENSIONS = frozenset(
    [
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
    ]
)
MAX_ENTRY_BYTES = 1 << 30  # a zip entry that claims to unpack to more than this is refused


def is_image_name(name: str) -> bool:
    """True for relative names with an image extension outside hidden folders and macOS resource forks."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_EXTENSIONS


def strip_extension(name: str) -> str:
    """`name` without its image extension; other dots (``v1.2``) are kept."""
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in IMAGE_EXTENSIONS else name


class ImageSource:
    """A set of image files, open for reading.

    Attributes: `path`; `names`, the sorted relative names of its images. Instances may be used in
    forked or spawned worker processes and are context managers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _bytes(self, name: str, limit: int) -> bytes:
        raise UserError(f"{self.path}: {name} is packed with other images and cannot be read alone.")

    def _has(self, name: str) -> bool:
        return False

    def close(self) -> None:
        """Frees the file handle; the source opens it again when it is read once more."""

    def read(self, name: str, limit: int = -1) -> bytes:
        """The bytes of file `name` (only the first `limit` if given). `UserError` if it can't be read."""
        try:
            return self._bytes(name, limit)
        except UserError:
            raise
        except Exception as error:  # a damaged zip raises BadZipFile, zlib.error, EOFError, NotImplementedError, ...
            raise UserError(f"{self.path}: cannot read {name}: {error or type(error).__name__}.") from error

    def json(self, name: str = "dataset.json") -> dict[str, Any] | None:
        """The parsed JSON object in file `name`, None if there is no such file."""
        if not self._has(name):
            return None
        try:
            value = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path}: {name} is not valid JSON ({error}); correct or remove it.") from error
        if not isinstance(value, dict):
            raise UserError(f"{self.path}: {name} must hold a JSON object with the key 'labels'; correct or remove it.")
        return value

    def payloads(self, names: Sequence[str]) -> Iterator[bytes | np.ndarray | None]:
        """What a converter gets for each name; None means that the workers read the file themselves."""
        return (None for _ in names)


class _FolderSource(ImageSource):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        seen: set[str] = set()
        for folder, subfolders, files in os.walk(path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link that leads back to a folder already listed
                subfolders.clear()
                continue
            seen.add(real)
            relative = Path(folder).relative_to(path)
            self.names += [name for file in files if is_image_name(name := (relative / file).as_posix())]
        self.names.sort()

    def _bytes(self, name: str, limit: int) -> bytes:
        with open(self.path / name, "rb") as file:
            return file.read(limit)

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file()


class _ZipSource(ImageSource):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zip: zipfile.ZipFile | None = None
        self._pid = -1
        listed: set[str] = set()
        for info in self._open().infolist():
            name = info.filename
            if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
                raise UserError(f"{path}: entry {name!r} leads outside of the archive; pack the zip again without it.")
            if name in listed:
                raise UserError(f"{path}: entry {name!r} occurs twice; pack the zip again with unique names.")
            if info.flag_bits & 1:
                raise UserError(f"{path}: entry {name!r} is encrypted; pack the zip again without a password.")
            listed.add(name)
        self.names = sorted(filter(is_image_name, listed))

    def _open(self) -> zipfile.ZipFile:
        # A forked process shares its parent's file position, so each process opens the file itself.
        if self._zip is None or self._pid != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise UserError(f"{self.path} is not a readable zip file ({error}); pack or copy it again.") from error
            self._pid = os.getpid()
        return self._zip

    def _bytes(self, name: str, limit: int) -> bytes:
        archive = self._open()
        if archive.getinfo(name).file_size > MAX_ENTRY_BYTES:
            raise UserError(f"{self.path}: {name} unpacks to more than 1 GiB, which no image needs.")
        with archive.open(name) as file:
            return file.read(limit)

    def _has(self, name: str) -> bool:
        return name in self._open().NameToInfo

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()
        self._zip = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_pid": -1}


def open_source(path: str | os.PathLike) -> ImageSource:
    """Opens a folder (searched with its subfolders) or a zip of images.

    `UserError` if `path` is missing, is neither of the two, holds no image, or is a zip with entries
    that are duplicate, encrypted or lead outside of it.
    """
    path = Path(path)
    if path.is_dir():
        source: ImageSource = _FolderSource(path)
    elif path.is_file() and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        source = _ZipSource(path)
    elif path.exists():
        raise UserError(f"{path} is neither a folder of images nor a zip file.")
    else:
        raise UserError(f"{path} does not exist; give a folder of images or a zip file.")
    if not source.names:
        raise UserError(f"{path} contains no images (looked for {', '.join(sorted(IMAGE_EXTENSIONS))}).")
    return source
