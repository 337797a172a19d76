"""LMDB folders whose values are encoded pictures: those of LSUN, and those that dataset_tool.py writes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

from dnnlib.images import DATASET_JSON, ImageSource, check_length
from dnnlib.members import check_names
from dnnlib.util import UserError

if TYPE_CHECKING:
    import lmdb

_META, _MAGIC = 152, 0xBEEFC0DE.to_bytes(4, sys.byteorder)  # bytes of a page's head with its meta data
_REMEDY = "copy or download it again"


def import_lmdb() -> Any:
    """The package, which only sets of this kind need."""
    try:
        import lmdb
    except ImportError as error:
        raise UserError("LMDB folders need a package that isn't installed: pip install lmdb") from error
    return lmdb


class _Opened:
    """An environment with a transaction for reading, of one process."""

    # liblmdb opens a folder only once in a process, and data sets may be opened twice.
    shared: ClassVar[WeakValueDictionary[str, _Opened]] = WeakValueDictionary()

    def __init__(self, path: str) -> None:
        self.process, self._data = os.getpid(), os.path.join(path, "data.mdb")
        self.length = whole_length(self._data)
        if not self.length:
            raise UserError(f"{path} is not a readable lmdb folder (truncated, or none); {_REMEDY}.")
        self.environment: lmdb.Environment = import_lmdb().open(
            path, readonly=True, lock=False, readahead=False, max_readers=1)
        self.transaction = self.environment.begin(buffers=True)

    @classmethod
    def of(cls, path: str) -> _Opened:
        """That of the folder at an absolute `path`, opened if need be."""
        opened = cls.shared.get(path)
        if opened is not None and opened.process != os.getpid():  # inherited by a fork
            opened.close()
            opened = None
        if opened is not None:
            opened.check()
        else:
            opened = cls.shared[path] = cls(path)
        return opened

    def check(self) -> None:
        """EOFError if the file has become shorter: to read what is mapped of it would end the process."""
        if os.stat(self._data).st_size < self.length:
            raise EOFError("data.mdb has been cut off")

    def close(self) -> None:
        """For this process; another one that has inherited it or passed it on keeps its own."""
        self.transaction.abort()
        self.environment.close()


class LmdbSource(ImageSource):
    """All values but that of ``dataset.json``; names are the keys, as latin-1. `UserError` for damaged folders."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._opened: _Opened | None = None
        lmdb = import_lmdb()
        try:
            keys = self._open().transaction.cursor().iternext(values=False)
            self.names = [str(key, "latin1") for key in keys]
        except (lmdb.Error, OSError, EOFError) as error:
            raise UserError(f"{path} is not a readable lmdb folder ({error}); {_REMEDY}.") from error
        check_names(self.names, path)
        self._has_json = DATASET_JSON in self.names
        self.names = sorted(name for name in self.names if name != DATASET_JSON)

    def _open(self) -> _Opened:
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = _Opened.of(os.path.realpath(self.path))
        return self._opened

    def _bytes(self, name: str, limit: int, most: int) -> bytes:
        opened = self._open()
        opened.check()
        value = opened.transaction.get(name.encode("latin1"))
        if value is None:
            raise KeyError(f"there is no {name}")
        check_length(self.path, name, len(value), most)
        return bytes(value if limit < 0 else value[:limit])

    def _has(self, name: str) -> bool:
        return name == DATASET_JSON and self._has_json

    def close(self) -> None:
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def whole_length(path: str) -> int:
    """Bytes that an lmdb file speaks of; 0 if it hasn't got them. The library maps them unseen and would crash."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        first = file.read(_META)
        page = int.from_bytes(first[40:44], sys.byteorder)
        file.seek(page)
        second = file.read(_META)
    length = 0
    for meta in (first, second):  # two, used in turn
        length = max(length, (int.from_bytes(meta[136:144], sys.byteorder) + 1) * page)
        if meta[16:20] != _MAGIC or not 512 <= page <= 65536 or length > size:
            return 0
    return length
