"""The converted image set as a torch dataset."""

from __future__ import annotations

import math
import mmap
import os
import shlex
import statistics
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from dnnlib.fingerprint import set_fingerprint
from dnnlib.images import ImageSource, decode, open_source
from dnnlib.labels import read_classes, read_labels
from dnnlib.pixels import open_image
from dnnlib.sizes import format_size, is_valid_size, suggest_resolution
from training.holdout import part_names

CACHE_LIMIT_BYTES = 2 << 30
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_CHANNELS = {b"\x08\x02": 3, b"\x08\x00": 1}  # bit depth 8, colour type RGB or grey


def conversion_command(path: Path, flags: str = "", resolution: str | None = None) -> str:
    """The `dataset_tool.py` command line that converts `path`, writing beside it under a free name.

    resolution: as the flag takes it, ``64`` or ``128x64``.
    """
    stem = path.name.split(".")[0] or "dataset"
    stem = f"{stem}-{resolution}" if resolution else f"{stem}-converted"
    dest = path.with_name(f"{stem}.zip")
    count = 2
    while dest.exists():
        dest = path.with_name(f"{stem}-{count}.zip")
        count += 1
    size = f" --resolution={resolution}" if resolution else ""
    return f"python dataset_tool.py --source={shlex.quote(str(path))} --dest={shlex.quote(str(dest))}{size}{flags}"


class _DecodedCache:
    """Decoded images, kept from their first use on in memory that forked loader workers share.

    The memory is anonymous (no file under /dev/shm, which containers keep small) and is only taken as it
    fills up. Spawned processes start with an empty cache of their own.
    """

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self.shape = (count, *shape)
        self._map()

    def _map(self) -> None:
        count = self.shape[0]
        self._images = np.frombuffer(mmap.mmap(-1, math.prod(self.shape)), np.uint8).reshape(self.shape)
        # Two workers may fill the same entry at once: both write the same bytes, then set its flag.
        self._filled = np.frombuffer(mmap.mmap(-1, count), np.uint8)

    def get(self, index: int) -> np.ndarray | None:
        return self._images[index] if self._filled[index] else None

    def put(self, index: int, image: np.ndarray) -> None:
        self._images[index] = image
        self._filled[index] = 1

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.shape = state["shape"]
        self._map()


class ImageDataset(torch.utils.data.Dataset):
    """A folder or zip of PNGs of one size and kind, square or 2:1, RGB or grey, as `dataset_tool.py` writes it.

    path        folder or zip
    use_labels  read class labels from its dataset.json; they must be complete
    mirror      adds every image once more, flipped in x
    max_images  use a fixed random subset of this size (seed 0; a smaller one is part of a larger one)
    holdout     share of the images that never trains, split by content (`training.holdout`)
    part        "train", or "heldout" for the images that --holdout keeps from training
    cache       keep decoded images in memory if the set takes at most 2 GiB

    Attributes: `name`; `shape` = (channels, H, W); `channels`, 3 or 1; `resolution`, the short side; `aspect`, H and
    W in multiples of it: (1, 1), (1, 2) wide or (2, 1) tall; `num_images` (files used), `names` (of these files),
    `label_dim` (0 without labels), `labels` (int64 [num_images] or None), `fingerprint`. `UserError` if the set isn't
    converted (the message holds the command that does it), or its labels are absent or don't fit.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        use_labels: bool = False,
        mirror: bool = False,
        max_images: int | None = None,
        cache: bool = True,
        holdout: float = 0.0,
        part: str = "train",
    ) -> None:
        self.path = Path(path)
        self.name = Path(os.path.realpath(path)).name.removesuffix(".zip")
        self.mirror = mirror
        if max_images is not None and max_images < 1:
            raise UserError(f"{path}: the number of images to use must be at least 1, not {max_images}.")
        self._source = _open_set(self.path)
        self.shape = _check_converted(self._source)
        self.channels, height, width = self.shape
        self.resolution = min(height, width)
        self.aspect = (height // self.resolution, width // self.resolution)
        self.names = _subset(part_names(self._source, holdout, part), max_images)
        self.num_images = len(self.names)
        self.labels: np.ndarray | None = None
        self.label_dim = 0
        if use_labels:
            self.labels, self.label_dim = self._read_labels()
        size = self.num_images * math.prod(self.shape)
        self._cache = _DecodedCache(self.num_images, self.shape) if cache and size <= CACHE_LIMIT_BYTES else None

    def _read_labels(self) -> tuple[np.ndarray, int]:
        content = self._source.json()
        labels = read_labels(content, self._source.names, self.path)
        if labels is None:
            raise UserError(
                f"{self.path} has no class labels: convert again from a folder that has one subfolder per class, with "
                "`python dataset_tool.py --source=FOLDER --dest=SET.zip --labels=folders`, or train without labels."
            )
        classes = read_classes(content, labels, self.path)
        # A subset may lack the last classes of its set: their number comes from the whole.
        dim = max(labels.values()) + 1 if classes is None else len(classes)
        return np.array([labels[name] for name in self.names], np.int64), dim

    @cached_property
    def fingerprint(self) -> str:
        """`set_fingerprint` of the files used. Reads every file, at the first access only."""
        return set_fingerprint(self._source, self.names, self._source.json())

    @property
    def cached(self) -> bool:
        """Whether decoded images are kept in memory, so that loader workers gain nothing."""
        return self._cache is not None

    def __len__(self) -> int:
        return self.num_images * (2 if self.mirror else 1)

    def image(self, index: int) -> np.ndarray:
        """uint8 [channels, H, W] of file number `index`, unflipped. `UserError` if the file is damaged."""
        found = self._cache.get(index) if self._cache is not None else None
        if found is not None:
            return found
        name = self.names[index]
        # The three channels of a decoded grey image are equal.
        img = decode(self._source.read(name), f"{self.path}: {name}").transpose(2, 0, 1)[: self.channels]
        if img.shape != self.shape:
            raise UserError(f"{self.path}: {name} does not decode to its size; convert the set again.")
        if self._cache is not None:
            self._cache.put(index, img)
        return img

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """(uint8 [channels, H, W], label or -1, index); indices from `num_images` on are the flipped images."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of a data set of {len(self)}")
        file_index = index % self.num_images
        img = self.image(file_index)
        if index >= self.num_images:
            img = img[:, :, ::-1]
        label = -1 if self.labels is None else int(self.labels[file_index])
        return torch.from_numpy(img.copy()), label, int(index)


