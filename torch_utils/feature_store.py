"""Feature vectors of a whole data set: in memory while small, else in a file of which only the rows in use are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from dnnlib import UserError, atomic_write, format_bytes

_BLOCK = 8192
_MAGIC = b"\x93NUMPY\x01\x00"  # of version 1.0, with a header of up to 64 KiB


class FeatureStore:
    """Read-only float32 features ``[N, D]``, one row per image, as the array `array` (a memory map for large sets).

    ``store[indices]`` gives the rows as a new tensor ``[n, D]``; ``len(store)`` is N, `dim` is D.
    `knn`, `kmeans`, `fit_gmm` and `representatives` take a store as their features.
    """

    def __init__(self, array: np.ndarray) -> None:
        """Wraps `array [N, D]` float32 and makes it read-only."""
        if array.ndim != 2 or array.dtype != np.float32:
            raise ValueError(f"features are float32 [N, D], not {array.dtype} {list(array.shape)}")
        array.flags.writeable = False
        self.array = array
        self.dim: int = array.shape[1]

    @classmethod
    def open(cls, path: str | os.PathLike) -> FeatureStore:
        """The store that `build` left under `path`, as a memory map. Raises `UserError` for anything else."""
        try:
            with open(path, "rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise ValueError("another version, whose header may claim to be of any length")
            return cls(np.load(path, mmap_mode="r", allow_pickle=False))
        except Exception as error:  # numpy reads the header as Python's syntax, which raises nearly anything
            raise UserError(f"{path} is not a feature file; delete it and run the same command again") from error

    @classmethod
    def build(cls, path: str | os.PathLike | None, count: int, dim: int, batches: Iterable[torch.Tensor],
              limit_bytes: int = 2**30) -> FeatureStore:
        """Collects `batches` of features ``[n, dim]`` that together have `count` rows.

        Above `limit_bytes` (default 1 GiB) they are written to `path` (.npy) batch by batch, under a temporary
        name until they are complete, so that a failure leaves nothing behind. Smaller sets, and all sets if
        `path` is None, stay in memory. Raises `UserError` if the disk has no room, ValueError if the batches
        don't add up to ``[count, dim]``.
        """
        size = count * dim * 4
        if path is None or size <= limit_bytes:
            array, end = np.empty((count, dim), np.float32), 0
            for rows in _checked(batches, count, dim):
                array[end:end + len(rows)] = rows
                end += len(rows)
            return cls(array)
        _check_space(Path(path), size)
        with atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)})
            for rows in _checked(batches, count, dim):
                file.write(rows.astype("<f4", copy=False).tobytes())
        return cls.open(path)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, indices: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Rows ``[n, D]`` of the images `indices [n]`, as a copy."""
        return torch.from_numpy(np.array(self.array[np.asarray(indices)]))


Features = torch.Tensor | np.ndarray | FeatureStore


def to_array(features: Features) -> np.ndarray:
    """`features [N, D]` as an array, without a copy if they are on the CPU; a memory map stays one."""
    if isinstance(features, FeatureStore):
        return features.array
    return features.detach().cpu().numpy() if isinstance(features, torch.Tensor) else features


def sample_rows(array: np.ndarray, limit: int, rng: torch.Generator, unit: bool = False) -> np.ndarray:
    """At most `limit` rows of `array`, drawn without replacement, as contiguous float32 ``[n, D]``.

    They are divided by their norms if `unit`.
    """
    if len(array) <= limit and not unit:
        return np.ascontiguousarray(array, np.float32)
    # In the order of the file: a disk reads that several times faster.
    chosen = torch.randperm(len(array), generator=rng)[:limit].sort().values.numpy()
    rows = np.empty((len(chosen), array.shape[1]), np.float32)
    for begin in range(0, len(chosen), _BLOCK):
        part = array[chosen[begin:begin + _BLOCK]]
        rows[begin:begin + _BLOCK] = unit_rows(part) if unit else part
    return rows


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """A float32 copy of `rows [n, D]` with norm 1; zero rows stay zero."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    assert np.isfinite(norms).all(), "features are finite"
    return np.ascontiguousarray(rows / np.maximum(norms, 1e-12), np.float32)


def _checked(batches: Iterable[torch.Tensor], count: int, dim: int) -> Iterator[np.ndarray]:
    """The batches as float32 arrays; ValueError unless they have `dim` columns and `count` rows in all."""
    total = 0
    for batch in batches:
        total += len(batch)
        if batch.ndim != 2 or batch.shape[1] != dim or total > count:
            raise ValueError(f"batch of shape {list(batch.shape)}, {total} rows so far; expected {count} of {dim}")
        yield batch.detach().cpu().float().numpy()
    if total != count:
        raise ValueError(f"{total} rows of features, expected {count}")


def _check_space(path: Path, size: int) -> None:
    """Raises `UserError` if the disk that will hold `path` has less than `size` bytes free."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(f"Cannot write {path}: the features of the data set need {format_bytes(size)}, "
                        f"{format_bytes(free)} are free; free some space or choose another folder")
