"""Weights of other projects' networks, from files that aren't trusted: ``.safetensors``, or of ``torch.save``."""

from __future__ import annotations

import os
from typing import Any

import torch

from dnnlib import UserError
from torch_utils.inert_data import Damaged, Unsafe
from torch_utils.inert_files import open_inert
from torch_utils.inert_torch import Tensor


def read_weights(path: str | os.PathLike, name: str, remedy: str) -> dict[str, torch.Tensor]:
    """The table of tensors in a file, there maybe under ``state_dict``, on the CPU.

    Nothing that the file names is run, and what it takes in memory is at most twice its size. Raises `UserError` with
    the `name` that the file has on the command line and the `remedy` for a file that is damaged or anything else.
    """
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        return _tensors(open_inert(path), 2 * os.path.getsize(path))
    except Unsafe as error:
        raise UserError(f"{name} is refused: it asks for {error}, which weights don't need. Nothing of it was run; "
                        f"{remedy}.") from error
    except Damaged as error:
        raise UserError(f"{name} cannot be read as weights ({error}); {remedy}.") from error
    except Exception as error:  # foreign bytes make safetensors, zipfile and pickletools raise nearly anything
        raise UserError(f"{name} cannot be read as weights; {remedy}.") from error


def _tensors(content: Any, bytes_left: int) -> dict[str, torch.Tensor]:
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise Damaged("it holds no table of tensors")
    if sum(tensor.size for tensor in state.values()) > bytes_left:  # a storage may be told to be many tensors
        raise Damaged("its tensors are larger than the file")
    return {key: tensor.values() for key, tensor in state.items()}
