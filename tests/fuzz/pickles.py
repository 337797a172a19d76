"""Mutations of checkpoints: of the state that they hold, of the pickle that describes its tensors, of the archive."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
from collections.abc import Callable
from typing import Any

import torch

from fuzz.mutate import mutate_bytes, mutate_tree, mutate_zip, rezip, unzip
from torch_utils import checkpoint

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
CALLS = (b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"cbuiltins\ngetattr\n",
         b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"ctorch\nload\n")


def file_of(kind: str, state: dict[str, Any]) -> bytes:
    """The checkpoint of a state."""
    tensors: list[torch.Tensor] = []
    text = json.dumps(checkpoint.pack(state, tensors))
    return record(kind, text, tensors)


def record(kind: str, text: str, tensors: list[Any], form: str = checkpoint.FORMAT) -> bytes:
    """A checkpoint with any content in its places."""
    buffer = io.BytesIO()
    torch.save({"format": form, "kind": kind, "json": text, "tensors": tensors}, buffer)
    return buffer.getvalue()


def with_text(data: bytes, change: Callable[[str], str]) -> bytes:
    """A checkpoint whose JSON text is rewritten, everything else as it was."""
    parts = unzip(data)
    name = next(name for name in parts if name.endswith("/data.pkl"))
    old = pickle_text(parts[name])
    new = change(old.decode()).encode("utf-8", "surrogatepass")
    parts[name] = parts[name].replace(_counted(old), _counted(new))
    return rezip(list(parts.items()))


def pickle_text(stream: bytes) -> bytes:
    """The longest text in a pickle of protocol 2, which is the JSON of the state."""
    found, at = b"", stream.find(b"X")
    while at >= 0 and at + 5 <= len(stream):
        length = struct.unpack("<I", stream[at + 1:at + 5])[0]
        if at + 5 + length <= len(stream) and length > len(found) and stream[at + 5:at + 6] in b"{[":
            found = stream[at + 5:at + 5 + length]
        at = stream.find(b"X", at + 1)
    return found


def _counted(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def mutate_checkpoint(data: bytes, rng: random.Random) -> bytes:
    """Half of the time the state, else what a zip of tensors allows."""
    if rng.random() < 0.5:
        return with_text(data, lambda text: json.dumps(_biased(json.loads(text), rng)))
    return mutate_zip(data, rng, _change_part)


def _biased(tree: Any, rng: random.Random) -> Any:
    """Changes the configuration more often than the rest, of which there is more."""
    if rng.random() < 0.6 and isinstance(tree, dict) and isinstance(tree.get("$dict"), list):
        for pair in tree["$dict"]:
            if pair[0] == "config":
                pair[1] = mutate_tree(pair[1], rng)
                return tree
    return mutate_tree(tree, rng)


def _change_part(name: str, content: bytes, rng: random.Random) -> bytes:
    if not name.endswith("/data.pkl") or rng.random() < 0.4:
        return mutate_bytes(content, rng)
    if rng.random() < 0.4 and TENSOR in content:
        return content.replace(TENSOR, rng.choice(CALLS), rng.choice((1, -1)))
    # The tail describes the tensors; changes in the text before it are made by the other half.
    start = len(content) * 2 // 3
    return content[:start] + mutate_bytes(content[start:], rng)


class Payload:
    """Unpickles by calling something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def payloads(canary: str) -> dict[str, bytes]:
    """Pickles that write the file `canary` when they are loaded carelessly."""
    code = f"open({canary!r}, 'w').close()"
    calls = {"system": Payload(__import__("os").system, f"touch {canary}"), "exec": Payload(exec, code),
             "eval": Payload(eval, f"open({canary!r}, 'w')"), "open": Payload(open, canary, "w"),
             "import": Payload(__import__, "antigravity")}
    files = {}
    for name, call in calls.items():
        files[f"pickle-{name}"] = pickle.dumps({"G_ema": call}, protocol=2)
        files[f"torch-{name}"] = record("gan", "{}", [call])
    return files
