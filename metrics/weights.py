"""Weights files that the user names, read without running anything in them."""

from __future__ import annotations

import os

import torch

from dnnlib import UserError
from torch_utils.weights_file import read_weights


def check(path: str | os.PathLike | None, detector: str, remedy: str) -> None:
    """`UserError` with the remedy when no file is named or it isn't there."""
    if path is None:
        raise UserError(f"--detector {detector} needs its weights: {remedy}.")
    if not os.path.isfile(path):
        raise UserError(f"--weights {path} does not exist: {remedy}.")


def read_state(path: str | os.PathLike, remedy: str) -> dict[str, torch.Tensor]:
    """The table of tensors in a ``.safetensors`` file or one of ``torch.save``, there maybe under ``state_dict``.

    `UserError` with the remedy for any other file.
    """
    return read_weights(path, f"--weights {path}", remedy)
