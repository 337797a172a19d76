"""Exact and near duplicates in image sets: copies encoded anew, resized, slightly cropped, brightened or mirrored.

Every image leaves a hash of its pixels and a thumbnail of 32x32 (3 KiB). Low frequencies of the thumbnails give each
image's most similar others, `alignment.likeness` judges these pairs, and pairs above the threshold form groups.
Memory is linear in the number of images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from torch_utils.alignment import SIDE, likeness
from torch_utils.neighbors import nearest_rows

THRESHOLD = 0.9  # similarity from which two images count as one; measured, see docs/decisions.md
_FREQUENCIES = 8  # per axis
_COSINE = 0.85  # of the low frequencies of a pair that is looked at; one of 500 copies has less
# Others of each image that are looked at: bounds time and memory in sets where everything looks alike.
_NEAREST = 64
_QUERIES, _PAIRS = 16384, 512
_CLOSEST, _KEPT = 20, 1000


@dataclass(frozen=True)
class Prints:
    """What is kept of N images: SHA-256 of each one's size and pixels, and thumbnails uint8 ``[N, 32, 32, 3]``."""

    digests: list[bytes]
    thumbnails: np.ndarray


@dataclass(frozen=True, order=True)
class Link:
    """Two images by index, first < second, their similarity up to 1 and its kind: exact, near or mirrored."""

    first: int
    second: int
    similarity: float
    kind: str


@dataclass(frozen=True)
class Group:
    """Images that are one picture: sorted indices, and the closest links that hold them together (one less)."""

    members: list[int]
    links: list[Link]

    @property
    def similarity(self) -> float:
        """Of the weakest link."""
        return min(link.similarity for link in self.links)


@dataclass(frozen=True)
class Duplicates:
    """Groups in the order of their first images, and the closest pairs beneath the threshold, closest first."""

    groups: list[Group]
    beneath: list[Link] = field(default_factory=list)


def take_prints(load: Callable[[int], np.ndarray], count: int, progress: Callable[[], object] | None = None) -> Prints:
    """Prints of the images uint8 ``[H, W, 3]``, of any sizes, that ``load(index)`` gives for 0 .. count - 1.

    `load` is called in as many threads as torch uses, `progress` after each image, in this thread. What `load` raises
    is raised.
    """
    thumbnails = np.empty((count, SIDE, SIDE, 3), np.uint8)

    def take(index: int) -> bytes:
        pixels = load(index)
        thumbnails[index] = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()

    digests = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        try:
            for digest in pool.map(take, range(count)):
                digests.append(digest)
                if progress is not None:
                    progress()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Prints(digests, thumbnails)


