"""``--on-nan rollback``: from something that isn't finite back to the newest snapshot, and on by another way."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from dnnlib import UserError
from training.dataset import ImageDataset
from training.preparation import prepare
from training.run_state import RunState, list_snapshots, load_state

LR_FACTOR = 0.5  # of both learning rates, at every rollback


class NonFinite(UserError):
    """A loss or a gradient isn't finite; the weights weren't touched."""


def roll_back(run: RunState, dataset: ImageDataset, run_dir: Path, error: NonFinite) -> None:
    """Restores the newest snapshot with lower learning rates and another order of images, and saves it like that.

    `RunState.seed` follows from the number of rollbacks, and the rates are part of the optimizers: a later resume
    goes on in the same way. Training time counts on. Raises `error` again unless ``--on-nan rollback`` is set, with a
    snapshot to go back to and fewer than ``--nan-retries`` rollbacks so far.
    """
    options, snapshots = run.config["run"], list_snapshots(run_dir)
    if options.get("on_nan") != "rollback" or not snapshots:
        raise error
    most = options["nan_retries"]
    if run.progress["rollbacks"] >= most:
        raise UserError(f"{error.message} It was taken back {most} times before (--nan-retries).") from error
    config, seconds = run.config, run.progress["seconds"]
    run.load_state_dict(load_state(snapshots[-1]))
    prepare(run, dataset, run_dir, fit=False, resumed=True)
    run.progress["rollbacks"] += 1
    run.progress["seconds"] = seconds
    for optimizer in (run.opt_G, run.opt_D):
        for group in optimizer.param_groups:
            group["lr"] *= LR_FACTOR
    assert run.config is config, "the options of this session stay"
    run.save(snapshots[-1])
    rates = " and ".join(f"{float(optimizer.param_groups[0]['lr']):.3g}" for optimizer in (run.opt_G, run.opt_D))
    tqdm.write(f"{error.message}\nRollback {run.progress['rollbacks']} of {most}: on from {snapshots[-1].name}, image "
               f"{run.progress['cur_nimg']}, with learning rates {rates} and another order of images.")
