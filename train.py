"""Train a GAN on a data set made by dataset_tool.py.

\b
Examples:
  python train.py --outdir runs --data flowers.zip --cfg dicgan --sigma 0.3
  python train.py --outdir runs --data flowers.zip --cfg icgan --generator stylegan2 --d-noise feature
  python train.py --outdir runs --data flowers.zip --cfg fastgan_lite --minutes 600
  python train.py --resume runs/00000-dicgan-flowers-gpus1-batch64
  python train.py --outdir runs --data flowers.zip --cfg dicgan --gpus 4    (torchrun: see docs/distributed.md)

\b
Presets: Projected GAN       fastgan, fastgan_lite, stylegan2
         DIC-GAN             dicgan, dicgan_lite
         other conditioning  icgan, disp, logogan, selfcond (and --cond with any)
         Diffusion-GAN       diffusiongan, diffusiongan_pixel (or --d-noise with any)
         baselines           fastgan_original, stylegan2_ada
         NAME_demo           any of them at 64 pixels on a CPU, in minutes

Exit codes: 0 finished, 2 bad input, 3 interrupted (a snapshot was written; continue with --resume).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from dnnlib import UserError, atomic_write
from dnnlib.cli import make_run_dir
from dnnlib.tuning import tune_process
from training.flags import preset_options

MEANINGLESS = {
    "nobench": "--nobench: cuDNN benchmarking stays off, for bit-for-bit resume.",
    "restart_every": "--restart-every: a killed run is continued with --resume RUN_DIR.",
}
LENGTH = ("kimg", "minutes", "metrics", "metrics_budget", "patience", "snap", "snap_minutes", "keep", "workers",
          "cache_images", "on_nan", "nan_retries", "compile")
CONTINUE_ONLY = {"resume", "dry_run", *LENGTH}


@click.command(help=__doc__)
@click.option("--outdir", metavar="DIR", help="Where to put the run directory  [required for new runs]")
@click.option("--cfg", metavar="NAME", help="Preset, see above  [required for new runs]")
@click.option("--data", metavar="ZIP|DIR", help="Data set made by dataset_tool.py  [required for new runs]")
@click.option("--resume", metavar="RUN_DIR", help="Continue this run, bit for bit, from its newest snapshot")
@click.option("--init-from", metavar="PKL", help="Start a new run from the weights of this checkpoint")
@preset_options
@click.option("--fp32", type=bool, metavar="BOOL", help="Official name of --amp off")
@click.option("--gpus", type=click.IntRange(min=1), help="Processes on this machine, a GPU each (--device cpu: cores)")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
@click.option("--desc", metavar="TEXT", help="Ending of the run directory's name")
@click.option("--nobench", type=bool, hidden=True)
@click.option("--restart-every", "--restart_every", type=int, hidden=True)
@click.option("-n", "--dry-run", is_flag=True, help="Print the resolved configuration and stop")
@click.pass_context
def main(ctx: click.Context, **flags: Any) -> None:
    for key, reason in MEANINGLESS.items():
        if flags.pop(key) is not None:
            raise UserError(f"{reason} Leave it out.")
    gpus, fp32, device = flags.pop("gpus"), flags.pop("fp32"), flags.pop("device")
    if fp32 is not None:
        if flags["amp"] is not None:
            raise UserError("--fp32 and --amp say the same thing; use --amp.")
        flags["amp"] = "off" if fp32 else "bf16"
    if not flags["resume"]:
        for key in ("outdir", "data", "cfg"):
            if not flags[key]:
                raise UserError(f"--{key} is missing. Example: train.py --outdir runs --data set.zip --cfg dicgan")

    from torch_utils import distributed
    from torch_utils.launch import begun_run, launch_local, wants_launch

    if wants_launch(gpus) and not flags["dry_run"]:
        sys.exit(launch_local(gpus, device))
    with distributed.joined(device) as own:
        begun = None if flags["resume"] else distributed.from_first(lambda: begun_run(Path(flags["outdir"])))
        if flags["resume"]:
            finished = resume(flags, ctx, own)
        elif begun:
            finished = go_on(begun, {}, False, own)
        else:
            finished = start(flags, own, max(distributed.world(), gpus or 1))
    sys.exit(0 if finished else 3)


def start(flags: dict[str, Any], device: Any, processes: int) -> bool:
    """A new run: resolve, show, make the run directory, train."""
    from torch_utils import distributed
    from training.checks import check_builds, check_data
    from training.dataset import ImageDataset
    from training.presets import preset
    from training.resolve import resolve

    cfg, outdir, desc = flags.pop("cfg"), Path(flags.pop("outdir")), flags.pop("desc")
    dry_run, init_path = flags.pop("dry_run"), flags.pop("init_from")
    flags.pop("resume")
    if flags["feature_weights"] is not None:
        flags["feature_weights"] = os.path.abspath(flags["feature_weights"])
    if flags["sigma"] == "auto":
        flags["sigma"] = "auto:5"
    mirror = preset(cfg)["mirror"] if flags["mirror"] is None else flags["mirror"]
    cond = preset(cfg)["cond"] if flags["cond"] is None else flags["cond"]
    dataset = ImageDataset(flags["data"], use_labels=cond, mirror=mirror, max_images=flags["max_images"],
                           cache=flags["cache_images"] or "auto", holdout=flags["holdout"] or 0.0)
    data = {"path": os.path.abspath(flags.pop("data")), "name": dataset.name, "resolution": dataset.resolution,
            "aspect": list(dataset.aspect), "channels": dataset.channels, "num_images": dataset.num_images,
            "label_dim": dataset.label_dim, "fingerprint": dataset.fingerprint}
    config = resolve(cfg, flags, data)
    check_run(config, processes, device)
    init_state = None
    if init_path:
        from training.run_state import load_state
        init_state = load_state(init_path)
        # D's heads have learned on the statistics that an official snapshot's frozen network had.
        if "backbone" in config["D"] and init_state["config"]["D"].get("official_zero_pass"):
            config["D"]["official_zero_pass"] = True
    check_builds(config, init_path, init_state)
    resolved = config
    config = distributed.from_first(lambda: resolved)
    check_data(dataset, config["data"])
    click.echo(json.dumps(config, indent=2))
    if dry_run:
        click.echo("Dry run: nothing was trained or written.")
        return True
    name = f"{cfg}-{dataset.name}-gpus{processes}-batch{config['run']['batch']}" + (f"-{desc}" if desc else "")
    run_dir = distributed.from_first(lambda: begin(outdir, name, config))
    return launch(config, run_dir, dataset, device, None, (init_path, init_state) if init_state else None)


def begin(outdir: Path, name: str, config: dict[str, Any]) -> Path:
    """Makes the run directory with its ``training_options.json``."""
    from torch_utils.launch import sign_run

    run_dir = make_run_dir(outdir, name)
    with atomic_write(run_dir / "training_options.json") as file:
        file.write(json.dumps(config, indent=2).encode())
    sign_run(run_dir)
    return run_dir


def resume(flags: dict[str, Any], ctx: click.Context, device: Any) -> bool:
    """Continue a run from its newest snapshot with its stored configuration; only its length may change."""
    given = {key for key in flags if ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE}
    if given - CONTINUE_ONLY:
        odd = sorted("--" + key.replace("_", "-") for key in given - CONTINUE_ONLY)
        raise UserError(f"{', '.join(odd)} cannot change in a resumed run; leave it out, or start a new run with "
                        "--outdir, --data, --cfg and --init-from.")
    length = {key: flags[key] for key in LENGTH if flags[key] is not None}
    return go_on(Path(flags["resume"]), length, flags["dry_run"], device)


def go_on(run_dir: Path, length: dict[str, Any], dry_run: bool, device: Any) -> bool:
    """Continues the run in `run_dir`; length: new values of its options of `LENGTH`."""
    from torch_utils import distributed
    from training.checks import check_data, note_processes
    from training.dataset import ImageDataset
    from training.resuming import newest_state

    state = distributed.from_first(lambda: newest_state(run_dir))
    config = state["config"]
    config["run"] |= length
    check_run(config, distributed.world(), device)
    data = config["data"]
    dataset = ImageDataset(data["path"], use_labels=data["use_labels"], mirror=data["mirror"],
                           max_images=data["max_images"], cache=config["run"].get("cache_images", "auto"),
                           holdout=data.get("holdout", 0.0))
    check_data(dataset, data)
    if note := note_processes(state):
        click.echo(note)
    if dry_run:
        click.echo(json.dumps(config, indent=2) + "\nDry run: nothing was trained or written.")
        return True
    return launch(config, run_dir, dataset, device, state, None)


def check_run(config: dict[str, Any], processes: int, device: Any) -> None:
    """Options that can't be had, in this run, by so many processes or on the device, are an error before training."""
    from dnnlib import construct
    from pg_modules import kernels
    from torch_utils import distributed
    from torch_utils.device import check_amp
    from training.checks import check_on_nan
    from training.run_state import frozen_networks

    construct(config["run"])
    distributed.check_batch(config["run"]["batch"], processes)
    check_on_nan(config["run"], processes)
    check_amp(device, config["loss"]["amp"])
    kernels.wanted()
    if config["run"].get("compile"):
        from training.compilation import check_compile

        check_compile(config["G"]["class_name"], device, processes)
    if config["run"]["metrics"] != "none":
        from metrics.snapshots import check_metrics

        check_metrics(config["run"]["metrics"], frozen_networks(config))


