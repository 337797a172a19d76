"""Batches of real images in an order that depends on (seed, images seen) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dnnlib import UserError
from torch_utils.rng import generator
from training.conditioning.base import Batch
from training.dataset import ImageDataset

Pair = Callable[[Sequence[int], Sequence[int]], list[int]]  # of `Conditioning.pair`
Draw = tuple[int, int, int]  # real image, image that its condition comes from, place in the stream
WHOLE = slice(None)


class EndlessSampler(Sampler[list[Draw]]):
    """Epoch after epoch of random permutations, in batches, starting at any position of the endless stream."""

    def __init__(self, length: int, batch_size: int, seed: int, start: int, pair: Pair | None = None,
                 share: slice = WHOLE) -> None:
        """length: size of the data set. start: images already drawn. pair: the real image for each condition.

        share: what this process takes of every batch, see `torch_utils.distributed.share`.
        """
        self.length, self.batch_size, self.seed, self.start, self.pair = length, batch_size, seed, start, pair
        self.share = share

    def _indices(self) -> Iterator[int]:
        epoch, offset = divmod(self.start, self.length)
        while True:
            order = torch.randperm(self.length, generator=generator(self.seed, "order", epoch)).tolist()
            yield from order[offset:]
            epoch, offset = epoch + 1, 0

    def __iter__(self) -> Iterator[list[Draw]]:
        indices, position = self._indices(), self.start
        while True:
            wanted = [next(indices) for _ in range(self.batch_size)]
            draws = range(position, position + self.batch_size)
            reals = wanted if self.pair is None else self.pair(wanted, draws)
            yield list(zip(reals, wanted, draws, strict=True))[self.share]
            position += self.batch_size


class _Drawn(Dataset):
    """The data set by `Draw`: (uint8 image, label, index of the condition, place in the stream)."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int, int, int]:
        real, origin, place = draw
        img, label, _ = self.dataset[real]
        return img, label, origin, place


def to_float(img_u8: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 → float32 in [-1, 1]."""
    return img_u8.to(torch.float32) / 127.5 - 1


def to_uint8(img: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] → uint8, rounded and clipped."""
    return (img.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def batches(dataset: ImageDataset, batch_size: int, seed: int, start: int,
            device: torch.device, workers: int, pair: Pair | None = None, share: slice = WHOLE) -> Iterator[Batch]:
    """Endless batches on `device`, beginning after `start` images; the same whatever `workers` is.

    share: which rows of every batch of `batch_size` images; all of them unless several processes share it.
    """
    loader = DataLoader(
        _Drawn(dataset), batch_sampler=EndlessSampler(len(dataset), batch_size, seed, start, pair, share),
        num_workers=workers, pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )
    try:
        for img_u8, labels, indices, draws in loader:
            yield Batch(img=to_float(img_u8.to(device, non_blocking=True)), labels=labels.to(device),
                        indices=indices, draws=draws)
    except UserError as error:
        # A worker's error arrives with its traceback in front; the last line is the message.
        raise UserError(error.message.strip().splitlines()[-1].removeprefix("dnnlib.util.UserError: ")) from error


def split(batch: Batch, size: int) -> list[Batch]:
    """Consecutive micro-batches of at most `size` images."""
    fields = (batch.img, batch.labels, batch.indices, batch.draws)
    return [Batch(*part) for part in zip(*(field.split(size) for field in fields), strict=True)]
