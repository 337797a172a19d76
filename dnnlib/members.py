"""Parts of archives: their names and places in little memory, checked; and files read at any place by any process."""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from dnnlib.util import UserError

_MOST_OPEN = 256  # files of one source; systems allow a process 1,024 or fewer


def check_names(names: Sequence[str], path: Path) -> None:
    """`UserError` for names of parts that are absolute or lead outside of the archive `path`."""
    joined = "\n" + "\n".join(names)
    if not any(odd in joined for odd in ("..", ":", "\\", "\n/")):  # nearly all; one by one takes seconds
        return
    for name in names:
        if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            raise UserError(f"{path}: entry {name!r} leads outside of the archive; pack it again without that.")


class Members:
    """The parts of an archive: `names`, sorted, and for each a row of integers that says where it lies.

    ``members[name]`` is its row; KeyError if there is none. A part costs its name and 8 bytes for each column, where
    a dictionary of objects, as zipfile's, takes ten times as much.
    """

    def __init__(self, path: Path, columns: int) -> None:
        self.path, self.names, self._columns = path, list[str](), columns
        self._rows = array("q")
        self._table = np.empty((0, columns), np.int64)

    def add(self, name: str, row: Sequence[int]) -> None:
        """One part more."""
        self.names.append(name)
        self._rows.extend(row)

    def complete(self) -> None:
        """After the last `add`: sorts. `UserError` if a name leads outside of the archive, or occurs twice."""
        check_names(self.names, self.path)
        self._table = np.frombuffer(self._rows, np.int64).reshape(-1, self._columns)
        if not all(a < b for a, b in pairwise(self.names)):  # archives are mostly in order already
            order = sorted(range(len(self.names)), key=self.names.__getitem__)
            self.names = [self.names[index] for index in order]
            self._table = self._table[order]
        for a, b in pairwise(self.names):
            if a == b:
                raise UserError(f"{self.path}: entry {a!r} occurs twice; pack the archive again with unique names.")

    def __contains__(self, name: str) -> bool:
        return self._place(name) is not None

    def __getitem__(self, name: str) -> list[int]:
        place = self._place(name)
        if place is None:
            raise KeyError(f"there is no {name}")
        return self._table[place].tolist()

    def _place(self, name: str) -> int | None:
        place = bisect_left(self.names, name)
        return place if place < len(self.names) and self.names[place] == name else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": array("q")}


class PartFiles:
    """Files read at any place. Forked processes may share it, since no position is kept; spawned ones open anew."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._opened: dict[int, IO[bytes]] = {}

    def read(self, number: int, offset: int, size: int) -> bytes:
        """`size` bytes of file `number` from `offset` on; EOFError if there are fewer."""
        file = self._opened.get(number)
        if file is None:
            if len(self._opened) >= _MOST_OPEN:
                self._opened.pop(next(iter(self._opened))).close()
            file = self._opened[number] = open(self.paths[number], "rb", buffering=0)  # noqa: SIM115  (stays open)
        data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise EOFError(f"{self.paths[number].name} is cut off")
        return data

    def size(self, number: int) -> int:
        """Bytes of file `number`."""
        return self.paths[number].stat().st_size

    def close(self) -> None:
        """Closes what is open; it is opened again when it is read once more."""
        for file in self._opened.values():
            file.close()
        self._opened = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "_opened": {}}