def find_duplicates(prints: Prints, threshold: float = THRESHOLD) -> Duplicates:
    """Groups of images that are linked by similarities of at least `threshold`, in (0, 1].

    The groups depend on the images' content, not on their order. An image is compared with the 64 most similar ones
    in each orientation; exact copies count as one. Time grows with N^2 at 190 multiplications a pair of images, and
    with the number of pairs that look alike.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is outside of (0, 1]")
    links: list[Link] = []
    originals: list[int] = []
    # Sorted by content: so that rounding in blocks of pairs can't depend on the order either.
    for index in sorted(range(len(prints.digests)), key=lambda i: (prints.digests[i], i)):
        if originals and prints.digests[originals[-1]] == prints.digests[index]:
            links.append(Link(originals[-1], index, 1.0, "exact"))
        else:
            originals.append(index)
    beneath: list[Link] = []
    limit = _KEPT + 4 * len(prints.digests)
    for link in _compare(prints.thumbnails, np.array(originals, np.int64)):
        (links if link.similarity >= threshold else beneath).append(link)
        if len(links) > limit:
            links = _forest(links)
        if len(beneath) > _KEPT:
            beneath = _by_similarity(beneath)[:_CLOSEST]
    return Duplicates(_group(_forest(links)), _by_similarity(beneath)[:_CLOSEST])


def describe(thumbnails: np.ndarray) -> torch.Tensor:
    """Low frequencies of thumbnails uint8 ``[N, 32, 32, 3]`` as float32 ``[N, 192]`` of norm 1.

    Coefficients of the cosine transform in each channel of luma and chroma (which counts half), weighted by frequency:
    pictures have energies that fall with its square, and without the weights all of one series point the same way.
    """
    k = torch.arange(_FREQUENCIES)
    basis = torch.cos(math.pi / SIDE * (torch.arange(SIDE) + 0.5) * k[:, None])
    weights = torch.hypot(k[:, None].float(), k[None].float())
    weights[0, 0] = 0.02  # means matter to flat pictures only, of which nothing else is left
    colours = torch.tensor([[0.299, 0.587, 0.114], [-0.0845, -0.1655, 0.25], [0.25, -0.2095, -0.0405]])
    parts = []
    for begin in range(0, len(thumbnails), _QUERIES):
        images = torch.from_numpy(thumbnails[begin:begin + _QUERIES]).float()
        spectrum = torch.einsum("ky,lx,cd,nyxd->nckl", basis, basis, colours, images) * weights
        parts.append(torch.nn.functional.normalize(spectrum.flatten(1), dim=1))
    return torch.cat(parts)


def _mirror() -> torch.Tensor:
    """Signs ``[192]`` that turn a description into that of the mirrored image: odd waves in x change theirs."""
    return (-1.0) ** (torch.arange(3 * _FREQUENCIES**2) % _FREQUENCIES)


def _candidates(rows: torch.Tensor, mirrored: bool) -> np.ndarray:
    """Pairs ``[P, 2]``, first < second, of `rows [N, 192]` whose cosine, one of them mirrored or not, is high."""
    found = [np.empty((0, 2), np.int64)]
    signs = _mirror() if mirrored else 1.0
    for begin in range(0, len(rows), _QUERIES):
        indices, cosines = nearest_rows(rows[begin:begin + _QUERIES] * signs, rows, min(_NEAREST + 1, len(rows)))
        query, rank = torch.where(cosines > _COSINE)
        pairs = torch.stack([query + begin, indices[query, rank]], 1).sort(dim=1).values
        found.append(pairs[pairs[:, 0] < pairs[:, 1]].unique(dim=0).numpy())
    return np.unique(np.concatenate(found), axis=0)


def _compare(thumbnails: np.ndarray, originals: np.ndarray) -> Iterator[Link]:
    """Links between the images `originals` that may be alike, whatever their similarity turns out to be."""
    rows = describe(thumbnails[originals])
    for mirrored in (False, True):
        pairs = originals[_candidates(rows, mirrored)]
        for begin in range(0, len(pairs), _PAIRS):
            part = pairs[begin:begin + _PAIRS]
            second = torch.from_numpy(thumbnails[part[:, 1]])
            similarity = likeness(torch.from_numpy(thumbnails[part[:, 0]]), second.flip(2) if mirrored else second)
            for (i, j), value in zip(part.tolist(), similarity.tolist(), strict=True):
                yield Link(min(i, j), max(i, j), value, "mirrored" if mirrored else "near")


def _by_similarity(links: list[Link]) -> list[Link]:
    return sorted(links, key=lambda link: (-link.similarity, link.kind != "exact", link))


def _find(root: dict[int, int], index: int) -> int:
    """The number of the part that `index` belongs to: its smallest index."""
    while (above := root.setdefault(index, index)) != index:
        root[index] = root[above]
        index = above
    return index


def _forest(links: list[Link]) -> list[Link]:
    """The closest links that connect what `links` connect: one less than the images of each part."""
    root: dict[int, int] = {}
    joining = []
    for link in _by_similarity(links):
        one, other = _find(root, link.first), _find(root, link.second)
        if one != other:
            root[max(one, other)] = min(one, other)
            joining.append(link)
    return joining


def _group(links: list[Link]) -> list[Group]:
    """The connected parts of a forest of `links`."""
    root: dict[int, int] = {}
    for link in links:
        one, other = _find(root, link.first), _find(root, link.second)
        root[max(one, other)] = min(one, other)
    members: dict[int, list[int]] = {}
    for index in sorted(root):
        members.setdefault(_find(root, index), []).append(index)
    own: dict[int, list[Link]] = {first: [] for first in members}
    for link in links:
        own[_find(root, link.first)].append(link)
    return [Group(group, own[first]) for first, group in sorted(members.items())]
