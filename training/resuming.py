"""What a run that is continued begins from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dnnlib import UserError
from training.run_state import list_snapshots, load_state


def newest_state(run_dir: Path) -> dict[str, Any]:
    """What a run directory's newest snapshot holds; says so. `UserError` where a run can't go on from it."""
    snapshots = list_snapshots(run_dir) if run_dir.is_dir() else []
    if not snapshots:
        raise UserError(f"--resume {run_dir}: no network-snapshot-*.pkl there; give a run directory of train.py.")
    state = load_state(snapshots[-1])
    if "imported" in state:
        raise UserError(f"--resume {run_dir}: {snapshots[-1].name} was imported, without optimizers and data set; "
                        f"start a new run with --outdir, --data, --cfg and --init-from {snapshots[-1]}.")
    click.echo(f"Resuming {run_dir} from {snapshots[-1].name}, {state['progress']['cur_nimg']} images seen.")
    return state
