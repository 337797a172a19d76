"""Conversion of an image source to PNGs of one size by several processes."""

from __future__ import annotations

import collections
import io
import itertools
import os
import signal
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dnnlib.images import ImageSource
from dnnlib.pixels import WHITE, center_crop, pad, read_rgb, resize
from dnnlib.sizes import format_size, is_valid_size, suggest_resolution, suggest_size
from dnnlib.util import UserError

CHUNK_BYTES = 4 << 20  # pixels that one task sends back at most, so that memory stays bounded at any worker count


@dataclass(frozen=True)
class Shaping:
    """How images get the size, shape and colours of the set.

    size        (width, height) of the result, of the picture between the bars for "center-crop-wide"; None keeps the
                source's, which "center-crop" and "pad" make square
    transform   None, "center-crop", "center-crop-wide" or "pad"
    background  RGB shown through transparent pixels and in the margins of "pad"
    grey        one channel, of ITU-R 601 luma (Pillow's "L")
    """

    size: tuple[int, int] | None = None
    transform: str | None = None
    background: tuple[int, int, int] = WHITE
    grey: bool = False

    def apply(self, img: Image.Image, name: str) -> Image.Image:
        """RGB to RGB, or to "L" if grey.

        `UserError` if the image hasn't the shape of the result and no transform gives it.
        """
        if self.transform is None:
            self._check_shape(*img.size, name)
        img = self._shape(img)
        # After resizing: a grey set holds the luma of what the colour set would.
        return img.convert("L") if self.grey else img

    def _check_shape(self, width: int, height: int, name: str) -> None:
        remedy = "add --transform=center-crop or --transform=pad"
        if self.size is not None:
            if width * self.size[1] != height * self.size[0]:
                shape = "square" if self.size[0] == self.size[1] else "2:1" if self.size[0] > self.size[1] else "1:2"
                raise UserError(f"{name} is {width}x{height}, not {shape}: {remedy}.")
        elif max(width, height) not in (min(width, height), 2 * min(width, height)):
            near = suggest_size(width, height)
            remedy += f", with --resolution={format_size(*near)} for its nearest shape" * (near[0] != near[1])
            raise UserError(f"{name} is {width}x{height}, neither square nor 2:1 or 1:2: {remedy}.")

    def _shape(self, img: Image.Image) -> Image.Image:
        w, h = img.size
        if self.transform == "center-crop-wide":
            # As in the official tools: width x height pixels between black bars, on a square.
            assert self.size is not None
            return pad(resize(center_crop(img, *self.size), *self.size), self.size[0], self.size[0], (0, 0, 0))
        if self.transform == "pad":
            # Resized before padding, so that the filter doesn't blur the picture into its margins.
            width, height = self.size or (max(w, h), max(w, h))
            scale = min(width / w, height / h)
            picture = resize(img, max(round(w * scale), 1), max(round(h * scale), 1))
            return pad(picture, width, height, self.background)
        if self.transform == "center-crop":
            img = center_crop(img, *(self.size or (1, 1)))
        return img if self.size is None else resize(img, *self.size)

    def enlarges(self, width: int, height: int) -> bool:
        """True if a picture of this size has fewer pixels than its place in the result."""
        if self.size is None:
            return False
        if self.transform == "pad":
            return width < self.size[0] and height < self.size[1]
        return width < self.size[0] or height < self.size[1]


@dataclass(frozen=True)
class Converted:
    """Result for one source image: `png` bytes of a picture of `size` (width, height), or a `problem` in one line.

    A `fatal` problem comes from the flags, not from a broken file, and can't be skipped.
    """

    name: str
    png: bytes = b""
    size: tuple[int, int] = (0, 0)
    enlarged: bool = False
    problem: str = ""
    fatal: bool = False


def check_size(result: Converted, others: tuple[int, int] | None, path: Path) -> None:
    """`UserError` if a size that --resolution didn't set is not valid, or not that of the `others`."""
    width, height = result.size
    if is_valid_size(width, height) and result.size == (others or result.size):
        return
    short = "not" if width == height else "its short side not"
    why = f"but others {others[0]}x{others[1]}" if others else f"{short} a power of two from 32 to 1024"
    if others is None or width * others[1] == height * others[0]:
        remedy = f"--resolution={format_size(*suggest_size(*min(others or result.size, result.size)))}"
    else:
        remedy = f"--resolution={suggest_resolution(min(*others, *result.size))} --transform=center-crop"
    raise UserError(f"{path}: {result.name} would be {width}x{height}, {why}: add {remedy}.")


_Task = tuple[str, bytes | np.ndarray | None]
_job: tuple[ImageSource, Shaping] | None = None  # of this process


def _start_job(source: ImageSource, shaping: Shaping, is_worker: bool = True) -> None:
    global _job
    _job = (source, shaping)
    if is_worker:  # Ctrl-C reaches the whole process group; only the parent may answer it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # A killed parent can't end its workers, which would wait for work for good.
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _convert(name: str, payload: bytes | np.ndarray | None) -> Converted:
    assert _job is not None
    source, shaping = _job
    try:
        if isinstance(payload, np.ndarray):
            img = Image.fromarray(payload).convert("RGB")
        else:
            img = read_rgb(source.read(name) if payload is None else payload, name, shaping.background)
    except UserError as error:
        return Converted(name, problem=error.message)
    try:
        shaped = shaping.apply(img, name)
    except UserError as error:
        return Converted(name, problem=error.message, fatal=True)
    buffer = io.BytesIO()
    shaped.save(buffer, "PNG", compress_level=0)
    return Converted(name, buffer.getvalue(), shaped.size, shaping.enlarges(*img.size))


def _convert_chunk(tasks: list[_Task]) -> list[Converted]:
    return [_convert(*task) for task in tasks]


def convert_all(
    source: ImageSource, names: Sequence[str], shaping: Shaping, workers: int
) -> Generator[Converted, None, None]:
    """Converts `names` in their order with `workers` processes, keeping only a bounded number in memory.

    Close the iterator (`contextlib.closing`) to stop early. The results don't depend on `workers`.
    """
    tasks = zip(names, source.payloads(names), strict=True)
    if workers == 1 or len(names) == 1:
        _start_job(source, shaping, is_worker=False)
        for task in tasks:
            yield _convert(*task)
        return
    side = 256 if shaping.size is None else max(shaping.size)
    chunk = max(min(CHUNK_BYTES // (3 * side * side), len(names) // (4 * workers), 32), 1)
    executor = ProcessPoolExecutor(min(workers, len(names)), initializer=_start_job, initargs=(source, shaping))
    pending: collections.deque[Future[list[Converted]]] = collections.deque()
    try:
        while batch := list(itertools.islice(tasks, chunk)):
            pending.append(executor.submit(_convert_chunk, batch))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("A worker process was killed, probably for lack of memory: use fewer --workers.") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
