"""Finite sets of images that metrics read: data sets, folders, zips, tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dnnlib import UserError
from dnnlib.fingerprint import set_fingerprint
from dnnlib.images import ImageSource, decode
from torch_utils import rng


class IndexedImages(Protocol):
    """What is needed of a data set; ``dataset[i][0]`` is uint8 ``[3 or 1, H, W]``."""

    name: str
    num_images: int

    @property
    def fingerprint(self) -> str: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]: ...


@dataclass(frozen=True)
class ImageSet:
    """Images by number, with an identity by content.

    name         for people
    fingerprint  SHA-256 of the content
    num_images   without mirror images
    read         number to uint8 ``[3 or 1, H, W]``, of any sizes
    mirror       whether training also saw the x-flipped images
    """

    name: str
    fingerprint: str
    num_images: int
    read: Callable[[int], torch.Tensor]
    mirror: bool = False

    def batches(self, indices: Sequence[int], flipped: bool = False, batch_size: int = 64) -> Iterator[torch.Tensor]:
        """uint8 ``[n, 3 or 1, H, W]``, n up to `batch_size`, in order of `indices`; a new shape starts a new batch."""
        pending: list[torch.Tensor] = []
        for i in indices:
            image = self.read(i)
            if pending and (len(pending) == batch_size or image.shape != pending[0].shape):
                yield _stack(pending, flipped)
                pending = []
            pending.append(image)
        if pending:
            yield _stack(pending, flipped)


def _stack(images: list[torch.Tensor], flipped: bool) -> torch.Tensor:
    batch = torch.stack(images)
    return batch.flip(-1) if flipped else batch


def fixed_subset(total: int, count: int) -> torch.Tensor:
    """`count` of ``range(total)``, drawn once and for all since sets are often sorted by class; all, in order, if
    `count` is no smaller."""
    if count >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=rng.generator("metrics", "subset", total))[:count]


def from_dataset(dataset: IndexedImages, mirror: bool) -> ImageSet:
    """A training data set; `mirror`: whether training used x-flips (the set's own flips are not read)."""
    return ImageSet(dataset.name, dataset.fingerprint, dataset.num_images, lambda i: dataset[i][0], mirror)


def from_source(source: ImageSource) -> ImageSet:
    """An open folder or zip, images of any size; every file is read once for the fingerprint.

    That of a converted set is the data set's own, so that features are cached once for both ways of reading it.
    Raises `UserError` naming the file for an image that can't be decoded, when it is reached.
    """
    def read(i: int) -> torch.Tensor:
        name = source.names[i]
        return torch.from_numpy(decode(source.read(name), f"{source.path}:{name}")).permute(2, 0, 1)

    return ImageSet(str(source.path), set_fingerprint(source, source.names, _json(source)), len(source.names), read)


def _json(source: ImageSource) -> dict[str, Any] | None:
    """dataset.json; None where there is none, or a foreign file of that name."""
    try:
        return source.json()
    except UserError:
        return None


def from_images(images: Iterable[torch.Tensor], name: str) -> ImageSet:
    """Any iterable of uint8 images ``[3 or 1, H, W]``, of any sizes, or of batches ``[n, 3 or 1, H, W]`` of them.

    They are kept in memory. ValueError for anything else.
    """
    digest, kept = hashlib.sha256(), list[torch.Tensor]()
    for item in images:
        for image in item if item.ndim == 4 else (item,):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
                raise ValueError(f"images are uint8 [3 or 1, H, W], not {image.dtype} {list(image.shape)}")
            kept.append(image.cpu())
            digest.update(f"{tuple(image.shape)}".encode() + kept[-1].contiguous().numpy().tobytes())
    return ImageSet(name, digest.hexdigest(), len(kept), kept.__getitem__)


def from_tensor(images: torch.Tensor, name: str) -> ImageSet:
    """uint8 ``[n, 3 or 1, H, W]`` in memory."""
    return from_images([images], name)


def describe(images: ImageSet) -> dict[str, Any]:
    """For provenance."""
    return {"name": images.name, "num_images": images.num_images, "fingerprint": images.fingerprint}
