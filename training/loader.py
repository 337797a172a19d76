"""Batches of real images in an order that depends on (seed, images seen) alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
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
    `UserError` if an image can't be read; or workers give none for `PATIENCE`; see `lost_workers`.
    """
    loader = DataLoader(
        _Drawn(dataset), batch_sampler=EndlessSampler(len(dataset), batch_size, seed, start, pair, share),
        num_workers=workers, pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )
    try:
        for img_u8, labels, indices, draws in _watched(loader, dataset) if workers else loader:
            yield Batch(img=to_float(img_u8.to(device, non_blocking=True)), labels=labels.to(device),
                        indices=indices, draws=draws)
    except UserError as error:
        # A worker's error arrives with its traceback in front; the last line is the message.
        raise UserError(error.message.strip().splitlines()[-1].removeprefix("dnnlib.util.UserError: ")) from error


def _kill_workers() -> None:
    if threading.current_thread() is threading.main_thread():
        # Or PyTorch tells of each of these deaths, in the midst of anything.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


def _watched(loader: DataLoader, dataset: ImageDataset) -> Iterator[tuple[torch.Tensor, ...]]:
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
