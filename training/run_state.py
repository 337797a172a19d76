"""Everything that a run is made of, built from its configuration, saved to and restored from one checkpoint."""

from __future__ import annotations

import copy
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnnlib import UserError, construct
from pg_modules.fastgan import Generator
from torch_utils import checkpoint
from torch_utils.rng import mix_seed
from torch_utils.stats import Collector
from training.conditioning.base import Conditioning


def versions() -> dict[str, str]:
    """Versions that a bit-for-bit resume depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
            "threads": str(torch.get_num_threads())}


class RunState:
    """G, D, G_ema, conditioning, optimizers, statistics and progress of one run.

    Progress: ``cur_nimg`` images and ``cur_tick`` ticks done, ``tick_start_nimg``, training ``seconds``
    over all sessions, ``best`` value of the first metric with its ``best_nimg``.
    """

    def __init__(self, config: dict[str, Any], device: torch.device) -> None:
        """Builds the networks with initial weights that depend on the run's seed alone."""
        self.config, self.device = config, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(config["run"]["seed"], "init") % 2**32)
            self.G: Generator = construct(config["G"]).train().to(device)
            self.D: nn.Module = construct(config["D"]).train().to(device)
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        self.conditioning: Conditioning = construct(config["conditioning"])
        optim = config["optim"]
        adam = {"betas": tuple(optim["betas"]), "eps": optim["eps"], "foreach": True}
        self.opt_G = torch.optim.Adam((p for p in self.G.parameters() if p.requires_grad), lr=optim["glr"], **adam)
        self.opt_D = torch.optim.Adam((p for p in self.D.parameters() if p.requires_grad), lr=optim["dlr"], **adam)
        self.collector = Collector()
        self.progress: dict[str, Any] = {
            "cur_nimg": 0, "cur_tick": 0, "tick_start_nimg": 0, "seconds": 0.0, "best": None, "best_nimg": None,
        }

    def state_dict(self) -> dict[str, Any]:
        """The content of a ``gan`` checkpoint."""
        return {
            "config": self.config,
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "opt_G": self.opt_G.state_dict(),
            "opt_D": self.opt_D.state_dict(),
            "conditioning": self.conditioning.state_dict(),
            "collector": self.collector.state_dict(),
            "progress": dict(self.progress),
            "versions": versions(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`'s result."""
        for name in ("G", "D", "G_ema"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("opt_G", "opt_D", "conditioning", "collector"):
            getattr(self, name).load_state_dict(state[name])
        self.progress = dict(state["progress"])

    def init_from(self, path: str, state: dict[str, Any]) -> None:
        """Takes weights from another run's checkpoint (``--init-from``); raises `UserError` if they don't fit."""
        for name in ("G", "D", "G_ema"):
            # A new run starts at G_ema, the better of the two generators.
            source = state["G_ema" if name == "G" else name]
            target = getattr(self, name).state_dict()
            odd = sorted(set(target) ^ set(source)) + sorted(
                key for key in set(target) & set(source) if target[key].shape != source[key].shape)
            if odd:
                raise UserError(
                    f"--init-from {path}: its {name} has another structure ({odd[0]} and {len(odd) - 1} more differ); "
                    f"train with the options of that run (--cfg {state['config']['cfg']}, "
                    f"{state['config']['G']['img_resolution']} px) or without --init-from."
                )
            getattr(self, name).load_state_dict(source)

    def save(self, path: Path) -> None:
        """Writes the checkpoint atomically."""
        checkpoint.save(path, "gan", self.state_dict())


def load_state(path: str | Path) -> dict[str, Any]:
    """A ``gan`` checkpoint with the keys that every reader relies on; `UserError` otherwise."""
    state = checkpoint.load(path, "gan")
    missing = {"config", "G", "D", "G_ema", "progress", "conditioning"} - set(state)
    if missing:
        raise UserError(f"{path} is damaged: {', '.join(sorted(missing))} missing. Use another snapshot.")
    return state


def snapshot_path(run_dir: Path, cur_nimg: int) -> Path:
    """``network-snapshot-KIMG.pkl``."""
    return run_dir / f"network-snapshot-{cur_nimg // 1000:06d}.pkl"


def list_snapshots(run_dir: Path) -> list[Path]:
    """Snapshots of a run, oldest first."""
    return sorted(run_dir.glob("network-snapshot-??????.pkl"))


def prune_snapshots(run_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` snapshots; 0 keeps all."""
    for path in list_snapshots(run_dir)[:-keep] if keep else []:
        path.unlink(missing_ok=True)
