"""Reading image sets: folders of pictures, and what they may be packed in."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dnnlib.pixels import decode
from dnnlib.util import UserError, format_bytes, parse_json

__all__ = [
    "IMAGE_EXTENSIONS",
    "ImageSource",
    "decode",
    "is_image_name",
    "open_source",
    "strip_extension",
]

IMAGE_EXTENSIONS = frozenset(
    [
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
    ]
)
_ENDINGS = tuple(sorted(IMAGE_EXTENSIONS))
MAX_FILE_BYTES = 1 << 29  # of a picture, unpacked: what Pillow's limit of pixels takes as an uncompressed TIFF, twice
DATASET_JSON = "dataset.json"  # of labels, in every kind of set
JSON_BYTES, JSON_BYTES_PER_IMAGE = 16 << 20, 4096  # of dataset.json: Python needs up to 30 times as much for its values


def is_image_name(name: str) -> bool:
    """True for relative names with an image extension outside hidden folders and macOS resource forks."""
    if not name.lower().endswith(_ENDINGS):
        return False
    if "/." not in name and "__MACOSX" not in name and name[0] != ".":  # nearly all
        return True
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


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
        except Exception as error:  # what readers of damaged archives raise is nearly anything
            raise UserError(f"{self.path}: cannot read {name}: {error or type(error).__name__}.") from error

    def json(self, name: str = DATASET_JSON) -> dict[str, Any] | None:
        """The parsed JSON object in file `name`, None if there is no such file."""
        if not self._has(name):
            return None
        try:
            most = JSON_BYTES + JSON_BYTES_PER_IMAGE * len(self.names)
            value = parse_json(self.read(name, most=most).decode("utf-8-sig"))  # not both forms of it in memory
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
            relative = Path(folder).relative_to(path).as_posix()
            prefix = "" if relative == "." else f"{relative}/"
            self.names += [name for file in files if is_image_name(name := prefix + file)]
        self.names.sort()

    def _bytes(self, name: str, limit: int, most: int) -> bytes:
        return read_file(self.path, name, limit, most)

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file()


def read_file(folder: Path, name: str, limit: int, most: int) -> bytes:
    """File `name` of a folder, as `ImageSource.read` has it; `UserError` if it is no regular file or too long."""
    path = f"{folder}/{name}"
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # a pipe would block, a device never end
        raise UserError(f"{folder}: {name} is no regular file; remove it.")
    check_length(folder, name, found.st_size, most)
    with open(path, "rb", buffering=0) as file:
        return file.read(found.st_size if limit < 0 else limit)


def check_length(path: Path, name: str, size: int, most: int) -> None:
    """`UserError` if `size` bytes of file `name` are more than are read."""
    if size > most:
        raise UserError(f"{path}: {name} has {format_bytes(size)}, more than the {format_bytes(most)} that are read; "
                        "remove it.")


def open_source(path: str | os.PathLike) -> ImageSource:
    """Opens a folder (searched with its subfolders), a zip, a tar, a folder of tars or an lmdb folder of images.

    `UserError` if `path` is missing, is none of them, holds no image, or is an archive that is damaged or has entries
    that are duplicate, encrypted, packed by an unusual method, links, or lead outside of it.
    """
    from dnnlib.lmdb_source import LmdbSource
    from dnnlib.tar_source import TarSource
    from dnnlib.zip_source import ZipSource

    path = Path(path)
    source: ImageSource
    if path.is_dir():
        source = LmdbSource(path) if (path / "data.mdb").is_file() else _FolderSource(path)
        if not source.names and next(path.glob("*.tar"), None) is not None:
            source = TarSource(path)
    elif path.is_file() and path.suffix.lower() == ".tar":
        source = TarSource(path)
    elif path.is_file() and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        source = ZipSource(path)
    elif path.exists():
        raise UserError(f"{path} is neither a folder of images nor a zip, tar or lmdb folder.")
    else:
        raise UserError(f"{path} does not exist; give a folder, zip, tar or lmdb folder of images.")
    if not source.names:
        raise UserError(f"{path} contains no images (looked for {', '.join(sorted(IMAGE_EXTENSIONS))}).")
    return source
