"""The identity of an image set: what it holds, whatever it is packed in and wherever it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dnnlib.images import ImageSource

MOST_READ = 20_000  # files


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the places below `count`, evenly spread over them."""
    return [place * count // min(count, most) for place in range(min(count, most))]


def set_fingerprint(source: ImageSource, names: Sequence[str], content: Mapping[str, Any] | None) -> str:
    """SHA-256 (hex) of the names and bytes of the images `names` of `source`, and of the labels of its dataset.json.

    The same for a folder and its zip. content: the parsed dataset.json, None without one. Of it all labels count, in
    any order, whether or not they are used. Of more than `MOST_READ` images, all names count, but only the bytes of so
    many, spread over the set: to read millions of files before every run would take minutes. `UserError` for a file
    that can't be read.
    """
    digest, read = hashlib.sha256(), set(spread(len(names), MOST_READ))
    for place, name in enumerate(names):
        content_hash = hashlib.sha256(source.read(name)).hexdigest() if place in read else ""
        digest.update(json.dumps([name, content_hash]).encode())
    labels = (content or {}).get("labels")
    lines = [json.dumps(pair, sort_keys=True) for pair in labels] if isinstance(labels, list) else []
    digest.update(json.dumps(sorted(lines)).encode())
    return digest.hexdigest()
