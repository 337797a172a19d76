"""What train.py checks before a run begins, so that what can't work is refused at once."""

from __future__ import annotations

from typing import Any

import torch

from dnnlib import UserError, construct
from torch_utils import distributed
from training.dataset import ImageDataset
from training.run_state import RunState


def check_builds(config: dict[str, Any], init_path: str | None, init_state: dict[str, Any] | None) -> None:
    """Builds everything without memory for its weights, so that what can't be built, or can't start from the
    weights of ``--init-from``, is refused."""
    with torch.device("meta"):
        run = RunState(config, torch.device("meta"))
        if config["conditioning"].get("encoder"):
            construct(config["conditioning"]["encoder"])
    if init_path and init_state:
        run.check_init(init_path, init_state)


def check_data(dataset: ImageDataset, data: dict[str, Any]) -> None:
    """`UserError` if the images are not those that the run began with, or that process 0 sees."""
    if dataset.fingerprint == data["fingerprint"]:
        return
    if distributed.rank():
        raise UserError(f"{dataset.path}: process {distributed.rank()} sees other images there than process 0; put "
                        "the same data set on every machine.")
    raise UserError(f"{data['path']} has changed since this run began; put the former data set back, or start "
                    "a new run with --init-from.")


def check_on_nan(options: dict[str, Any], processes: int) -> None:
    """`UserError` for rollbacks in a run of several processes, of which only the first has the snapshots."""
    if options.get("on_nan") == "rollback" and processes > 1:
        raise UserError(f"--on-nan rollback works in one process, and this run has {processes}; use --on-nan stop, and "
                        "torchrun --max-restarts or --resume.")


def note_processes(state: dict[str, Any]) -> str | None:
    """A line if a run goes on with another number of processes than it had; None otherwise."""
    before, now = int(state.get("versions", {}).get("processes", 1)), distributed.world()
    if before == now:
        return None
    size = min(state["config"]["run"]["batch_gpu"], state["config"]["run"]["batch"] // now) * now
    return (f"Note: this run had {before} process(es) and has {now} now. Images and noise go on as they were; sums "
            f"round differently, and statistics of a pass (batch normalisation) are of {size} images.")
