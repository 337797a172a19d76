"""Batches of real images in an order that depends on (seed, images seen) alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from dnnlib import UserError
from torch_utils.rng import generator
from training.conditioning.base import Batch
from training.dataset import ImageDataset


class EndlessSampler(Sampler[int]):
    """Epoch after epoch of random permutations, starting at any position of the endless stream."""

    def __init__(self, length: int, seed: int, start: int) -> None:
        """length: size of the data set. start: images already drawn from the stream."""
        self.length, self.seed, self.start = length, seed, start

    def __iter__(self) -> Iterator[int]:
        epoch, offset = divmod(self.start, self.length)
        while True:
            order = torch.randperm(self.length, generator=generator(self.seed, "order", epoch)).tolist()
            yield from order[offset:]
            epoch, offset = epoch + 1, 0


def to_float(img_u8: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 → float32 in [-1, 1]."""
    return img_u8.to(torch.float32) / 127.5 - 1


def to_uint8(img: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] → uint8, rounded and clipped."""
    return (img.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def batches(dataset: ImageDataset, batch_size: int, seed: int, start: int,
            device: torch.device, workers: int) -> Iterator[Batch]:
    """Endless batches on `device`, beginning after `start` images; the same whatever `workers` is."""
    loader = DataLoader(
        dataset, batch_size=batch_size, sampler=EndlessSampler(len(dataset), seed, start),
        num_workers=workers, pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )
    try:
        for img_u8, labels, indices in loader:
            yield Batch(
                img=to_float(img_u8.to(device, non_blocking=True)),
                labels=labels.to(device), indices=indices.to(device),
            )
    except UserError as error:
        # A worker's error arrives with its traceback in front; the last line is the message.
        raise UserError(error.message.strip().splitlines()[-1].removeprefix("dnnlib.util.UserError: ")) from error


def split(batch: Batch, size: int) -> list[Batch]:
    """Consecutive micro-batches of at most `size` images."""
    parts = zip(batch.img.split(size), batch.labels.split(size), batch.indices.split(size), strict=True)
    return [Batch(img, labels, indices) for img, labels, indices in parts]
