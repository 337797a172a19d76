"""Whether an ``ldm`` checkpoint is what this version can sample from: every part there, of its kind and shape."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch

from dnnlib import UserError
from ldm.names import PREDICTIONS, SCHEDULES

SPACES = ("f", "w", "s")  # of latents: of the encoder, or behind the mapping network of StyleGAN2
NORMALIZATIONS = ("rms", "unit", "none")  # of latents, as `ldm.prior.normalize` knows them
MAX_STEPS = 100_000  # of a schedule; the usual number is 1000
_PARTS: dict[str, type | tuple[type, ...]] = {
    "config": dict, "latent_shape": (list, tuple), "gan_hash": str, "normalize": str, "progress": dict, "dataset": dict,
    "network": str, "whitening": dict, "ema": dict}


def check_model(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """`UserError` naming the first part of the checkpoint `state`, read from `path`, that can't be used."""
    odd = _odd_part(state)
    if odd is not None:
        raise UserError(f"{path} is damaged: its {odd} is missing or not of its kind. Use another snapshot.")


def _odd_part(state: Mapping[str, Any]) -> str | None:
    for name, kind in _PARTS.items():
        if not isinstance(state.get(name), kind):
            return name
    sound = {
        "latent_shape": _is_shape(state["latent_shape"]), "config": _is_config(state["config"]),
        "labels": _are_classes(state.get("labels")), "space": state.get("space", "f") in SPACES,
        "normalize": state["normalize"] in NORMALIZATIONS, "progress": type(state["progress"].get("cur_nimg")) is int,
        "ema": _are_weights(state["ema"])}
    odd = [name for name, is_sound in sound.items() if not is_sound]
    if odd:
        return odd[0]
    return None if _fits(state["whitening"], state["latent_shape"]) else "whitening"


def _is_shape(shape: Any) -> bool:
    return len(shape) == 3 and all(type(side) is int and side > 0 for side in shape)


def _are_weights(weights: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items())


def _is_config(config: Mapping[str, Any]) -> bool:
    schedule, net = config.get("schedule"), config.get("net")
    if not isinstance(schedule, dict) or not isinstance(net, dict) or not isinstance(config.get("cfg"), str):
        return False
    steps = schedule.get("num_steps")
    return (type(steps) is int and 2 <= steps <= MAX_STEPS and schedule.get("kind") in SCHEDULES
            and config.get("parametrisation") in PREDICTIONS)


def _are_classes(labels: Any) -> bool:
    return labels is None or (isinstance(labels, torch.Tensor) and labels.dtype == torch.int64 and labels.ndim == 1
                              and len(labels) > 0 and int(labels.min()) >= 0)


def _fits(whitening: Mapping[str, Any], shape: Any) -> bool:
    """Whether a whitening is one of latents of `shape`."""
    if set(whitening) != {"kind", "mean", "matrix", "inverse", "shrinkage"}:
        return False
    size = shape[0] if whitening["kind"] == "channel" else math.prod(shape)
    full = (size, size) if whitening["kind"] in ("full", "channel") else (size,)
    shapes = [tuple(whitening[name].shape) if isinstance(whitening[name], torch.Tensor) else None
              for name in ("mean", "matrix", "inverse")]
    return whitening["kind"] in ("full", "channel", "diagonal", "scalar") and shapes == [(size,), full, full]
