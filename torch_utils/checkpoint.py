"""Checkpoint files: tensors plus JSON text in one file, never code.

A checkpoint is a nest of dict, list, tuple, str, int, float, bool, None and tensors. On disk it is what
``torch.save`` makes of ``{"format", "kind", "json", "tensors"}`` with the structure as JSON and the
tensors by number, so that ``torch.load(weights_only=True)`` opens it and nothing in it can run. It is read here by
`checkpoint_file.read`, which trusts the file even less.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dnnlib import UserError, atomic_write, format_bytes
from dnnlib.util import write_error
from torch_utils import checkpoint_file
from torch_utils.inert_data import Unsafe

FORMAT = "dicgan-1"

KINDS = {
    "gan": "a generator checkpoint (network-snapshot-*.pkl of train.py)",
    "ldm": "a latent diffusion checkpoint (network-snapshot-*.pkl of ldm/train.py)",
    "latents": "a latent file (of ldm/sample.py)",
    "prior": "a prior over latents (of gen_images.py --save-source)",
    "stats": "a cache of feature statistics",
}

# Parts that are tables, in whatever kind they occur.
_TABLES = ("config", "G", "D", "G_ema", "ema", "progress", "conditioning", "versions", "settings", "provenance")


def pack(state: Any, tensors: list[torch.Tensor]) -> Any:
    """JSON-ready copy of `state`; every tensor is appended to `tensors` and replaced by its number.

    Raises TypeError for what a checkpoint can't hold.
    """
    if isinstance(state, torch.Tensor):
        if state.dtype not in checkpoint_file.DTYPES.values():
            raise TypeError(f"a checkpoint can't hold tensors of {state.dtype}")
        tensors.append(state.detach().cpu().contiguous())
        return {"$tensor": len(tensors) - 1}
    if isinstance(state, dict):
        # A list of pairs keeps the order and the integer keys of optimizer states.
        if not all(isinstance(key, (str, int)) for key in state):
            raise TypeError("a checkpoint can't hold dictionaries with keys that are neither text nor whole numbers")
        return {"$dict": [[key, pack(value, tensors)] for key, value in state.items()]}
    if isinstance(state, tuple):
        return {"$tuple": [pack(value, tensors) for value in state]}
    if isinstance(state, list):
        return [pack(value, tensors) for value in state]
    if state is None or isinstance(state, (str, bool, int, float)):
        return state
    raise TypeError(f"a checkpoint can't hold {type(state).__name__}")


def unpack(packed: Any, tensors: list[torch.Tensor]) -> Any:
    """Inverse of `pack`; raises ValueError, TypeError or RecursionError on a malformed tree."""
    if isinstance(packed, list):
        return [unpack(value, tensors) for value in packed]
    if not isinstance(packed, dict):
        return packed
    if len(packed) != 1:
        raise ValueError("a node of no kind")
    kind, content = next(iter(packed.items()))
    if kind == "$tensor":
        if type(content) is not int or not 0 <= content < len(tensors):
            raise ValueError("a tensor that isn't there")
        return tensors[content]
    if not isinstance(content, list) or kind not in ("$tuple", "$dict"):
        raise ValueError("a node of no kind")
    if kind == "$tuple":
        return tuple(unpack(value, tensors) for value in content)
    state = {key: unpack(value, tensors) for key, value in content}
    if len(state) < len(content) or not all(isinstance(key, (str, int)) for key in state):
        raise ValueError("a key that occurs twice or is none")
    return state


def save(path: str | os.PathLike, kind: str, state: dict[str, Any]) -> None:
    """Writes `state` under `path`, atomically: on any failure the file that stood there before stays.

    `kind` is a key of `KINDS`. Raises `UserError` when the disk is full or not writable.
    """
    assert kind in KINDS, kind
    tensors: list[torch.Tensor] = []
    text = json.dumps(pack(state, tensors))
    _check_space(Path(path), sum(t.numel() * t.element_size() for t in tensors) + len(text))
    try:
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, "kind": kind, "json": text, "tensors": tensors}, file)
    except RuntimeError as error:  # torch wraps the OSError of the file object
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise write_error(path, cause) from error
        raise UserError(f"Cannot write {path}: {_first_line(error)}. Is the disk full? Nothing was changed.") from error


def _check_space(path: Path, needed: int) -> None:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"Cannot write {path}: it needs {format_bytes(needed)} and the disk has {format_bytes(free)} free; "
            "free some space and run the same command again. Nothing was changed."
        )


def load(path: str | os.PathLike, kind: str | tuple[str, ...]) -> dict[str, Any]:
    """The state saved under `path`, tensors on the CPU. No code of the file is ever run.

    `kind`: the kind or kinds that fit here. Anything else (missing, truncated, foreign, of another
    kind) is a one-line `UserError`.
    """
    kinds = (kind,) if isinstance(kind, str) else kind
    record = _read_record(path)
    if record["kind"] not in kinds:
        raise UserError(
            f"{path} is {KINDS.get(record['kind'], 'a file of another kind')}; "
            f"here {' or '.join(KINDS[k] for k in kinds)} is needed."
        )
    try:
        state = unpack(json.loads(record["json"]), record["tensors"])
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its table of contents does not fit. Use another snapshot.") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is damaged: it holds no named entries. Use another snapshot.")
    odd = [name for name in _TABLES if not isinstance(state.get(name, {}), dict)]
    if odd:
        raise UserError(f"{path} is damaged: {odd[0]} holds no named entries. Use another snapshot.")
    for name, tensor in _named_tensors(state):
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path} holds values that are not finite ({name}): its training had diverged, or the file "
                            "is damaged. Use an earlier snapshot.")
    return state


def _named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a state with their places in it, such as ``G_ema/blocks.8.conv1.weight``."""
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _named_tensors(value, f"{name}/{key}" if name else str(key))
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from _named_tensors(value, f"{name}/{index}")


def kind_of(path: str | os.PathLike) -> str:
    """The kind of the checkpoint under `path`, of which no tensor is read; `UserError` as in `load`."""
    return _read_record(path, with_tensors=False)["kind"]


def _read_record(path: str | os.PathLike, with_tensors: bool = True) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist; give the path of a checkpoint file (*.pkl).")
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise Unsafe("it is no file of torch.save")
        record = checkpoint_file.read(path, with_tensors)
    except Unsafe as error:
        raise UserError(
            f"{path} is not a checkpoint of this project: it is another kind of file, or holds code or foreign "
            f"classes, which are never run ({error}). Give a network-snapshot-*.pkl that train.py or ldm/train.py "
            "wrote; pickles of the official code go through export.py import-official."
        ) from error
    except Exception as error:  # zipfile raises nearly anything on damaged files
        raise UserError(
            f"{path} cannot be read as a checkpoint: truncated or damaged ({_first_line(error)}). Use another snapshot."
        ) from error
    if not isinstance(record, dict) or not str(record.get("format", "")).startswith("dicgan-"):
        raise UserError(f"{path} is not a checkpoint of this project; give one that train.py or ldm/train.py wrote.")
    if record["format"] != FORMAT:
        raise UserError(f"{path} has format {record['format']}; this version reads {FORMAT}.")
    tensors = record.get("tensors")
    if not (isinstance(record.get("json"), str) and isinstance(record.get("kind"), str) and isinstance(tensors, list)
            and all(isinstance(tensor, torch.Tensor) for tensor in tensors if with_tensors)):
        raise UserError(f"{path} is damaged: parts are missing. Use another snapshot.")
    return record


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def weights_hash(state_dict: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and values of a module's tensors: the identity of its weights."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