def _open_set(path: Path) -> ImageSource:
    is_packed = path.is_file() and path.suffix.lower() in (".gz", ".tgz", ".tar")
    if is_packed or (path / "data.mdb").is_file():
        raise UserError(f"{path} must be converted first: {conversion_command(path)}")
    return open_source(path)


def _subset(names: list[str], count: int | None) -> list[str]:
    if count is None or count >= len(names):
        return list(names)
    return sorted(names[i] for i in np.random.RandomState(0).permutation(len(names))[:count])


def _check_converted(source: ImageSource) -> tuple[int, int, int]:
    """(channels, H, W) of a converted set, from its files' headers; `UserError` with the remedy for others."""
    first: tuple[int, int, int] | None = None
    for name in source.names:
        head = source.read(name, 26)
        width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        shape = (_PNG_CHANNELS.get(head[24:26], 0), height, width)
        if not head.startswith(_PNG_START) or not shape[0]:
            why = f"{name} is not an 8-bit RGB or grey PNG"
        elif not is_valid_size(width, height):
            why = f"{name} is {width}x{height}, not square or 2:1 with a power of two from 32 to 1024 as its short side"
        elif shape != (first or shape):
            assert first is not None
            why = f"{name} is {_describe(shape)}, but {source.names[0]} is {_describe(first)}"
        else:
            first = shape
            continue
        raise UserError(f"{source.path} must be converted first ({why}): {_suggest(source)}")
    assert first is not None
    return first


def _describe(shape: tuple[int, int, int]) -> str:
    return f"{shape[2]}x{shape[1]} {'grey' if shape[0] == 1 else 'RGB'}"


def _suggest(source: ImageSource) -> str:
    """The conversion command for a raw set, judged by up to 200 images spread over it: 2:1 only if all are."""
    sizes = []
    for name in source.names[:: max(len(source.names) // 200, 1)]:
        try:
            with open_image(source.read(name)) as img:
                sizes.append(img.size)
        except Exception:  # a damaged file says nothing about size; the conversion will list it
            continue
    if not sizes:
        raise UserError(f"{source.path} contains no readable image.")
    short = suggest_resolution(statistics.median(min(size) for size in sizes))
    if all(width == 2 * height for width, height in sizes):
        return conversion_command(source.path, resolution=format_size(2 * short, short))
    if all(height == 2 * width for width, height in sizes):
        return conversion_command(source.path, resolution=format_size(short, 2 * short))
    flags = " --transform=center-crop" if any(width != height for width, height in sizes) else ""
    return conversion_command(source.path, flags, format_size(short, short))
