"""Which images of a set never train: a share of it, split by content so that duplicates stay on one side."""

from __future__ import annotations

import hashlib

from dnnlib import UserError
from dnnlib.images import ImageSource, decode

LIMIT = 0.9
_SMALLEST = 2


def part_names(source: ImageSource, holdout: float, part: str) -> list[str]:
    """Names of the images of `part`, "train" or "heldout"; all of them where `holdout` is 0.

    `UserError` naming ``--holdout`` for a share outside of [0, 0.9], for "heldout" without one, and see `split_names`.
    """
    if part not in ("train", "heldout"):
        raise ValueError(f"part {part!r} is neither 'train' nor 'heldout'")
    if not 0 <= holdout <= LIMIT:
        raise UserError(f"--holdout {holdout:g}: give a share of the images from 0 to {LIMIT:g}.")
    if holdout == 0:
        if part == "heldout":
            raise UserError(f"{source.path}: nothing is held out without --holdout; give a share, such as 0.1.")
        return source.names
    return split_names(source, holdout)[part == "heldout"]


def split_names(source: ImageSource, holdout: float) -> tuple[list[str], list[str]]:
    """Names that train and names held out, each in the order of ``source.names``; both at least 2.

    Images are grouped by `torch_utils.duplicates.find_duplicates`. Groups are held out in the order of a hash of their
    pixels, leaving out those that would exceed ``round(holdout * N)`` images: the split depends on what the set
    shows, not on names, order, packing or compression. Reads every image once. `UserError` naming ``--holdout`` if a
    side would be too small.
    """
    from torch_utils.duplicates import find_duplicates, take_prints

    names = source.names
    prints = take_prints(lambda i: decode(source.read(names[i]), f"{source.path}: {names[i]}"), len(names))
    groups = [group.members for group in find_duplicates(prints).groups]
    grouped = {index for group in groups for index in group}
    groups += [[index] for index in range(len(names)) if index not in grouped]

    def key(group: list[int]) -> bytes:
        return hashlib.sha256(b"holdout" + b"".join(sorted(prints.digests[index] for index in group))).digest()

    wanted, held = round(holdout * len(names)), set[int]()
    for group in sorted(groups, key=key):
        if len(held) + len(group) <= wanted:
            held.update(group)
    if min(len(held), len(names) - len(held)) < _SMALLEST:
        raise UserError(f"--holdout {holdout:g} of {source.path} ({len(names)} images, {len(groups)} without "
                        f"duplicates) holds out {len(held)} and leaves {len(names) - len(held)} for training; both "
                        f"need at least {_SMALLEST}: change the share, or use a larger set.")
    return ([name for index, name in enumerate(names) if index not in held],
            [name for index, name in enumerate(names) if index in held])
