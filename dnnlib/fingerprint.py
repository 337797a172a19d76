"""The identity of an image set: what it holds, whatever it is packed in and wherever it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dnnlib.images import ImageSource


def set_fingerprint(source: ImageSource, names: Sequence[str], content: Mapping[str, Any] | None) -> str:
    """SHA-256 (hex) of the names and bytes of the images `names` of `source`, and of the labels of its dataset.json.

    The same for a folder and its zip. content: the parsed dataset.json, None without one. Of it all labels count, in
    any order, whether or not they are used. Reads every file. `UserError` for one that can't be read.
    """
    digest = hashlib.sha256()
    for name in names:
        digest.update(json.dumps([name, hashlib.sha256(source.read(name)).hexdigest()]).encode())
    labels = (content or {}).get("labels")
    lines = [json.dumps(pair, sort_keys=True) for pair in labels] if isinstance(labels, list) else []
    digest.update(json.dumps(sorted(lines)).encode())
    return digest.hexdigest()
