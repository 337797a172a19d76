"""Tar shards as WebDataset has them: a folder of ``*.tar``, or one. They are read at any place, not as streams."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnnlib.images import DATASET_JSON, ImageSource, check_length, is_image_name, read_file
from dnnlib.members import Members, PartFiles, check_names
from dnnlib.util import UserError, parse_json

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_HEADER, _WINDOW = 64 << 10, 256 << 10  # bytes of one extended header (it holds a name), of a member's headers
_SPEAKING = re.compile(rb"path=|size=|GNU\.|charset=")  # what changes the meaning of the header that follows
_LABEL_BYTES = 64 << 10  # of a label's file


class TarSource(ImageSource):
    """The pictures of one tar, or of the tars of a folder; names there begin with the shard's (``00003/``).

    ``KEY.cls`` (an integer) or ``KEY.json`` (an integer, or an object with an integer ``label``) beside a picture is
    its label, where KEY is its name up to the first dot. A ``dataset.json`` in the tar, or in the folder beside the
    shards, counts first. `UserError` for tars that are damaged, are cut off, hold links or devices, names that lead
    outside, or a name twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._is_folder = path.is_dir()
        shards = sorted(path.glob("*.tar")) if self._is_folder else [path]
        self._files = PartFiles(shards)
        self._members = Members(path, columns=3)
        for number, shard in enumerate(shards):
            prefix = f"{shard.stem}/" if self._is_folder else ""
            try:
                for name, offset, size in _members(self._files, number):
                    self._members.add(prefix + name, (number, offset, size))
            except UserError:
                raise
            except Exception as error:  # tarfile raises almost anything on damaged headers
                raise UserError(f"{shard} is not a readable tar ({error or type(error).__name__}); pack or copy it "
                                "again; a compressed one must be unpacked first.") from error
        self._members.complete()
        self.names = [name for name in self._members.names if is_image_name(name)]

    def _bytes(self, name: str, limit: int, most: int) -> bytes:
        if self._is_folder and name == DATASET_JSON:
            return read_file(self.path, name, limit, most)
        number, offset, size = self._members[name]
        check_length(self.path, name, size, most)
        return self._files.read(number, offset, size if limit < 0 else min(limit, size))

    def _has(self, name: str) -> bool:
        return (self._is_folder and name == DATASET_JSON and (self.path / name).is_file()) or name in self._members

    def json(self, name: str = DATASET_JSON) -> dict[str, Any] | None:
        """As of every source; without labels of its own, dataset.json gets those that lie beside the pictures."""
        content = super().json(name)
        if name != DATASET_JSON or (content or {}).get("labels") is not None:
            return content
        labels = [[image, label] for image in self.names if (label := self._label(image)) is not None]
        return {**(content or {}), "labels": labels} if labels else content

    def _label(self, image: str) -> int | None:
        key = image[:image.index(".", image.rfind("/") + 1)]
        for name in (f"{key}.cls", f"{key}.json"):
            if name in self._members and name != DATASET_JSON:
                text = self.read(name, most=_LABEL_BYTES)
                try:
                    value = int(text) if name.endswith(".cls") else parse_json(text)
                except ValueError as error:
                    raise UserError(f"{self.path}: {name} holds no label ({error}); correct or remove it.") from error
                return value.get("label") if isinstance(value, dict) else value
        return None

    def close(self) -> None:
        self._files.close()


def _members(files: PartFiles, number: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every file in a tar.

    Plain headers (POSIX.1-1988), and extended ones that hold times and owners only, are read here, in a tenth of
    tarfile's time; others by tarfile.
    """
    path, length, at = files.paths[number], files.size(number), 0
    while (head := files.read(number, at, _BLOCK)) != bytes(_BLOCK):
        kind, start = head[156:157], at + _BLOCK
        is_plain = not head[124] & 0x80 and head[257:262] == b"ustar"
        if is_plain and kind in (b"0", b"\0"):
            name, size = _plain(head)
        elif is_plain and kind in (b"x", b"g") and not _SPEAKING.search(files.read(number, start, _extent(head))):
            at = start + _padded(_extent(head))
            continue
        else:
            info = _extended(files.read(number, at, min(_WINDOW, length - at)))
            name, size, start = info.name, info.size, at + info.offset_data
            if info.isdir():
                check_names([name], path)
                at = start
                continue
            if not info.isreg() or info.issparse():
                raise UserError(f"{path}: entry {name!r} is a link or device, no file; pack the tar again without it.")
        if size < 0 or start + size > length:
            raise EOFError("it is cut off")
        at = start + _padded(size)
        yield name.removeprefix("./"), start, size


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _plain(head: bytes) -> tuple[str, int]:
    """Name of a file, and size of what follows, from a header."""
    # The check sum is that of all bytes, its own field taken as spaces. Adler's lower half is a sum of bytes, plus 1.
    total = (zlib.adler32(head) & 0xFFFF) - 1 - sum(head[148:156]) + 8 * 32
    if (total - int(head[148:156].strip(b" \0"), 8)) % 65521:
        raise ValueError("a header's check sum is wrong")
    name, folder = head[:100].partition(b"\0")[0], head[345:500].partition(b"\0")[0]
    full = folder + b"/" + name if folder else name
    return full.decode("utf-8", "surrogateescape"), int(head[124:136].strip(b" \0") or b"0", 8)


def _extent(head: bytes) -> int:
    """Bytes of an extended header."""
    size = _plain(head)[1]
    if not 0 <= size <= _LONGEST_HEADER:
        raise ValueError("an extended header is too long")
    return size


def _extended(window: bytes) -> tarfile.TarInfo:
    """What tarfile makes of the headers at the start of a piece of a tar; it can't be made to read more than that."""
    with tarfile.open(fileobj=io.BytesIO(window), mode="r:") as tar:
        info = tar.next()
    if info is None:
        raise ValueError("a header is damaged")
    return info
