"""Opens files of pickle, dill and `torch.save` whose content isn't trusted, as inert data.

Three containers: a plain pickle, in which every storage is a legacy ``torch.save`` file of its own; that legacy format
for the whole (several pickles, then the raw numbers); and the zip format. The file is mapped, not read.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, cast

from dnnlib import UserError
from torch_utils.inert_data import Budget, Damaged, Global, Unsafe
from torch_utils.inert_pickle import Call, Machine
from torch_utils.inert_torch import NAMES, Storage, calls, make_storage, take

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"  # of protocol 2 and later


class Foreign(Damaged):
    """A file of another kind."""


def read_inert(path: str | os.PathLike) -> Any:
    """What a file holds: numbers, text, containers, `Inert`, `Global`, `Tensor`. Nothing that it names is run.

    Raises `UserError` for a file that isn't there, is no pickle or damaged, or asks for more than data, naming that.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist; give the path of a snapshot (*.pkl).")
    if not os.path.getsize(path):
        raise UserError(f"{path} is empty; download it again.")
    try:
        return open_inert(path)
    except Unsafe as error:
        raise UserError(f"{path} is refused: it asks for {error}, which snapshots of the official code don't need. "
                        "Nothing of it was run. Take the file from its original source.") from error
    except Foreign as error:
        raise UserError(f"{path} is no snapshot: {error}.") from error
    except Damaged as error:
        raise UserError(f"{path} is truncated or damaged ({error}); download it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:  # of pickletools and zipfile
        raise UserError(f"{path} is truncated or damaged, or no snapshot at all; download it again.") from error


def open_inert(path: str | os.PathLike) -> Any:
    """`read_inert`, for callers with words of their own.

    Raises `Unsafe`, `Damaged`, another ValueError, OSError, EOFError, RuntimeError or `zipfile.BadZipFile`.
    """
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    budget = Budget(len(data))
    if data[:4] == ZIP_MAGIC:
        return _read_zip(path, budget)
    if data[:1] != PICKLE_MAGIC:
        raise Foreign("neither a pickle nor a file of torch.save")
    return _read_stream(cast("IO[bytes]", data), memoryview(data), budget, _calls(budget))


def _calls(budget: Budget) -> dict[str, Call]:
    return calls(budget, lambda args: _load_storage(take(args, bytes)[0], budget))


def _read_stream(file: IO[bytes], data: memoryview, budget: Budget, table: dict[str, Call]) -> Any:
    """A plain pickle, or a legacy file of torch.save, which begins with one that is a number.

    file: reads `data` from its start. table: calls that are allowed.
    """
    legacy = _Legacy()
    content = Machine(table, NAMES, budget).run(file)
    if type(content) is not int or content != LEGACY_MAGIC:
        return content
    plain = Machine({}, frozenset(), budget)
    system = plain.run(file) == LEGACY_PROTOCOL and plain.run(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Damaged("a file of another version of torch, or of a machine with another byte order")
    content = Machine(table, NAMES, budget, legacy.persistent).run(file)
    legacy.fill(plain.run(file), data, file.tell())
    return content


def _load_storage(raw: bytes, budget: Budget) -> Storage:
    """`torch.storage._load_from_bytes`: a legacy file that holds one storage and calls nothing."""
    content = _read_stream(io.BytesIO(raw), memoryview(raw), budget, {})
    if not isinstance(content, Storage):
        raise Damaged("a storage that is none")
    return content


class _Legacy:
    """Storages of a legacy file: made by their identifiers, filled when the numbers behind the pickles are reached."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}

    def persistent(self, identifier: tuple) -> Any:
        """``("storage", class, key, location, count, view)``, or ``("module", class, file, source)``: the class."""
        if identifier[:1] == ("module",):
            return take(identifier, str, Global)[1]
        _, dtype, key, _, count = take(identifier, str, Global, str, str, int)
        if identifier[0] != "storage" or identifier[5:] not in ((), (None,)):
            raise Unsafe("a persistent object that is no storage")
        return self.storages.setdefault(key, make_storage(dtype, count))

    def fill(self, keys: Any, data: memoryview, start: int) -> None:
        """Numbers of the storages `keys`, each behind its count of 8 bytes, from position `start` on."""
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in self.storages for key in keys):
            raise Damaged("a list of storages that doesn't fit")
        for key in keys:
            storage = self.storages[key]
            end = start + 8 + storage.count * storage.dtype.itemsize
            if len(data) < end or struct.unpack("<q", data[start:start + 8])[0] != storage.count:
                raise Damaged("too few numbers")
            storage.data, start = data[start + 8:end], end


def _read_zip(path: str | os.PathLike, budget: Budget) -> Any:
    """The zip format of torch.save: ``NAME/data.pkl``, and ``NAME/data/KEY`` for every storage."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if Path(name).name == "data.pkl"]
        if len(pickles) != 1:
            raise Damaged("a zip archive, but not of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        known = set(archive.namelist())

        def read(name: str) -> bytes:
            if name not in known or archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise Damaged("a missing or compressed part")
            entry = archive.getinfo(name)
            if entry.compress_size != entry.file_size:  # zipfile would take memory for the larger one
                raise Damaged("a part of two sizes")
            budget.spend(size=entry.file_size)
            return archive.read(name)

        if f"{folder}byteorder" in known and read(f"{folder}byteorder") != b"little":
            raise Damaged("a file of a machine with another byte order")
        storages: dict[str, Storage] = {}

        def persistent(identifier: tuple) -> Storage:
            kind, dtype, key, _, count = take(identifier, str, Global, str, str, int)
            if kind != "storage":
                raise Unsafe("a persistent object that is no storage")
            if key not in storages:
                storage = make_storage(dtype, count)
                storage.data = memoryview(read(f"{folder}data/{key}"))
                if len(storage.data) < storage.count * storage.dtype.itemsize:
                    raise Damaged("too few numbers")
                storages[key] = storage
            return storages[key]

        return Machine(_calls(budget), NAMES, budget, persistent).run(io.BytesIO(read(pickles[0])))
