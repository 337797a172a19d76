"""`dataset_tool.py check`: duplicates within image sets and leaks between them, as text, JSON and pairs to draw."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dnnlib import UserError, atomic_write
from dnnlib.images import ImageSource, decode, open_source
from torch_utils.duplicates import Duplicates, Group, Link, Prints, find_duplicates, take_prints

_SHOWN_GROUPS, _SHOWN_FILES, _DRAWN = 20, 10, 10


@dataclass(frozen=True)
class Checked:
    """The result: open sources, (source number, name) of each usable image, what was unreadable, what was found."""

    sources: list[ImageSource]
    files: list[tuple[int, str]]
    unreadable: list[str]
    found: Duplicates
    threshold: float

    def label(self, index: int) -> str:
        """SET:NAME."""
        source, name = self.files[index]
        return f"{self.sources[source].path}:{name}"

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3]."""
        source, name = self.files[index]
        return decode(self.sources[source].read(name), name)

    def is_leak(self, group: Group) -> bool:
        """Whether its images are of several sets."""
        return len({self.files[index][0] for index in group.members}) > 1


def check_sets(paths: Sequence[Path], threshold: float) -> Checked:
    """Reads all images of folders and zips and finds their duplicates.

    `UserError` if a set is given twice, can't be opened or has no readable image; single unreadable files are listed.
    """
    real = [os.path.realpath(path) for path in paths]
    for path, place in zip(paths, real, strict=True):
        if real.count(place) > 1:
            raise UserError(f"{path} is given twice; name each set once.")
    sources = [open_source(path) for path in paths]
    everything = [(number, name) for number, source in enumerate(sources) for name in source.names]
    unreadable: dict[int, str] = {}

    def load(index: int) -> np.ndarray:
        number, name = everything[index]
        try:
            return decode(sources[number].read(name), f"{sources[number].path}: {name}")
        except UserError as error:
            unreadable[index] = error.message
            return np.zeros((1, 1, 3), np.uint8)

    with tqdm(total=len(everything), unit="img", desc="Reading", leave=False, disable=None) as bar:
        prints = take_prints(load, len(everything), bar.update)
    usable = [index for index in range(len(everything)) if index not in unreadable]
    files = [everything[index] for index in usable]
    for number, source in enumerate(sources):
        if number not in {number for number, _ in files}:
            raise UserError(f"{source.path} contains no readable image.")
    found = find_duplicates(Prints([prints.digests[i] for i in usable], prints.thumbnails[usable]), threshold)
    return Checked(sources, files, [unreadable[index] for index in sorted(unreadable)], found, threshold)


def summary(checked: Checked) -> Iterator[str]:
    """The lines printed: leaks first, then duplicates, or that there are none and how near the closest pair is."""
    groups = checked.found.groups
    for leak, title in ((True, "Leaks between the sets"), (False, "Duplicates within a set")):
        some = [group for group in groups if checked.is_leak(group) == leak]
        if not some:
            continue
        yield f"{title}: {len(some)} group{'s'[: len(some) > 1]}, {sum(len(g.members) for g in some)} images"
        for group in sorted(some, key=lambda group: -group.similarity)[:_SHOWN_GROUPS]:
            kinds = sorted({link.kind for link in group.links})
            yield f"  similarity {group.similarity:.3f} ({', '.join(kinds)})"
            yield from (f"    {checked.label(index)}" for index in group.members[:_SHOWN_FILES])
            if len(group.members) > _SHOWN_FILES:
                yield f"    … and {len(group.members) - _SHOWN_FILES} more"
        if len(some) > _SHOWN_GROUPS:
            yield f"  … and {len(some) - _SHOWN_GROUPS} more groups; --out FILE.json lists all"
    if not groups:
        yield f"No duplicates among {len(checked.files)} images at a similarity of {checked.threshold:g} or more."
    if checked.found.beneath:
        pair = checked.found.beneath[0]
        yield (f"Closest pair beneath {checked.threshold:g}: {pair.similarity:.3f}  {checked.label(pair.first)}  "
               f"{checked.label(pair.second)}")


def report(checked: Checked) -> dict[str, Any]:
    """Everything found, for --out: sets, threshold, groups with their files and links, closest pairs beneath."""

    def place(index: int) -> dict[str, str]:
        source, name = checked.files[index]
        return {"set": str(checked.sources[source].path), "name": name}

    def pair(link: Link) -> dict[str, Any]:
        return {"files": [place(link.first), place(link.second)], "similarity": link.similarity, "kind": link.kind}

    counts = np.bincount([number for number, _ in checked.files], minlength=len(checked.sources)).tolist()
    return {
        "sets": [{"path": str(source.path), "images": count}
                 for source, count in zip(checked.sources, counts, strict=True)],
        "threshold": checked.threshold,
        "unreadable": checked.unreadable,
        "groups": [{"kind": "leak" if checked.is_leak(group) else "duplicates", "similarity": group.similarity,
                    "files": [place(index) for index in group.members], "links": [pair(link) for link in group.links]}
                   for group in checked.found.groups],
        "beneath": [pair(link) for link in checked.found.beneath],
    }


def save_report(path: Path, checked: Checked) -> None:
    """`report` as JSON, written atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(report(checked), indent=1).encode())


def closest_pairs(checked: Checked) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """Ten pairs as images uint8 [3, H, W] and similarity: each group's closest first, then those beneath."""
    links = sorted((max(group.links, key=lambda link: link.similarity) for group in checked.found.groups),
                   key=lambda link: -link.similarity)

    def image(index: int) -> torch.Tensor:
        return torch.from_numpy(checked.image(index)).permute(2, 0, 1)

    return [(image(link.first), image(link.second), link.similarity)
            for link in (links + checked.found.beneath)[:_DRAWN]]
