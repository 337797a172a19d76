"""Reading image sets: folders and zips of pictures."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dnnlib.pixels import center_crop, decode, pad, resize
from dnnlib.util import UserError, format_bytes, parse_json

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
MAX_FILE_BYTES = 1 << 29  # of a picture, unpacked: what Pillow's limit of pixels takes as an uncompressed TIFF, twice
JSON_BYTES, JSON_BYTES_PER_IMAGE = 16 << 20, 4096  # of dataset.json: Python needs up to 30 times as much for its values


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

    def _bytes(self, name: str, limit: int, most: int) -> bytes:
        raise UserError(f"{self.path}: {name} is packed with other images and cannot be read alone.")

    def _has(self, name: str) -> bool:
        return False

    def close(self) -> None:
        """Frees the file handle; the source opens it again when it is read once more."""

    def read(self, name: str, limit: int = -1, most: int = MAX_FILE_BYTES) -> bytes:
        """The bytes of file `name` (only the first `limit` if given).

        `UserError` if it can't be read, is no regular file, or has more than `most` bytes.
        """
        try:
            return self._bytes(name, limit, most)
        except UserError:
            raise
        except Exception as error:  # a damaged zip raises BadZipFile, zlib.error, EOFError, NotImplementedError, ...
            raise UserError(f"{self.path}: cannot read {name}: {error or type(error).__name__}.") from error

    def json(self, name: str = "dataset.json") -> dict[str, Any] | None:
        """The parsed JSON object in file `name`, None if there is no such file."""
        if not self._has(name):
            return None
        try:
            value = parse_json(self.read(name, most=JSON_BYTES + JSON_BYTES_PER_IMAGE * len(self.names)))
        except ValueError as error:
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

    def _bytes(self, name: str, limit: int, most: int) -> bytes:
        found = os.stat(self.path / name)
        if not stat.S_ISREG(found.st_mode):  # a pipe would block, a device never end
            raise UserError(f"{self.path}: {name} is no regular file; remove it.")
        _check_length(self.path, name, found.st_size, most)
        with open(self.path / name, "rb") as file:
            return file.read(limit if limit >= 0 else most)

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
            # zipfile unpacks other methods without a bound on memory.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{path}: entry {name!r} is packed by an unusual method; pack the zip again with the "
                                "usual one (deflate).")
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

    def _bytes(self, name: str, limit: int, most: int) -> bytes:
        archive = self._open()
        size = archive.getinfo(name).file_size
        _check_length(self.path, name, size, most)
        with archive.open(name) as file:
            # Never without a number: zipfile would unpack up to 2 GiB, whatever size the entry claims.
            return file.read(size if limit < 0 else min(limit, size))

    def _has(self, name: str) -> bool:
        return name in self._open().NameToInfo

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()
        self._zip = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_pid": -1}


def _check_length(path: Path, name: str, size: int, most: int) -> None:
    if size > most:
        raise UserError(f"{path}: {name} has {format_bytes(size)}, more than the {format_bytes(most)} that are read; "
                        "remove it.")


def open_source(path: str | os.PathLike) -> ImageSource:
    """Opens a folder (searched with its subfolders) or a zip of images.

    `UserError` if `path` is missing, is neither of the two, holds no image, or is a zip with entries
    that are duplicate, encrypted, packed by an unusual method, or lead outside of it.
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
