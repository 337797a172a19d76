"""Weights files that the user names, read without running anything in them."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from dnnlib import UserError


def check(path: str | os.PathLike | None, detector: str, remedy: str) -> None:
    """`UserError` with the remedy when no file is named or it isn't there."""
    if path is None:
        raise UserError(f"--detector {detector} needs its weights: {remedy}.")
    if not os.path.isfile(path):
        raise UserError(f"--weights {path} does not exist: {remedy}.")


def read_state(path: str | os.PathLike, remedy: str) -> dict[str, torch.Tensor]:
    """The table of tensors in a ``.safetensors`` file or one of ``torch.save``, there maybe under ``state_dict``."""
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on files that it then refuses
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the unpickler raise nearly anything, struct.error included
        raise UserError(f"--weights {path} can't be read as a file of weights; {remedy}.") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"--weights {path} holds no table of tensors; {remedy}.")
    return dict(state)
