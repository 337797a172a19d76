"""Reads what `torch.save` made of a checkpoint, by narrower rules than torch's own reader.

A checkpoint needs few things: a dictionary of text and a list of dense tensors, in a zip file without compression.
So no file can run code, or take much more memory than its own size. Check sums are compared: a changed bit is found.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from typing import Any

import numpy as np
import torch

from torch_utils.inert_data import Budget, Damaged, Global, Unsafe
from torch_utils.inert_pickle import Machine

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}
_NAMES = frozenset(f"torch.{name}" for name in DTYPES)
_CHUNK = 1 << 20
_MAX_SIDES, _MAX_SIDE = 16, 1 << 40


class _Storage:
    """Where the numbers of tensors are: an entry of the archive."""

    def __init__(self, entry: zipfile.ZipInfo, dtype: torch.dtype) -> None:
        self.entry, self.dtype = entry, dtype
        self.count = entry.file_size // dtype.itemsize
        self.values: torch.Tensor | None = None


class _Reader:
    """One file being read."""

    def __init__(self, path: str | os.PathLike, archive: zipfile.ZipFile, with_tensors: bool) -> None:
        self.archive, self.with_tensors = archive, with_tensors
        size = os.path.getsize(path)
        self.budget, self.bytes_left = Budget(size), 2 * size
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        if len(self.entries) < len(archive.infolist()):
            raise Damaged("a part occurs twice")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in self.entries.values()):
            raise Damaged("a part is compressed or encrypted")
        if any(entry.compress_size != entry.file_size for entry in self.entries.values()):
            raise Damaged("a part has two sizes")  # zipfile would take memory for the larger one
        if sum(entry.file_size for entry in self.entries.values()) > size:
            raise Damaged("its parts are larger than the file")
        pickles = [name for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Unsafe("it is a zip file, but not of torch.save")
        self.folder = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, _Storage] = {}

    def content(self) -> Any:
        """What was saved; tensors are None if they aren't wanted."""
        order = self.folder + "byteorder"
        if order in self.entries and self.archive.read(order) != sys.byteorder.encode():
            raise Damaged("it comes from a machine with another byte order")
        calls = {"collections.OrderedDict": self._empty, "torch._utils._rebuild_tensor_v2": self._tensor}
        machine = Machine(calls, _NAMES, self.budget, self._storage)
        return machine.run(io.BytesIO(self.archive.read(self.folder + "data.pkl")))

    def _empty(self, args: tuple) -> None:
        """The backward hooks of a tensor, of which a checkpoint has none."""
        if args:
            raise Damaged("a tensor has hooks")

    def _storage(self, identifier: tuple) -> _Storage:
        """``("storage", class, key, device, count)``."""
        if len(identifier) != 5 or identifier[0] != "storage" or not isinstance(identifier[1], Global):
            raise Unsafe("a persistent object that is no storage")
        _, kind, key, _, count = identifier
        dtype, entry = DTYPES.get(kind.name), self.entries.get(f"{self.folder}data/{key}")
        if entry is None or dtype is None or type(count) is not int or entry.file_size != count * dtype.itemsize:
            raise Damaged("the numbers of a tensor are missing or have another length")
        storage = self.storages.setdefault(entry.filename, _Storage(entry, dtype))
        if storage.dtype != dtype:
            raise Damaged("numbers that are of two types")
        return storage

    def _tensor(self, args: tuple) -> torch.Tensor | None:
        """``(storage, offset, size, stride, …)``; as `checkpoint.save` makes them they lie in one piece, row by row."""
        if len(args) < 4 or not isinstance(args[0], _Storage):
            raise Damaged("a tensor has no numbers")
        storage, offset, size, stride = args[:4]
        if not isinstance(size, tuple) or not isinstance(stride, tuple) or not len(size) == len(stride) <= _MAX_SIDES:
            raise Damaged("the shape of a tensor")
        if not all(type(number) is int and 0 <= number < _MAX_SIDE for number in (offset, *size)):
            raise Damaged("the shape of a tensor")
        count = 1
        for side, step in zip(reversed(size), reversed(stride), strict=True):
            if side > 1 and step != count:
                raise Damaged("a tensor with gaps or repetitions")
            count *= side
        self.bytes_left -= count * storage.dtype.itemsize
        if offset + count > storage.count or self.bytes_left < 0:
            raise Damaged("a tensor is larger than its numbers")
        return self._values(storage)[offset:offset + count].view(size) if self.with_tensors else None

    def _values(self, storage: _Storage) -> torch.Tensor:
        """All numbers of a storage, read once."""
        if storage.values is None:
            raw = torch.empty(storage.entry.file_size, dtype=torch.uint8)
            target = raw.numpy()
            with self.archive.open(storage.entry) as file:
                for start in range(0, len(target), _CHUNK):
                    piece = file.read(_CHUNK)
                    target[start:start + len(piece)] = np.frombuffer(piece, np.uint8)
            # Other bytes than 0 and 1 are no truth values, whatever a file says.
            storage.values = raw != 0 if storage.dtype == torch.bool else raw.view(storage.dtype)
        return storage.values


def read(path: str | os.PathLike, with_tensors: bool = True) -> Any:
    """The nest of containers, text, numbers and CPU tensors that `torch.save` wrote under `path`.

    Every tensor is dense, contiguous and of one of `DTYPES`. with_tensors: False leaves None in their place and doesn't
    read them. Raises `Unsafe` for a file that holds anything else, `Damaged`, ValueError, `zipfile.BadZipFile` or
    another error of zipfile's for a damaged one.
    """
    with zipfile.ZipFile(path) as archive:
        return _Reader(path, archive, with_tensors).content()
