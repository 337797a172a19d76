"""Class labels of an image set, and the choice of images by a list of names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dnnlib.archives import PackedSource
from dnnlib.images import ImageSource, strip_extension
from dnnlib.util import UserError, one_line

MAX_CLASSES = 1_000_000  # a vector of this width is made for every image


def read_labels(content: dict[str, Any] | None, names: Sequence[str], path: str | os.PathLike) -> dict[str, int] | None:
    """Labels of all `names` from the `content` of the dataset.json in `path`; None if it has none.

    `UserError` naming the file if a label has no image, an image no label, or a label isn't an integer from 0 to below
    `MAX_CLASSES`.
    """
    pairs = (content or {}).get("labels")
    if pairs is None:
        return None
    remedy = "correct dataset.json or convert the set again"
    if not isinstance(pairs, list):
        raise UserError(f"{path}: 'labels' in dataset.json must be a list of [name, integer] pairs; {remedy}.")
    known = set(names)
    labels: dict[str, int] = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f"{path}: label entry {pair!r} in dataset.json is not a [name, integer] pair; {remedy}.")
        name, label = pair[0].replace("\\", "/"), pair[1]
        if type(label) is not int or label < 0:
            raise UserError(f"{path}: the label of {name} is {label!r}, not an integer >= 0; {remedy}.")
        if label >= MAX_CLASSES:
            raise UserError(f"{path}: the label of {name} is {label}; classes are numbered from 0 to at most "
                            f"{MAX_CLASSES - 1}; {remedy}.")
        if name not in known:
            raise UserError(f"{path}: dataset.json has a label for {name}, which is not in the set; {remedy}.")
        if name in labels:
            raise UserError(f"{path}: dataset.json has two labels for {name}; {remedy}.")
        labels[name] = label
    for name in names:
        if name not in labels:
            raise UserError(f"{path}: dataset.json has no label for {name}; {remedy}.")
    return labels


def read_classes(content: dict[str, Any] | None, labels: dict[str, int], path: str | os.PathLike) -> list[str] | None:
    """Names of the classes from the `content` of the dataset.json in `path`; None if it has none.

    `UserError` if they are no list of names, or one of `labels` is beyond their number.
    """
    classes = (content or {}).get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list) or len(classes) > MAX_CLASSES or not all(isinstance(c, str) for c in classes):
        raise UserError(f"{path}: 'classes' in dataset.json must be a list of names, {MAX_CLASSES} at most; correct "
                        "or remove it.")
    for name, label in labels.items():
        if label >= len(classes):
            raise UserError(f"{path}: dataset.json has label {label} for {name} but {len(classes)} "
                            "classes; correct dataset.json or convert the set again.")
    return classes


def labels_from_folders(names: Sequence[str], source: Path) -> tuple[dict[str, int], list[str]]:
    """Class index per name and the sorted class names: the top-level folders, below a folder common to all."""
    parts = {name: PurePosixPath(name).parts for name in names}
    depth = 0
    while all(len(p) > depth + 2 for p in parts.values()) and len({p[depth] for p in parts.values()}) == 1:
        depth += 1
    for name, part in parts.items():
        if len(part) < depth + 2:
            raise UserError(f"{source}: {name} is in no class folder, which --labels=folders needs; move or remove it.")
    classes = sorted({part[depth] for part in parts.values()})
    if len(classes) < 2:
        raise UserError(f"{source}: --labels=folders found one class folder only ({classes[0]}); two are needed.")
    index = {name: number for number, name in enumerate(classes)}
    return {name: index[part[depth]] for name, part in parts.items()}, classes


def source_labels(source: ImageSource, mode: str | None) -> tuple[dict[str, int] | None, list[str] | None]:
    """Labels and class names of a source: its own, or by `mode` "folders" or "none"."""
    if mode == "none":
        return None, None
    if isinstance(source, PackedSource):
        if mode == "folders":
            raise UserError(f"--labels=folders: {source.path} has no folders; leave the flag out.")
        return source.labels, source.classes
    if mode == "folders":
        return labels_from_folders(source.names, source.path)
    content = source.json()
    labels = read_labels(content, source.names, source.path)
    return labels, None if labels is None else read_classes(content, labels, source.path)


def select(origins: dict[str, str], listed: Iterable[str], option: str) -> tuple[list[str], list[str]]:
    """Source names whose stem, or path without extension, is `listed`; and what is listed but isn't there.

    `origins` maps a name in the source to the name it is known by.
    """
    by_path: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for name, origin in origins.items():
        path = strip_extension(origin)
        by_path.setdefault(path, []).append(name)
        by_stem.setdefault(PurePosixPath(path).name, []).append(name)
    chosen, missing = set(), []
    for entry in listed:
        key = strip_extension(entry.replace("\\", "/"))
        found = by_path.get(key) or by_stem.get(key) or []
        if len(found) > 1:
            raise UserError(f"--include={option}: {entry} fits {found[0]} and {found[1]}; list it with its folder.")
        chosen.update(found)
        if not found:
            missing.append(one_line(entry))
    if not chosen:
        raise UserError(f"--include={option}: none of its {len(missing)} names is in the source (first: {missing[0]}).")
    return [name for name in origins if name in chosen], missing
