"""Train a GAN on a data set made by dataset_tool.py.

\b
Examples:
  python train.py --outdir runs --data flowers.zip --cfg dicgan --sigma 0.3
  python train.py --outdir runs --data flowers.zip --cfg fastgan_lite --minutes 600
  python train.py --resume runs/00000-dicgan-flowers-gpus1-batch64

Exit codes: 0 finished, 2 bad input, 3 interrupted (a snapshot was written; continue with --resume).
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from dnnlib import UserError, atomic_write
from dnnlib.cli import make_run_dir
from dnnlib.tuning import tune_process

MEANINGLESS = {
    "map_depth": "--map-depth: FastGAN has no mapping network.",
    "cbase": "--cbase: FastGAN's channels are set by --ngf.",
    "cmax": "--cmax: FastGAN's channels are set by --ngf.",
    "nobench": "--nobench: cuDNN benchmarking stays off, for bit-for-bit resume.",
    "restart_every": "--restart-every: a killed run is continued with --resume RUN_DIR.",
}
DETECTOR = "efficientnet_lite2"  # of metrics during training
CONTINUE_ONLY = {"resume", "kimg", "minutes", "metrics", "snap", "snap_minutes", "keep", "workers", "device", "dry_run"}


class Latent(click.ParamType):
    """``16`` → (16, 1, 1); ``16x8x8`` → (16, 8, 8)."""

    name = "C|CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if re.fullmatch(r"[1-9]\d*", str(value)):
            return (int(value), 1, 1)
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", str(value)):
            self.fail(f"{value}: give channels (16) or channels x height x width (16x8x8).", param, ctx)
        return tuple(int(part) for part in value.split("x"))


class NumberOr(click.ParamType):
    """A number, or a word that starts with `word`."""

    def __init__(self, number: type, word: str) -> None:
        self.number, self.word = number, word
        self.name = f"{'INT' if number is int else 'FLOAT'}|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and re.fullmatch(rf"{self.word}(:.*)?", value):
            return value
        try:
            return self.number(value)
        except ValueError:
            self.fail(f"{value}: give a number or {self.word}.", param, ctx)


@click.command(help=__doc__)
@click.option("--outdir", metavar="DIR", help="Where to put the run directory  [required for new runs]")
@click.option("--cfg", metavar="NAME", help="Preset: fastgan, fastgan_lite, dicgan, dicgan_lite, fastgan_demo, "
              "dicgan_demo  [required for new runs]")
@click.option("--data", metavar="ZIP|DIR", help="Data set made by dataset_tool.py  [required for new runs]")
@click.option("--resume", metavar="RUN_DIR", help="Continue this run, bit for bit, from its newest snapshot")
@click.option("--init-from", metavar="PKL", help="Start a new run from the weights of this checkpoint")
@click.option("--sigma", type=NumberOr(float, "auto"), help="Noise scale of h in [0, 1), or auto[:PERPLEXITY]")
@click.option("--encoder", type=click.Choice(["frozen", "head", "joint", "constant"]), help="Form of f")
@click.option("--latent", type=Latent(), help="Shape of f")
@click.option("--info-weight", type=float, help="Weight of the information term")
@click.option("--cond", type=bool, metavar="BOOL", help="Train with the labels of the data set")
@click.option("--mirror", type=bool, metavar="BOOL", help="Add x-flipped images")
@click.option("--max-images", type=click.IntRange(min=1), help="Use at most this many images")
@click.option("--batch", type=int, help="Images per step")
@click.option("--batch-gpu", type=NumberOr(int, "auto"), help="Images per pass; auto fits the free memory")
@click.option("--gpus", type=int, help="Processes; 1 in this version")
@click.option("--kimg", type=float, help="Length of the run in thousands of images")
@click.option("--minutes", type=float, help="Length of the run in minutes of training")
@click.option("--tick", type=float, help="Thousands of images between two lines of stats.jsonl")
@click.option("--snap", type=int, help="Ticks between two snapshots")
@click.option("--snap-minutes", type=float, help="Minutes until a snapshot is due in any case")
@click.option("--keep", type=int, help="Newest snapshots that are kept; 0 = all")
@click.option("--metrics", metavar="NAMES", help="Comma-separated metrics at every snapshot, or none")
@click.option("--seed", type=int, help="Random seed")
@click.option("--ngf", type=click.IntRange(min=1), help="Channels of G at 128 px")
@click.option("--glr", type=float, help="Learning rate of G")
@click.option("--dlr", type=float, help="Learning rate of D")
@click.option("--amp", type=click.Choice(["off", "bf16"]), help="Mixed precision")
@click.option("--fp32", type=bool, metavar="BOOL", help="Official name of --amp off")
@click.option("--workers", type=NumberOr(int, "auto"), help="Loader processes")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
@click.option("--desc", metavar="TEXT", help="Ending of the run directory's name")
@click.option("--map-depth", type=int, hidden=True)
@click.option("--cbase", type=int, hidden=True)
@click.option("--cmax", type=int, hidden=True)
@click.option("--nobench", type=bool, hidden=True)
@click.option("--restart-every", "--restart_every", type=int, hidden=True)
@click.option("-n", "--dry-run", is_flag=True, help="Print the resolved configuration and stop")
@click.pass_context
def main(ctx: click.Context, **flags: Any) -> None:
    for key, reason in MEANINGLESS.items():
        if flags.pop(key) is not None:
            raise UserError(f"{reason} Leave it out.")
    gpus, fp32 = flags.pop("gpus"), flags.pop("fp32")
    if gpus not in (None, 1):
        raise UserError(f"--gpus {gpus}: this version trains in one process; leave it out or say 1.")
    if fp32 is not None:
        if flags["amp"] is not None:
            raise UserError("--fp32 and --amp say the same thing; use --amp.")
        flags["amp"] = "off" if fp32 else "bf16"
    if flags["resume"]:
        finished = resume(flags, ctx)
    else:
        for key in ("outdir", "data", "cfg"):
            if not flags[key]:
                raise UserError(f"--{key} is missing. Example: train.py --outdir runs --data set.zip --cfg dicgan")
        finished = start(flags)
    sys.exit(0 if finished else 3)


def start(flags: dict[str, Any]) -> bool:
    """A new run: resolve, show, make the run directory, train."""
    from dnnlib import construct
    from training.presets import preset, resolve

    cfg, outdir, desc = flags.pop("cfg"), Path(flags.pop("outdir")), flags.pop("desc")
    device, dry_run, init_path = flags.pop("device"), flags.pop("dry_run"), flags.pop("init_from")
    flags.pop("resume")
    if flags["sigma"] == "auto":
        flags["sigma"] = "auto:5"
    mirror = preset(cfg)["mirror"] if flags["mirror"] is None else flags["mirror"]
    cond = preset(cfg)["cond"] if flags["cond"] is None else flags["cond"]
    dataset = open_dataset(flags["data"], cond, mirror, flags["max_images"])
    data = {"path": os.path.abspath(flags.pop("data")), "name": dataset.name, "resolution": dataset.resolution,
            "num_images": dataset.num_images, "label_dim": dataset.label_dim, "fingerprint": dataset.fingerprint}
    config = resolve(cfg, flags, data)
    construct(config["run"])
    construct(config["conditioning"])
    check_metrics(config)
    init_state = None
    if init_path:
        from training.run_state import load_state
        init_state = load_state(init_path)
    click.echo(json.dumps(config, indent=2))
    if dry_run:
        click.echo("Dry run: nothing was trained or written.")
        return True
    name = f"{cfg}-{dataset.name}-gpus1-batch{config['run']['batch']}" + (f"-{desc}" if desc else "")
    run_dir = make_run_dir(outdir, name)
    with atomic_write(run_dir / "training_options.json") as file:
        file.write(json.dumps(config, indent=2).encode())
    return launch(config, run_dir, dataset, device, None, (init_path, init_state) if init_state else None)


def resume(flags: dict[str, Any], ctx: click.Context) -> bool:
    """Continue a run from its newest snapshot with its stored configuration; only its length may change."""
    from dnnlib import construct
    from training.run_state import list_snapshots, load_state

    given = {key for key in flags if ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE}
    if given - CONTINUE_ONLY:
        odd = sorted("--" + key.replace("_", "-") for key in given - CONTINUE_ONLY)
        raise UserError(f"{', '.join(odd)} cannot change in a resumed run; leave it out, or start a new run with "
                        "--outdir, --data, --cfg and --init-from.")
    run_dir = Path(flags["resume"])
    snapshots = list_snapshots(run_dir) if run_dir.is_dir() else []
    if not snapshots:
        raise UserError(f"--resume {run_dir}: no network-snapshot-*.pkl there; give a run directory of train.py.")
    state = load_state(snapshots[-1])
    config = state["config"]
    for key in ("kimg", "minutes", "metrics", "snap", "snap_minutes", "keep", "workers"):
        if flags[key] is not None:
            config["run"][key] = flags[key]
    construct(config["run"])
    check_metrics(config)
    data = config["data"]
    dataset = open_dataset(data["path"], data["use_labels"], data["mirror"], data["max_images"])
    if dataset.fingerprint != data["fingerprint"]:
        raise UserError(f"{data['path']} has changed since this run began; put the former data set back, or start "
                        "a new run with --init-from.")
    click.echo(f"Resuming {run_dir} from {snapshots[-1].name}, {state['progress']['cur_nimg']} images seen.")
    if flags["dry_run"]:
        click.echo(json.dumps(config, indent=2) + "\nDry run: nothing was trained or written.")
        return True
    return launch(config, run_dir, dataset, flags["device"], state, None)


def open_dataset(path: str, cond: bool, mirror: bool, max_images: int | None) -> Any:
    """The data set, or a `UserError` with the command that makes one."""
    from training.dataset import ImageDataset

    return ImageDataset(path, use_labels=cond, mirror=mirror, max_images=max_images)


def check_metrics(config: dict[str, Any]) -> None:
    """Unknown metric names are an error before training, not hours into it."""
    if config["run"]["metrics"] != "none":
        from metrics.names import parse_metrics

        if any(metric.kind == "retrieval" for metric in parse_metrics(config["run"]["metrics"])):
            raise UserError("--metrics retrieval: train.py logs retrieval at every tick already; leave it out here.")


def launch(config: dict[str, Any], run_dir: Path, dataset: Any, device_name: str,
           state: dict[str, Any] | None, init: tuple[str, dict[str, Any]] | None) -> bool:
    """Builds the run, restores it if there is a state, and trains with everything printed copied to log.txt."""
    from torch_utils.device import select_device
    from training.logs import Tee, describe
    from training.run_state import RunState
    from training.training_loop import Trainer, prepare_latents

    device = select_device(device_name)
    with Tee(run_dir / "log.txt"):
        click.echo(f"Run directory: {run_dir}")
        run = RunState(config, device)
        if state is not None:
            run.load_state_dict(state)
        elif init is not None:
            run.init_from(*init)
        prepare_latents(run, dataset, fit=state is None and init is None, choose=state is None)
        click.echo(describe(run))
        evaluate = None
        if config["run"]["metrics"] != "none":
            evaluate = make_evaluate(config, dataset, run_dir, device)
        finished = Trainer(run, dataset, run_dir, evaluate).train()
        click.echo(f"Finished: {run.progress['cur_nimg']} images." if finished else
                   f"Stopped at {run.progress['cur_nimg']} images; continue with: python train.py --resume {run_dir}")
    return finished


def make_evaluate(config: dict[str, Any], dataset: Any, run_dir: Path, device: Any) -> Any:
    """The metrics of a snapshot, for the loop: conditions come from the training set, values go to metric-*.jsonl."""
    from metrics.detectors import check_not_own, load_detector
    from metrics.features import FeatureCache
    from metrics.image_sets import from_dataset
    from metrics.registry import evaluate, write_records
    from training.sampling import training_sampler

    check_not_own(DETECTOR, config["D"]["backbone"])
    detector = load_detector(DETECTOR, None, device)
    cache = FeatureCache(FeatureCache.default_folder(), click.echo)
    reals = from_dataset(dataset, config["data"]["mirror"])

    def measure(gan: Any, snapshot: Path) -> dict[str, float]:
        sampler = training_sampler(gan, dataset)
        records = evaluate(
            config["run"]["metrics"], lambda count: sampler.images(range(count)), reals, detector=detector, cache=cache,
            provenance={"snapshot_pkl": snapshot.name, "network_hash": gan.hash, "cur_nimg": gan.progress["cur_nimg"],
                        "conditions": {**sampler.provenance, "ref": "training set"}})
        write_records(records, run_dir)
        return {name: value for record in records for name, value in record["results"].items()}

    return measure


if __name__ == "__main__":
    tune_process()
    main()
