"""Batches of real images in an order that depends on (seed, images seen) alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from dnnlib import UserError
from torch_utils import distributed
from torch_utils.device import sent
from torch_utils.rng import generator
from training.conditioning.base import Batch
from training.dataset import ImageDataset
from training.skipping import Draw, Drawn, Pair, Substitutes

WHOLE = slice(None)
MOST_WORKERS = 8  # by default: more wait for memory and disk
PATIENCE = 20.0  # seconds without a batch after which loader workers count as lost
DEATH = "has died (killed, or out of memory)"
REMEDY = "; continue from the newest snapshot with --resume, and --workers 0 if it happens again."


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


def to_float(img_u8: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 → float32 in [-1, 1]."""
    return img_u8.to(torch.float32) / 127.5 - 1


def to_uint8(img: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] → uint8, rounded and clipped."""
    return (img.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def default_workers(cached: bool, device: torch.device) -> int:
    """Loader workers for ``--workers auto``.

    None if images come decoded from memory, or this process has a core for itself alone. One for training on the CPU,
    whose step takes hundreds of times longer than reading its images: it hides a slow disk. Otherwise as many as this
    process has cores beside its own, up to `MOST_WORKERS`.
    """
    own = _cores() // distributed.sharing(torch.device("cpu"))
    if cached or own < 2:
        return 0
    return 1 if device.type == "cpu" else min(own - 1, MOST_WORKERS)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(dataset: ImageDataset, batch_size: int, seed: int, start: int,
            device: torch.device, workers: int, pair: Pair | None = None, share: slice = WHOLE,
            substitutes: Substitutes | None = None) -> Iterator[Batch]:
    """Endless batches on `device`, beginning after `start` images; the same whatever `workers` is.

    share: which rows of every batch of `batch_size` images; all of them unless several processes share it.
    substitutes: told of images that can't be read, and what it says of the batch holds until the next one.
    `UserError` if too many images can't be read; or workers give none for `PATIENCE`; see `lost_workers`.
    """
    loader = DataLoader(
        Drawn(dataset), batch_sampler=EndlessSampler(len(dataset), batch_size, seed, start, pair, share),
        num_workers=workers, pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )
    substitutes = substitutes or Substitutes(dataset, seed, pair)
    for img_u8, labels, origins, draws, reals, problems in _watched(loader, dataset) if workers else loader:
        substitutes.fill(img_u8, labels, origins, draws, reals, problems)
        yield Batch(img=to_float(sent(img_u8, device)), labels=sent(labels, device),
                    indices=origins, draws=draws)


def _kill_workers() -> None:
    if threading.current_thread() is threading.main_thread():
        # Or PyTorch tells of each of these deaths, in the midst of anything.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


def _watched(loader: DataLoader, dataset: ImageDataset) -> Iterator[Any]:
    """What `loader` gives; `UserError` if it gives nothing for `PATIENCE`, or a worker's connection breaks.

    Its own timeout would wait for ever for a worker that is suspended in the middle of a batch.
    """
    stream, hangs = iter(loader), threading.Event()

    def end() -> None:
        hangs.set()
        _kill_workers()

    while True:
        timer = threading.Timer(PATIENCE, end)
        timer.daemon = True
        timer.start()
        try:
            batch = next(stream)
        except (RuntimeError, OSError, EOFError) as error:  # whatever it makes of a killed worker
            if not hangs.is_set() and isinstance(error, RuntimeError):
                raise
            _kill_workers()
            what = f"hangs, no batch in {PATIENCE:g} s" if hangs.is_set() else DEATH
            raise UserError(f"{dataset.path}: a loader worker {what}{REMEDY}") from error
        finally:
            timer.cancel()
        yield batch


@contextlib.contextmanager
def lost_workers(dataset: ImageDataset) -> Iterator[None]:
    """Ends the block with a `UserError` if a worker of `batches` dies.

    PyTorch tells of a death wherever the main process is just then, so that this goes around the whole loop.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        _kill_workers()  # one that is suspended would never end by itself, nor would this process then
        raise UserError(f"{dataset.path}: a loader worker {DEATH}{REMEDY}") from error


def split(batch: Batch, size: int) -> list[Batch]:
    """Consecutive micro-batches of at most `size` images."""
    fields = (batch.img, batch.labels, batch.indices, batch.draws)
    return [Batch(*part) for part in zip(*(field.split(size) for field in fields), strict=True)]
