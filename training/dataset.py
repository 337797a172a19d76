"""The converted image set as a torch dataset."""

from __future__ import annotations

import os
import re
import shlex
import statistics
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dnnlib import UserError
from dnnlib.fingerprint import set_fingerprint, spread
from dnnlib.images import ImageSource, decode, open_source
from dnnlib.labels import read_classes, read_labels
from dnnlib.pixels import open_image
from dnnlib.sizes import format_size, is_valid_size, suggest_resolution
from training.decoded_cache import DecodedCache
from training.holdout import part_names

CHECKED = 20_000  # headers that opening a set looks at
_FORMATS = ("PNG", "JPEG", "WEBP")
_ORIENTATION = 0x0112  # tag of EXIF 2.3; above 4 the sides are exchanged
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


class ImageDataset(torch.utils.data.Dataset):
    """Pictures of one size and kind, square or 2:1, RGB or grey, PNG (as `dataset_tool.py` writes them), JPEG or WebP.

    path        folder, zip, tar, folder of tars, or lmdb folder
    use_labels  read class labels from its dataset.json; they must be complete
    mirror      adds every image once more, flipped in x
    max_images  use a fixed random subset of this size (seed 0; a smaller one is part of a larger one)
    holdout     share of the images that never trains, split by content (`training.holdout`)
    part        "train", or "heldout" for the images that --holdout keeps from training
    cache       keep decoded images in memory: "on", "off", or "auto" (see `DecodedCache.create`)

    Attributes: `name`; `shape` = (channels, H, W); `channels`, 3 or 1; `resolution`, the short side; `aspect`, H and
    W in multiples of it: (1, 1), (1, 2) wide or (2, 1) tall; `num_images` (files used), `names` (of these files),
    `label_dim` (0 without labels), `labels` (int64 [num_images] or None), `fingerprint`. `UserError` if the set isn't
    converted (the message holds the command that does it), or its labels are absent or don't fit. Of sets larger than
    `CHECKED` opening looks at as many pictures, spread over the set; the others are checked as they are read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        use_labels: bool = False,
        mirror: bool = False,
        max_images: int | None = None,
        cache: str = "auto",
        holdout: float = 0.0,
        part: str = "train",
    ) -> None:
        self.path = Path(path)
        self.name = re.sub(r"\.(zip|tar|lmdb)$", "", Path(os.path.realpath(path)).name)
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
        self._cache = DecodedCache.create(cache, self.num_images, self.shape)

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
        """`set_fingerprint` of the files used. Reads them, at the first access only."""
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
    if path.is_file() and path.suffix.lower() in (".gz", ".tgz"):
        raise UserError(f"{path} must be converted first: {conversion_command(path)}")
    return open_source(path)


def _subset(names: list[str], count: int | None) -> list[str]:
    if count is None or count >= len(names):
        return list(names)
    return sorted(names[i] for i in np.random.RandomState(0).permutation(len(names))[:count])


def _check_converted(source: ImageSource) -> tuple[int, int, int]:
    """(channels, H, W) of a converted set, from its files' headers; `UserError` with the remedy for others."""
    first: tuple[int, int, int] | None = None
    names = source.names
    for place in spread(len(names), CHECKED):
        name = names[place]
        channels, height, width = shape = _shape(source, name)
        if not channels:
            why = f"{name} is not an 8-bit RGB or grey {', '.join(_FORMATS)}"
        elif not is_valid_size(width, height):
            why = f"{name} is {width}x{height}, not square or 2:1 with a power of two from 32 to 1024 as its short side"
        elif shape != (first or shape):
            assert first is not None
            why = f"{name} is {_describe(shape)}, but {names[0]} is {_describe(first)}"
        else:
            first = shape
            continue
        raise UserError(f"{source.path} must be converted first ({why}): {_suggest(source)}")
    assert first is not None
    return first


def _shape(source: ImageSource, name: str) -> tuple[int, int, int]:
    """(channels, H, W) by the file's header; 0 channels if it is no picture to train on."""
    head = source.read(name, 26)
    if head.startswith(_PNG_START):
        height, width = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
        return _PNG_CHANNELS.get(head[24:26], 0), height, width
    try:
        with open_image(source.read(name)) as img:
            turned = img.getexif().get(_ORIENTATION, 1) > 4
            sides = (img.width, img.height) if turned else (img.height, img.width)
            return ({"RGB": 3, "L": 1}.get(img.mode, 0) if img.format in _FORMATS[1:] else 0, *sides)
    except Exception:  # Pillow's readers raise almost anything on damaged data
        return (0, 0, 0)


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
