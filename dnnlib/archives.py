"""Published data sets in their own packing (CIFAR-10, MNIST, LSUN) as image sources for conversion."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dnnlib.images import ImageSource, open_source
from dnnlib.util import UserError

_DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, pickle.UnpicklingError, struct.error)


class PackedSource(ImageSource):
    """Images that aren't files of their own. `payloads` yields them in the order of `names`, one at a time."""

    labels: dict[str, int] | None = None
    classes: list[str] | None = None


class _ArrayUnpickler(pickle.Unpickler):
    """Loads the plain numpy arrays and strings of CIFAR-10's batches and nothing that could run code."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        return self._ALLOWED[module, name]


class _CifarSource(PackedSource):
    """CIFAR-10 python version: the 5 training batches of `cifar-10-python.tar.gz` (32x32, 10 classes)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.labels = {}
        for name, content in self._members(r"data_batch_\d+|batches\.meta"):
            if name == "batches.meta":
                self.classes = [_text(c) for c in content.get(b"label_names", [])]
                continue
            for index, label in enumerate(content[b"labels"]):
                self.labels[f"{name}/{index:05d}"] = int(label)
        if not self.labels:
            remedy = "unpack it and give the folder as --source"
            raise UserError(f"{path} is not the CIFAR-10 python archive (no data_batch_1); {remedy}.")
        self.names = sorted(self.labels)

    def _members(self, pattern: str) -> Iterator[tuple[str, dict[bytes, Any]]]:
        try:
            with tarfile.open(self.path, "r:*") as tar:
                for member in tar:
                    name = os.path.basename(member.name)
                    file = tar.extractfile(member) if re.fullmatch(pattern, name) else None
                    if file is None:
                        continue
                    content = _ArrayUnpickler(file, encoding="bytes").load()
                    batch = name != "batches.meta"
                    if not isinstance(content, dict) or (batch and not _is_batch(content)):
                        raise UserError(f"{self.path}: {member.name} is not a CIFAR-10 batch.")
                    yield name, content
        except _DAMAGED as error:
            raise UserError(f"{self.path} is damaged ({_reason(error)}); download it again.") from error

    def payloads(self, names: Sequence[str]) -> Iterator[bytes | np.ndarray | None]:
        # Each batch (30 MB) is read when its first image is asked for; `names` are sorted by batch.
        images: np.ndarray | None = None
        loaded = None
        for name in names:
            batch, index = name.split("/")
            if batch != loaded:
                _, content = next(self._members(re.escape(batch)))
                images, loaded = content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), batch
            assert images is not None
            yield np.ascontiguousarray(images[int(index)])


def _reason(error: BaseException) -> str:
    """The error's first line (tarfile explains itself in six)."""
    return str(error).partition("\n")[0].rstrip(":") or type(error).__name__


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _is_batch(content: dict[bytes, Any]) -> bool:
    data, labels = content.get(b"data"), content.get(b"labels")
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
        return False
    return isinstance(labels, list) and len(labels) == len(data) and all(type(x) is int for x in labels)


class _MnistSource(PackedSource):
    """MNIST and its relatives in IDX files: `*images-idx3-ubyte.gz` with `*labels-idx1-ubyte.gz` beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        labels_path = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        if labels_path == path:
            raise UserError(f"{path} is not a MNIST images file (*images-idx3-ubyte.gz).")
        if not labels_path.is_file():
            raise UserError(f"{labels_path} does not exist; --source {path.name} needs its labels beside it.")
        try:
            with gzip.open(path) as file:
                magic, count, self._rows, self._columns = struct.unpack(">4I", file.read(16))
            with gzip.open(labels_path) as file:
                label_magic, label_count = struct.unpack(">2I", file.read(8))
                labels = file.read(label_count)
        except _DAMAGED as error:
            raise UserError(f"{path} or its labels are damaged ({error}); download them again.") from error
        sound = (magic, label_magic) == (2051, 2049) and 0 < max(self._rows, self._columns) <= 4096
        if not sound or not count == label_count == len(labels):
            raise UserError(f"{path} and {labels_path.name} do not fit together as MNIST images and labels.")
        self.names = [f"{index:08d}" for index in range(count)]
        self.labels = {name: int(label) for name, label in zip(self.names, labels, strict=True)}
        self.classes = [str(digit) for digit in range(max(labels, default=0) + 1)]

    def payloads(self, names: Sequence[str]) -> Iterator[bytes | np.ndarray | None]:
        size = self._rows * self._columns
        margin = 2 if (self._rows, self._columns) == (28, 28) else 0  # to 32x32, as in the official tools
        try:
            with gzip.open(self.path) as file:
                for name in names:
                    file.seek(16 + int(name) * size)  # only ever forwards: `names` are sorted
                    data = file.read(size)
                    if len(data) < size:
                        raise EOFError(f"it ends before image {name}")
                    yield np.pad(np.frombuffer(data, np.uint8).reshape(self._rows, self._columns), margin)
        except _DAMAGED as error:
            raise UserError(f"{self.path} is damaged ({error}); download it again.") from error


class _LsunSource(PackedSource):
    """An LSUN category: an lmdb folder whose values are encoded images. It has no labels."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with _LmdbReader(path) as transaction:
            self.names = sorted(key.decode("latin1") for key in transaction.cursor().iternext(values=False))

    def payloads(self, names: Sequence[str]) -> Iterator[bytes | np.ndarray | None]:
        with _LmdbReader(self.path) as transaction:
            for name in names:
                yield bytes(transaction.get(name.encode("latin1")))


class _LmdbReader:
    """Context manager: a read transaction on an lmdb folder; lmdb's errors become `UserError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        import lmdb  # only LSUN needs it

        self._error = lmdb.Error
        try:
            self._env = lmdb.open(str(self._path), readonly=True, lock=False, readahead=False, max_readers=1)
            self._transaction = self._env.begin()
        except (lmdb.Error, OSError) as error:
            raise self._damaged(error) from error
        return self._transaction

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._transaction.abort()
        self._env.close()
        if isinstance(error, self._error):
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> UserError:
        return UserError(f"{self._path} is not a readable lmdb folder ({error}); download it again.")


def open_any(path: str | os.PathLike) -> ImageSource:
    """Opens whatever `dataset_tool.py --source` takes, told apart by its name and content.

    Folder or zip of images, CIFAR-10 ``.tar.gz``, MNIST ``images-idx3-ubyte.gz``, LSUN lmdb folder. The last
    three are `PackedSource`. `UserError` if it's none of them or damaged.
    """
    path = Path(path)
    lower = path.name.lower()
    source: ImageSource
    if path.is_dir() and (path / "data.mdb").is_file():
        source = _LsunSource(path)
    elif path.is_file() and lower.endswith((".tar.gz", ".tgz", ".tar")):
        source = _CifarSource(path)
    elif path.is_file() and lower.endswith(".gz"):
        source = _MnistSource(path)
    else:
        source = open_source(path)
    if not source.names:
        raise UserError(f"{path} contains no images.")
    return source
