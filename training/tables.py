"""Latents of a whole data set, computed once: in memory, or on disk where that would be too much of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from torch_utils.device import sent
from torch_utils.feature_store import FeatureStore
from training.dataset import ImageDataset

LIMIT_BYTES = 1 << 30  # of memory; larger tables become a file in the run directory


@torch.no_grad()
def encoded(net: Callable[[torch.Tensor], torch.Tensor], dataset: ImageDataset, indices: Sequence[int],
            device: torch.device, batch_size: int = 64) -> Iterator[torch.Tensor]:
    """What `net` makes of images [n, C, H, W] in [-1, 1], on the CPU, in batches of fixed size."""
    for start in range(0, len(indices), batch_size):
        images = torch.stack([dataset[i][0] for i in indices[start:start + batch_size]])
        yield net(sent(images, device).to(torch.float32) / 127.5 - 1).float().cpu()


class LatentTable:
    """Latents by index: ``table[indices]`` is float32 [n, *shape] on the CPU."""

    def __init__(self, rows: FeatureStore, shape: Sequence[int], count: int | None = None) -> None:
        """rows: [N, prod(shape)]. count: how many of them belong to the table; None = all."""
        self.rows, self.shape = rows, tuple(shape)
        self.count = len(rows) if count is None else count

    @classmethod
    def encode(cls, net: Callable[[torch.Tensor], torch.Tensor], dataset: ImageDataset, indices: Sequence[int],
               device: torch.device, folder: Path | None = None) -> LatentTable:
        """Of the images `indices`; `folder`: where a table above `LIMIT_BYTES` is kept, None = always in memory."""
        batches = encoded(net, dataset, indices, device)
        first = next(batches)
        shape = first.shape[1:]

        def flat() -> Iterator[torch.Tensor]:
            yield first.flatten(1)
            for batch in batches:
                yield batch.flatten(1)

        path = None if folder is None else folder / "latents.npy"
        return cls(FeatureStore.build(path, len(indices), shape.numel(), flat(), LIMIT_BYTES), shape)

    @classmethod
    @contextlib.contextmanager
    def temporary(cls, net: Callable[[torch.Tensor], torch.Tensor], dataset: ImageDataset,
                  device: torch.device) -> Iterator[LatentTable]:
        """Of all unflipped images of a data set; a file that it needs is removed in the end."""
        with tempfile.TemporaryDirectory() as folder:
            yield cls.encode(net, dataset, range(dataset.num_images), device, Path(folder))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: torch.Tensor | list[int]) -> torch.Tensor:
        return self.rows[torch.as_tensor(indices)].reshape(-1, *self.shape)

    def first(self, count: int) -> LatentTable:
        """A table of the first `count` latents, which shares them."""
        return LatentTable(self.rows, self.shape, count)

    def flat(self, count: int | None = None) -> Any:
        """The first `count` rows (all by default) as an array [count, D], for neighbours and clustering."""
        return self.rows.array[:self.count if count is None else count]

    def everything(self) -> torch.Tensor:
        """[N, *shape] in memory; for small tables."""
        return self[torch.arange(len(self))]
