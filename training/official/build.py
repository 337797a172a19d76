"""The content of a checkpoint from the tensors of an official snapshot; its training options from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dnnlib import construct
from torch_utils.inert_data import Damaged
from torch_utils.inert_torch import Tensor
from training.official.names import fill, misfit
from training.presets import preset
from training.resolve import resolve
from training.run_state import RunState, versions

Tensors = Mapping[str, Mapping[str, Tensor]]  # by network and by name

# Keys of the preset table that train.py has flags for.
FLAGS = {"ngf": "--ngf", "cbase": "--cbase", "cmax": "--cmax", "map_depth": "--map-depth", "cond": "--cond",
         "diffaug": "--diffaug"}


def whole_state(config: dict[str, Any], tensors: Tensors, cur_nimg: int) -> dict[str, Any]:
    """A run of `config` with these G, D and G_ema, whose optimizers are fresh."""
    run = RunState(config, torch.device("cpu"))
    for name in ("G", "D", "G_ema"):
        fill(getattr(run, name), _values(tensors[name]))
    run.progress["cur_nimg"] = run.progress["tick_start_nimg"] = cur_nimg
    return run.state_dict()


def generator_state(config: dict[str, Any], tensors: Tensors, cur_nimg: int) -> dict[str, Any]:
    """What sampling needs; empty where a discriminator and training would have theirs."""
    generator = construct(config["G"])
    states = {}
    for name in ("G", "G_ema"):
        fill(generator, _values(tensors[name]))
        states[name] = {key: value.clone() for key, value in generator.state_dict().items()}
    empty: dict[str, Any] = {key: {} for key in ("D", "opt_G", "opt_D", "d_noise", "loss", "collector")}
    return {"config": config, **states, **empty, "conditioning": construct(config["conditioning"]).state_dict(),
            "progress": {"cur_nimg": cur_nimg}, "versions": versions()}


def _values(tensors: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
    """The numbers; `Damaged` if some aren't finite, which no checkpoint may hold."""
    values = {name: tensor.values() for name, tensor in tensors.items()}
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise Damaged(f"{name} holds values that aren't finite, after a training that diverged")
    return values


def training_flags(config: Mapping[str, Any], options: Mapping[str, Any], tensors: Tensors) -> list[str] | None:
    """Flags of train.py for a new run that ``--init-from`` accepts; None where no flags give such networks.

    options: keys of the preset table that make the networks of `config`.
    """
    row = preset(config["cfg"])
    chosen = {key: value for key, value in options.items() if key in FLAGS and value != row[key]}
    new = resolve(config["cfg"], chosen, config["data"])
    with torch.device("meta"):
        fits = all(misfit(construct(new[net]), tensors[net]) is None for net in ("G", "D"))
    if not fits:
        return None
    return ["--cfg", config["cfg"], *(
        text for key, value in chosen.items() for text in (FLAGS[key], str(int(value) if key == "cond" else value)))]
