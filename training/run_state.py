"""Everything that a run is made of, built from its configuration, saved to and restored from one checkpoint."""

from __future__ import annotations

import copy
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnnlib import UserError, construct
from pg_modules.sync_norm import synchronise
from torch_utils import checkpoint, distributed, exchange
from torch_utils.rng import mix_seed
from torch_utils.run_folder import held_signals
from torch_utils.stats import Collector
from training.conditioning.base import Conditioning
from training.config_checks import odd_part
from training.d_noise.base import DNoise
from training.objective import Objective


def versions() -> dict[str, str]:
    """Versions that a bit-for-bit resume depends on."""
    several = {"processes": str(distributed.world())} if distributed.world() > 1 else {}
    return {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
            "threads": str(torch.get_num_threads()), **several}


class RunState:
    """G, D, G_ema, conditioning, noise of D, objective, optimizers, statistics and progress of one run.

    Progress: ``cur_nimg`` images and ``cur_tick`` ticks done, ``tick_start_nimg``, training ``seconds``
    over all sessions, ``best`` value of the first metric (lower is better) with its ``best_nimg``, ``stale``
    evaluations since then, the last at ``measured_nimg``, ``metric_seconds`` in all, ``peaks`` of metrics that tell a
    collapse by falling; ``unfinished`` if pictures and metrics of the snapshot were still to come, ``rollbacks`` after
    something that wasn't finite.
    """

    def __init__(self, config: dict[str, Any], device: torch.device) -> None:
        """Builds the networks with initial weights that depend on the run's seed alone."""
        self.config, self.device = config, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(config["run"]["seed"], "init") % 2**32)
            self.G: Any = construct(config["G"]).train().to(device)
            self.D: Any = construct(config["D"]).train().to(device)
        for net in (self.G, self.D):
            synchronise(net)
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        if config["freeze_d"]:
            self.D.freeze(config["freeze_d"])
        self.conditioning: Conditioning = construct(config["conditioning"])
        self.d_noise: DNoise = construct(config["d_noise"])
        self.loss: Objective = construct(config["loss"], G=self.G, D=self.D, conditioning=self.conditioning,
                                         d_noise=self.d_noise)
        optim = config["optim"]
        self.opt_G = _adam(self.G, optim["glr"], optim["g_betas"], optim["eps"])
        self.opt_D = _adam(self.D, optim["dlr"], optim["d_betas"], optim["eps"])
        self.collector = Collector()
        self.progress: dict[str, Any] = {
            "cur_nimg": 0, "cur_tick": 0, "tick_start_nimg": 0, "seconds": 0.0, "best": None, "best_nimg": None,
            "stale": 0, "measured_nimg": None, "metric_seconds": 0.0, "peaks": {}, "unfinished": False,
            "rollbacks": 0,
        }

    @property
    def seed(self) -> int:
        """Of the order of images and of all noise: the run's own until a rollback, after each another one."""
        seed, rollbacks = self.config["run"]["seed"], self.progress["rollbacks"]
        return mix_seed(seed, "rollback", rollbacks) if rollbacks else seed

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
            "d_noise": self.d_noise.state_dict(),
            "loss": self.loss.state_dict(),
            "collector": self.collector.state_dict(),
            "progress": dict(self.progress),
            "versions": versions(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`'s result; what was collected is with process 0 from then on."""
        for name in ("G", "D", "G_ema"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("opt_G", "opt_D", "conditioning", "d_noise", "loss", "collector"):
            getattr(self, name).load_state_dict(state[name])
        if distributed.rank():
            self.collector.pop()
        self.progress |= state["progress"]

    def agree(self) -> None:
        """Networks and condition of process 0 become those of all: what it has fitted to the data needn't be the same
        bits on another machine."""
        exchange.broadcast(self.G, self.D, self.G_ema)
        self.conditioning.load_state_dict(distributed.from_first(self.conditioning.state_dict))

    def check_init(self, path: str, state: dict[str, Any]) -> dict[str, list[str]]:
        """Which weights of another run's checkpoint are taken (``--init-from``): names by network.

        All of them, or from an unconditional network all that have nothing to do with the condition, which starts
        afresh (fine-tuning with DISP). Raises `UserError` for networks that differ in more.
        """
        if not state["D"]:
            raise UserError(f"--init-from {path}: it was imported without a discriminator, and training starts from "
                            "both networks; leave --init-from out.")
        source, own = state["config"], self.config
        adapts = _core(source) == _core(own) and not source["G"]["c_parts"] and not source["G"]["h_channels"]
        taken = {}
        for name in ("G_ema", "D"):
            there, here = state[name], getattr(self, name).state_dict()
            taken[name] = [key for key in here if key in there and here[key].shape == there[key].shape]
            odd = sorted((set(here) | set(there)) - set(taken[name]))
            if odd and not adapts:
                raise UserError(
                    f"--init-from {path}: its {name} has another structure ({odd[0]} and {len(odd) - 1} more differ); "
                    f"train with the options of that run (--cfg {source['cfg']}, {source['G']['img_resolution']} px) "
                    "or without --init-from. Only an unconditional network can get a condition."
                )
        return taken

    def init_from(self, path: str, state: dict[str, Any]) -> None:
        """Takes weights from another run's checkpoint and says so; raises `UserError` as `check_init`."""
        taken = self.check_init(path, state)
        # A new run starts at G_ema, the better of the two generators.
        for name, source in (("G", "G_ema"), ("G_ema", "G_ema"), ("D", "D")):
            getattr(self, name).load_state_dict({key: state[source][key] for key in taken[source]}, strict=False)
        for name, keys in taken.items():
            print(f"--init-from: {len(keys)} of {len(getattr(self, name).state_dict())} tensors of {name}.", flush=True)

    def save(self, path: Path) -> None:
        """Writes the checkpoint atomically; Ctrl-C waits."""
        with held_signals():
            checkpoint.save(path, "gan", self.state_dict())


def _adam(net: nn.Module, lr: float, betas: list[float], eps: float) -> torch.optim.Adam:
    trained = [p for p in net.parameters() if p.requires_grad]
    if not trained:
        raise UserError("--freeze-d leaves nothing of the discriminator to train; freeze fewer blocks.")
    return torch.optim.Adam(trained, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


def load_state(path: str | Path) -> dict[str, Any]:
    """A ``gan`` checkpoint with the keys that every reader relies on; `UserError` otherwise."""
    state = checkpoint.load(path, "gan")
    missing = {"config", "G", "D", "G_ema", "progress", "conditioning"} - set(state)
    if missing:
        raise UserError(f"{path} is damaged: {', '.join(sorted(missing))} missing. Use another snapshot.")
    if "d_noise" not in state["config"]:
        raise UserError(f"{path} was written before this version, which names the parts of its networks otherwise; "
                        "train anew, or use the version that wrote it.")
    if odd := odd_part(state["config"]):
        raise UserError(f"{path} is damaged: {odd} of its configuration is missing or of another kind. Use another "
                        "snapshot.")
    return state


def _core(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What G and D are, apart from their conditions."""
    of_condition = {"c_parts", "h_channels", "sigma_input", "encoder", "instance_dim"}
    return [{key: value for key, value in config[net].items() if key not in of_condition} for net in ("G", "D")]


def image_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width) of the images of a run, from its configuration."""
    G = config["G"]
    return G["img_channels"], G["img_resolution"] * G["aspect"][0], G["img_resolution"] * G["aspect"][1]


def frozen_networks(config: dict[str, Any]) -> list[str]:
    """Names of the frozen networks that D, f or clusters look through: none of them may judge the result."""
    specs = (config["D"], config["G"]["encoder"], config["conditioning"].get("encoder"))
    names = [spec["backbone"] for spec in specs if spec and "backbone" in spec]
    return list(dict.fromkeys(names))


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