def launch(config: dict[str, Any], run_dir: Path, dataset: Any, device: Any,
           state: dict[str, Any] | None, init: tuple[str, dict[str, Any]] | None) -> bool:
    """Builds the run, restores it if there is a state, and trains with everything printed copied to log.txt."""
    from torch_utils import distributed
    from training.logs import describe, opened
    from training.preparation import prepare
    from training.run_state import RunState
    from training.training_loop import Trainer

    with contextlib.nullcontext() if distributed.rank() else opened(run_dir, state):
        click.echo(f"Run directory: {run_dir}")
        run = RunState(config, device)
        if state is not None:
            run.load_state_dict(state)
        elif init is not None:
            run.init_from(*init)
        prepare(run, dataset, run_dir, fit=state is None and init is None, resumed=state is not None)
        run.agree()
        click.echo(describe(run))
        if distributed.world() > 1:
            click.echo(f"Shared:  by {distributed.world()} processes")
        measured = config["run"]["metrics"] != "none"
        evaluate = make_evaluate(config, dataset, run_dir, device) if measured else None
        finished = Trainer(run, dataset, run_dir, evaluate).train()
        click.echo(f"Finished: {run.progress['cur_nimg']} images." if finished else
                   f"Stopped at {run.progress['cur_nimg']} images; continue with: python train.py --resume {run_dir}")
    return finished


def make_evaluate(config: dict[str, Any], dataset: Any, run_dir: Path, device: Any) -> Any:
    """The metrics of a snapshot, for the loop: conditions come from the training set, values go to metric-*.jsonl."""
    from metrics.image_sets import from_dataset
    from metrics.snapshots import SnapshotMetrics
    from training.measured import of_snapshots

    heldout = None
    if share := config["data"].get("holdout"):
        heldout = from_dataset(type(dataset)(dataset.path, holdout=share, part="heldout"), False)
    metrics = SnapshotMetrics(config["run"]["metrics"], from_dataset(dataset, config["data"]["mirror"]), heldout,
                              run_dir, device)
    return of_snapshots(metrics.measure, dataset)


if __name__ == "__main__":
    tune_process()
    main()
