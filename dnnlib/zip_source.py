"""Zips of pictures, with up to millions of entries.

zipfile keeps an object of nearly a kilobyte for every entry and takes 25 s to open a million, in every process anew;
here a row of numbers is kept, and opening takes a tenth. The format is that of PKWARE's APPNOTE 6.3.9.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from dnnlib.images import ImageSource, check_length, is_image_name
from dnnlib.members import Members, PartFiles
from dnnlib.util import UserError

_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
_ENTRY = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR64 = struct.Struct("<4sLQL")  # 4.3.15
_END = struct.Struct("<4s4H2LH")  # 4.3.16
_LARGE = 0xFFFFFFFF  # stands for a number of 64 bits in the extra field
_UTF8, _ENCRYPTED = 0x800, 1  # flags, 4.4.4
_STORED, _DEFLATED = 0, 8  # methods, 4.4.5


class ZipSource(ImageSource):
    """The pictures of a zip, stored or deflated. `UserError` for hostile and for damaged ones; see `open_source`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = PartFiles([path])
        self._members = Members(path, columns=5)
        try:
            self._list()
        except (OSError, EOFError, ValueError, OverflowError, struct.error) as error:
            raise UserError(f"{path} is not a readable zip file ({error}); pack or copy it again.") from error
        self._members.complete()
        self.names = [name for name in self._members.names if is_image_name(name)]

    def _directory(self) -> tuple[int, int, int]:
        """Where the central directory begins, its bytes, and how far the archive is from the file's start."""
        size = self._file.size(0)
        first = max(size - (1 << 16) - _END.size, 0)  # a comment of up to 64 KiB may follow
        tail = self._file.read(0, first, size - first)
        at = tail.rfind(b"PK\5\6")
        if at < 0:
            raise ValueError("its end is missing")
        *_, length, offset, _ = _END.unpack_from(tail, at)
        end = first + at
        if end >= _LOCATOR64.size + _END64.size:
            before = self._file.read(0, end - _LOCATOR64.size - _END64.size, _LOCATOR64.size + _END64.size)
            if before.startswith(b"PK\6\6") and before[_END64.size:].startswith(b"PK\6\7"):
                *_, length, offset = _END64.unpack_from(before)
                end -= len(before)
        start = end - length
        if start < 0 or start < offset:
            raise ValueError("its list of entries is damaged")
        return start, length, start - offset

    def _list(self) -> None:
        start, length, shift = self._directory()
        entries, at = self._file.read(0, start, length), 0
        while at < length:
            mark, _, _, flags, method, _, _, crc, packed, size, n, m, k, *_, offset = _ENTRY.unpack_from(entries, at)
            at += _ENTRY.size
            raw = entries[at:at + n]
            name = raw.decode("ascii" if raw.isascii() else "utf-8" if flags & _UTF8 else "cp437")
            if _LARGE in (size, packed, offset):
                size, packed, offset = _large(entries[at + n:at + n + m], size, packed, offset)
            at += n + m + k
            if mark != b"PK\1\2" or offset + shift + _LOCAL.size + packed > start:
                raise ValueError("its list of entries is damaged")
            if flags & _ENCRYPTED:
                raise UserError(f"{self.path}: entry {name!r} is encrypted; pack the zip again without a password.")
            if method == _STORED and packed != size:
                raise ValueError(f"entry {name!r} has two sizes")
            if method not in (_STORED, _DEFLATED):
                raise UserError(f"{self.path}: entry {name!r} is packed by an unusual method; pack the zip again with "
                                "the usual one (deflate).")
            self._members.add(name, (offset + shift, packed, size, crc, method))

    def _bytes(self, name: str, limit: int, most: int) -> bytes:
        offset, packed, size, crc, method = self._members[name]
        check_length(self.path, name, max(size, packed), most)
        head = _LOCAL.unpack(self._file.read(0, offset, _LOCAL.size))
        if head[0] != b"PK\3\4":
            raise ValueError("its header is damaged")
        start, wanted = offset + _LOCAL.size + head[-2] + head[-1], size if limit < 0 else min(limit, size)
        if method == _STORED:
            data = self._file.read(0, start, wanted)
        else:  # never without a bound, and 0 would be none
            data = zlib.decompressobj(-15).decompress(self._file.read(0, start, packed), wanted) if wanted else b""
        if len(data) < wanted or (wanted == size and zlib.crc32(data) != crc):
            raise ValueError("its check sum is wrong")
        return data

    def _has(self, name: str) -> bool:
        return name in self._members

    def close(self) -> None:
        self._file.close()


def _large(extra: bytes, *numbers: int) -> list[int]:
    """Size, packed size and offset, those that say so taken from the extra field (4.5.3), in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(values, number) if number == _LARGE else number for number in numbers]
        at += 4 + length
    return list(numbers)
