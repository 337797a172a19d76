"""The files that a latent diffusion run begins with, and what a resumed one needs of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib import UserError, atomic_write
from dnnlib.cli import make_run_dir
from dnnlib.config import MAX_SIZE
from ldm.batches import TIME_SAMPLING, LatentData
from ldm.checks import check_model
from ldm.presets import PRESETS
from ldm.training_loop import list_snapshots
from torch_utils import checkpoint
from torch_utils.launch import sign_run

LATENTS = "training_latents.pkl"
_OF_STATE = {"net", "optimizer", "collector", "best", "latents_hash"}  # beside what sampling needs
_OPTIONAL = {"kimg", "minutes", "patience", "ema_rampup"}
_OF_LATENTS = {"latents", "image_index", "classes", "gan_hash", "space", "normalize", "network", "dataset"}


@dataclass(frozen=True)
class Begun:
    """What a run consists of when it has its directory. labels: classes int64 ``[M]`` of the latents for G, or None."""

    config: dict[str, Any]
    data: LatentData
    run_dir: Path
    labels: torch.Tensor | None


def begin_files(outdir: Path, name: str, options: dict[str, Any], data: LatentData,
                labels: torch.Tensor | None) -> Path:
    """Makes the run directory with ``training_options.json`` and the latents; returns it."""
    run_dir = make_run_dir(outdir, name)
    with atomic_write(run_dir / "training_options.json") as file:
        file.write(json.dumps(options, indent=2).encode())
    checkpoint.save(run_dir / LATENTS, "latents", {"latents": data.latents, "image_index": data.image_index,
                                                   "classes": labels, **data.info})
    sign_run(run_dir)
    return run_dir


def reopen(run_dir: Path) -> tuple[Begun, dict[str, Any]]:
    """A run and its newest state; `UserError` if there is none, or a part of it is missing or not of its kind."""
    snapshots = list_snapshots(run_dir) if run_dir.is_dir() else []
    if not snapshots:
        raise UserError(f"--resume {run_dir}: no network-snapshot-*.pkl there; give a run directory of ldm/train.py.")
    state, stored = checkpoint.load(snapshots[-1], "ldm"), checkpoint.load(run_dir / LATENTS, "latents")
    check_model(snapshots[-1], state)
    missing = sorted(_OF_STATE - set(state)) + sorted(_OF_LATENTS - set(stored))
    if odd := missing[0] if missing else _odd_part(state, stored):
        raise UserError(f"--resume {run_dir}: its files are damaged, {odd} is missing or not of its kind. Start a new "
                        "run.")
    print(f"Resuming {run_dir} from {snapshots[-1].name}, {state['progress']['cur_nimg']} latents seen.", flush=True)
    info = {key: stored[key] for key in ("gan_hash", "space", "normalize", "network", "dataset")}
    told = stored["classes"] if state["config"]["net"].get("classes") else None
    data = LatentData(stored["latents"], stored["image_index"], info, told)
    return Begun(state["config"], data, run_dir, stored["classes"]), state


def _odd_part(state: dict[str, Any], stored: dict[str, Any]) -> str | None:
    """The first option or table of latents that training can't go on with."""
    config = state["config"]
    for key, usual in {**PRESETS["mlp"], "seed": 0, "minutes": None}.items():
        value = config.get(key, "missing")
        left_out = value is None and key in _OPTIONAL
        if not (left_out or isinstance(usual, str | list | dict) or _is_number(value, type(usual) is int)):
            return f"config/{key}"
    betas = config.get("betas")
    sound = {
        "config/betas": isinstance(betas, list) and len(betas) == 2 and all(_is_number(b) and b < 1 for b in betas),
        "config/time_sampling": config.get("time_sampling") in TIME_SAMPLING,
        "config/batch": 0 < config["batch"] <= MAX_SIZE,
        "config/eval_size": 0 < config["eval_size"] <= MAX_SIZE,
        "config/snap": config["snap"] > 0, "config/tick": config["tick"] > 0,
        "latents": _is_table(stored["latents"], torch.float32, 4)
        and list(stored["latents"].shape[1:]) == list(state["latent_shape"]),
        "image_index": _is_table(stored["image_index"], torch.int64, 1)
        and len(stored["image_index"]) == len(stored["latents"]),
        "classes": stored["classes"] is None or (_is_table(stored["classes"], torch.int64, 1)
                                                 and len(stored["classes"]) == len(stored["image_index"]))}
    return next((name for name, is_sound in sound.items() if not is_sound), None)


def _is_number(value: Any, whole: bool = False) -> bool:
    return type(value) in ((int,) if whole else (int, float)) and 0 <= value < 1 << 31


def _is_table(value: Any, dtype: torch.dtype, ndim: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == dtype and value.ndim == ndim
