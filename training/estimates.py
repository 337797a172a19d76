"""How long a run may take and how many images fit a pass, found out by trying."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from dnnlib import format_time
from torch_utils import distributed
from training.memory import fit_batch, free_memory, try_step
from training.options import RunOptions
from training.run_state import RunState


def resolve_batch_gpu(run: RunState) -> int:
    """Says how long this may take; resolves ``auto`` once and keeps it, since batch norm makes it count."""
    opts, processes = run.config["run"], distributed.world()
    trial = try_step(run)
    left = opts["kimg"] * 1000 - run.progress["cur_nimg"]
    per_image = trial.seconds_per_image / processes
    whole = format_time(max(left, 0) * per_image)
    print(f"From a trial pass, roughly: {opts['kimg']:g} kimg would take {whole}, one "
          f"batch of {opts['batch']} images {format_time(opts['batch'] * per_image)}.", flush=True)
    if opts["batch_gpu"] == "auto":
        free = free_memory(run.device) // distributed.sharing(run.device)
        opts["batch_gpu"] = distributed.least(fit_batch(opts["batch"] // processes, trial.bytes_per_image, free))
        print(f"--batch-gpu auto: {opts['batch_gpu']} of {opts['batch'] // processes} images at a time.", flush=True)
    return int(opts["batch_gpu"])


def print_estimate(opts: RunOptions, progress: dict[str, Any], seconds: float) -> None:
    """Says at once how long this will take: the default dicgan is hours or days on a CPU.

    seconds: of the first batch.
    """
    left = opts.kimg * 1000 - progress["cur_nimg"]
    whole = left / opts.batch * seconds
    planned = whole if opts.minutes is None else min(whole, opts.minutes * 60 - progress["seconds"])
    tqdm.write(
        f"First batch of {opts.batch} images: {seconds:.1f} s ({opts.batch / seconds:.2f} img/s). "
        f"All {opts.kimg:g} kimg would take about {format_time(whole)}; "
        f"this run ends in about {format_time(max(planned, 0))} (set --kimg or --minutes to change that)."
    )
