"""The batches of CIFAR-10's python version. They are pickles: read as data, and nothing that they name is run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from dnnlib.util import UserError

_MAX_BATCH, _MAX_ARCHIVE = 64 << 20, 1 << 30  # bytes; CIFAR-10's batches have 31 MB, all of it 186 MB
_MAX_TUPLES = 100  # in a pickle of a batch, which has 8


@dataclass(frozen=True)
class Batch:
    """``pixels [n, 3072]`` uint8, channel after channel, and n labels from 0 to 255."""

    pixels: np.ndarray
    labels: list[int]


class _Array:
    """What numpy's pickles say of an array: its state, (version, shape, type, Fortran order, bytes)."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    """Loads the plain numpy arrays and strings of CIFAR-10's batches and nothing that could run code.

    Nothing of numpy is called either: its own functions trust what they are given.
    """

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        ("numpy.core.multiarray", "_reconstruct"): lambda *args: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *args: _Array(),
        ("numpy", "ndarray"): lambda *args: _Array(),
        ("numpy", "dtype"): lambda *args: _Array(),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        return self._ALLOWED[module, name]


def _unpickle(data: bytes) -> Any:
    """The content of a pickle of arrays; opcodes are counted first, since some make the unpickler take any memory."""
    tuples = 0
    for step, (opcode, arg, _) in enumerate(pickletools.genops(data)):
        tuples += opcode.name.startswith("TUPLE")
        # A memo grows to the highest number used; tuples in tuples overflow the stack when they are hashed.
        far = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(arg or 0) > step
        if far or tuples > _MAX_TUPLES:
            raise pickle.UnpicklingError("it is no pickle of arrays")
    return _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()


class _Bounded(io.BufferedReader):
    """An archive that is read in pieces, and not for ever: what unpacks to more is none of ours."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_BATCH:
            raise tarfile.ReadError("it unpacks to far more than CIFAR-10")
        return super().read(size)

    def seek(self, target: int, whence: int = os.SEEK_SET) -> int:
        if target > _MAX_ARCHIVE:
            raise tarfile.ReadError("it unpacks to far more than CIFAR-10")
        return super().seek(target, whence)


def read(path: Path, pattern: str) -> Iterator[tuple[str, Batch | list[str] | None]]:
    """Names and contents of the files in the archive whose names match: batches, and the list of class names (None if
    ``batches.meta`` has none). `UserError` for a damaged archive and for one that isn't CIFAR-10's."""
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=_unpacked(raw), mode="r:") as tar:
            for member in tar:
                name = os.path.basename(member.name)
                if not member.isfile() or not re.fullmatch(pattern, name):
                    continue
                file = tar.extractfile(member)
                assert file is not None
                content = _unpickle(file.read())
                part = _classes(content) if name == "batches.meta" else _batch(content)
                if part is None and name != "batches.meta":
                    raise UserError(f"{path}: {member.name} is not a CIFAR-10 batch.")
                yield name, part
    except UserError:
        raise
    except Exception as error:  # damaged archives and pickles raise almost anything
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__  # tarfile explains itself in six
        raise UserError(f"{path} is damaged ({reason}); download it again.") from error


def _unpacked(file: IO[bytes]) -> _Bounded:
    """A file's content, unpacked if it is a gzip file."""
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return _Bounded(gzip.GzipFile(fileobj=file) if is_gzip else file)  # type: ignore[arg-type]


def _classes(content: Any) -> list[str] | None:
    names = content.get(b"label_names") if isinstance(content, dict) else None
    if not isinstance(names, list):
        return None
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]


def _batch(content: Any) -> Batch | None:
    """What a batch holds; None if it isn't one."""
    data, labels = (content.get(b"data"), content.get(b"labels")) if isinstance(content, dict) else (None, None)
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        return None
    state: Any = getattr(data, "state", None)
    raw = state[4] if isinstance(state, tuple) and len(state) == 5 else None
    if not isinstance(raw, bytes) or state[1] != (len(labels), 3072) or len(raw) != 3072 * len(labels):
        return None
    return Batch(np.frombuffer(raw, np.uint8).reshape(-1, 3072), labels)
