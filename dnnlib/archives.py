"""Published data sets in their own packing (CIFAR-10, MNIST) as image sources for conversion."""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dnnlib import cifar
from dnnlib.images import ImageSource, open_source
from dnnlib.tar_source import TarSource
from dnnlib.util import UserError

_DAMAGED = (OSError, EOFError, zlib.error, struct.error)
_MAX_MNIST = 10_000_000  # images; the largest relative has 814,255


class PackedSource(ImageSource):
    """Images that aren't files of their own. `payloads` yields them in the order of `names`, one at a time."""

    labels: dict[str, int] | None = None
    classes: list[str] | None = None


class _CifarSource(PackedSource):
    """CIFAR-10 python version: the 5 training batches of `cifar-10-python.tar.gz` (32x32, 10 classes)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.labels = {}
        for name, part in cifar.read(path, r"data_batch_\d+|batches\.meta"):
            if isinstance(part, cifar.Batch):
                self.labels |= {f"{name}/{index:05d}": label for index, label in enumerate(part.labels)}
            else:
                self.classes = part
        if not self.labels:
            remedy = "unpack it and give the folder as --source"
            raise UserError(f"{path} is not the CIFAR-10 python archive (no data_batch_1); {remedy}.")
        self.names = sorted(self.labels)

    def payloads(self, names: Sequence[str]) -> Iterator[bytes | np.ndarray | None]:
        # Each batch (30 MB) is read when its first image is asked for; `names` are sorted by batch.
        images: np.ndarray | None = None
        loaded = None
        for name in names:
            batch, index = name.split("/")
            if batch != loaded:
                _, part = next(cifar.read(self.path, re.escape(batch)))
                assert isinstance(part, cifar.Batch)
                images, loaded = part.pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), batch
            assert images is not None
            yield np.ascontiguousarray(images[int(index)])


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
                labels = file.read(min(label_count, _MAX_MNIST))
        except _DAMAGED as error:
            raise UserError(f"{path} or its labels are damaged ({error}); download them again.") from error
        sides = (self._rows, self._columns)
        sound = (magic, label_magic) == (2051, 2049) and min(sides) > 0 and max(sides) <= 4096
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


def open_any(path: str | os.PathLike) -> ImageSource:
    """Opens whatever `dataset_tool.py --source` takes, told apart by its name and content.

    What `open_source` opens (LSUN's lmdb folders among them), CIFAR-10 ``.tar.gz`` and MNIST
    ``images-idx3-ubyte.gz``, which are `PackedSource`. `UserError` if it's none of them or damaged.
    """
    path = Path(path)
    lower = path.name.lower()
    source: ImageSource
    if path.is_file() and lower.endswith(".tar"):
        source = TarSource(path)
        source = source if source.names else _CifarSource(path)
    elif path.is_file() and lower.endswith((".tar.gz", ".tgz")):
        source = _CifarSource(path)
    elif path.is_file() and lower.endswith(".gz"):
        source = _MnistSource(path)
    else:
        source = open_source(path)
    if not source.names:
        raise UserError(f"{path} contains no images.")
    return source
