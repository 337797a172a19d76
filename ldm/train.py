"""Train a latent diffusion model on the latents of a generator.

\b
Examples:
  python ldm/train.py --network runs/00000-…/network-snapshot-000200.pkl --outdir ldm-runs --minutes 2
  python -m ldm.train --network net.pkl --data flowers.zip --outdir ldm-runs --kimg 2000 --cond 1
  python ldm/train.py --network stylegan2.pkl --space w --samples 50000 --cfg mlp-5000x7 --outdir ldm-runs
  python ldm/train.py --resume ldm-runs/00000-ldm-flowers-mlp

Latents are f of the training images (dicgan, icgan, disp), or w or styles of StyleGAN2's mapping network.

The run directory gets best_model.pkl, the weights with the lowest loss on held-out images: the file to give to
--ldm. network-snapshot-*.pkl are for --resume, samples*.png show what the model draws.

Exit codes: 0 finished, 2 bad input, 3 interrupted (a snapshot was written; continue with --resume).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: the project is found from its root, and this folder shadows nothing
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(p for p in sys.path if Path(p).resolve() != _HERE)]

import click

from dnnlib import UserError
from dnnlib.cli import next_run_dir, stop_on_signal
from dnnlib.tuning import tune_process
from ldm.names import PREDICTIONS, SCHEDULES, WHITENINGS
from ldm.presets import PRESETS, with_flags

if TYPE_CHECKING:
    from ldm.batches import LatentData
    from ldm.run_files import Begun
    from ldm.trainer import Trainer

CONTINUE_ONLY = {"resume", "kimg", "minutes", "snap", "keep", "patience", "pictures", "dry_run"}
MAPPING_SAMPLES = 50_000  # as the work on test-time conditioning drew for its priors
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command(help=__doc__)
@click.option("--network", metavar="PKL", help="Checkpoint of train.py  [required for new runs]")
@click.option("--space", type=click.Choice(["f", "w", "s"]), default="f", show_default=True,
              help="Latents: f of the encoder, or w or style space of StyleGAN2")
@click.option("--samples", type=click.IntRange(min=4), help=f"Draws of w or s  [default: {MAPPING_SAMPLES}]")
@click.option("--cond", type=bool, metavar="BOOL", help="Tell the model the classes of the GAN  [default: 0]")
@click.option("--data", metavar="ZIP|DIR", help="Its images  [default: the set that the checkpoint names]")
@click.option("--mirror", type=bool, metavar="BOOL", help="Add x-flipped images  [default: as the GAN was trained]")
@click.option("--outdir", metavar="DIR", help="Where to put the run directory  [required for new runs]")
@click.option("--cfg", default="auto", show_default=True, metavar="NAME", help=f"auto, {', '.join(PRESETS)}")
@click.option("--schedule", type=click.Choice(SCHEDULES), help="Noise over time")
@click.option("--prediction", type=click.Choice(PREDICTIONS), help="What the network estimates and is trained on")
@click.option("--whiten", type=click.Choice(WHITENINGS), help="Normalisation of the latents")
@click.option("--kimg", type=POSITIVE, help="Length of the run in thousands of latents")
@click.option("--minutes", type=POSITIVE, help="Length of the run in minutes of training; alone, it replaces --kimg")
@click.option("--patience", type=click.IntRange(min=1), help="End after so many ticks without a lower held-out loss")
@click.option("--batch", type=click.IntRange(min=1), help="Latents per step")
@click.option("--lr", type=POSITIVE, help="Learning rate of Adam")
@click.option("--tick", type=POSITIVE, help="Thousands of latents between two lines of stats.jsonl")
@click.option("--snap", type=click.IntRange(min=1), help="Ticks between two snapshots")
@click.option("--keep", type=click.IntRange(min=0), help="Newest snapshots that are kept; 0 = all")
@click.option("--pictures", type=click.IntRange(0, 64), help="Decoded samples in the picture of each snapshot")
@click.option("--seed", type=click.IntRange(min=0, max=2**31 - 1), help="Random seed")
@click.option("--gpus", type=click.IntRange(min=1), help="Processes on this machine, a GPU each (--device cpu: cores)")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
@click.option("--desc", metavar="TEXT", help="Ending of the run directory's name")
@click.option("--resume", metavar="RUN_DIR", help="Continue this run, bit for bit, from its newest snapshot")
@click.option("-n", "--dry-run", is_flag=True, help="Print the resolved configuration and stop")
@click.pass_context
def main(ctx: click.Context, **flags: Any) -> None:
    gpus, device = flags.pop("gpus"), flags.pop("device")
    given = {key for key in flags if ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE}
    if not flags["resume"]:
        for key in ("network", "outdir"):
            if not flags[key]:
                raise UserError(f"--{key} is missing. Example: python ldm/train.py --network net.pkl --outdir ldm-runs")

    from torch_utils import distributed
    from torch_utils.launch import begun_run, launch_local, wants_launch

    if wants_launch(gpus) and not flags["dry_run"]:
        sys.exit(launch_local(gpus, device))
    with distributed.joined(device) as own:
        begun = None if flags["resume"] else distributed.from_first(lambda: begun_run(Path(flags["outdir"])))
        if begun:
            flags, given = {**dict.fromkeys(flags), "resume": begun}, set()
        processes = max(distributed.world(), gpus or 1)
        finished = resume(flags, given, own) if flags["resume"] else start(flags, own, processes)
    sys.exit(0 if finished else 3)


def start(flags: dict[str, Any], device: Any, processes: int) -> bool:
    """A new run: process 0 begins it, all train."""
    from torch_utils import distributed

    gan = None  # stays with process 0, which draws pictures

    def first() -> Begun | None:
        nonlocal gan
        begun, gan = begin(flags, device, processes)
        return begun

    begun = distributed.from_first(first)
    return begun is None or launch(begun, device, None, gan)


def begin(flags: dict[str, Any], device: Any, processes: int) -> tuple[Begun | None, Any]:
    """Resolves, shows, collects the latents, makes the run directory; and the generator. No run if it is a dry one."""
    if flags["space"] == "f" and flags["samples"] is not None:
        raise UserError("--samples counts draws of --space w or s; leave it out: f is of all images.")
    from ldm.run_files import Begun, begin_files
    from torch_utils import distributed
    from training.latent_data import describe_dataset, latent_shape, open_dataset
    from training.sampling import load_gan

    space = flags["space"]
    gan = load_gan(flags["network"], device)
    shape = latent_shape(gan, space)
    classes = gan.conditioning.classes if flags["cond"] else 0
    if flags["cond"] and not classes:
        raise UserError(f"--cond 1: {gan.path} knows no classes that latents could belong to; leave it out.")
    config = with_flags(flags, shape, classes)
    distributed.check_batch(config["batch"], processes)
    dataset = open_dataset(gan, space, flags["data"], flags["mirror"])
    about = describe_dataset(gan, dataset)
    samples = MAPPING_SAMPLES if flags["samples"] is None else flags["samples"]
    options = {
        **config, "network": os.path.abspath(gan.path), "gan_hash": gan.hash, "space": space,
        "samples": None if space == "f" else samples, "latent_shape": list(shape),
        "dataset": about,
    }
    name = "-".join(part for part in ("ldm", about["name"], "" if space == "f" else space, config["cfg"],
                                      flags["desc"]) if part)
    click.echo(json.dumps(options, indent=2))
    if about["fingerprint"] != gan.dataset["fingerprint"]:
        click.echo(f"Note: {about['path']} is not the set that {gan.path} was trained on.")
    if flags["dry_run"]:
        run_dir = next_run_dir(Path(flags["outdir"]), name)
        click.echo(f"Dry run: nothing was trained or written; the run directory would be {run_dir}.")
        return None, gan
    data, labels = collect_data(gan, dataset, options, told=bool(classes))
    run_dir = begin_files(Path(flags["outdir"]), name, options, data, labels)
    return Begun(config, data, run_dir, labels), gan


def collect_data(gan: Any, dataset: Any, options: dict[str, Any], told: bool) -> tuple[LatentData, Any]:
    """Latents with what the checkpoints say about them, and the classes that they belong to for G (or None).

    told: the latent model is told them, too.
    """
    from ldm.batches import LatentData
    from training.latent_data import collect

    space = options["space"]
    click.echo(f"Drawing {options['samples']} latents of the mapping network…" if space != "f" else
               f"Encoding {len(dataset)} images ({dataset.num_images} and their flips)…"
               if len(dataset) > dataset.num_images else f"Encoding {len(dataset)} images…")
    latents, index, labels = collect(gan, space, dataset, options["samples"], options["seed"])
    info = {"gan_hash": gan.hash, "space": space, "network": options["network"], "dataset": options["dataset"],
            "normalize": gan.G.encoder.normalization if space == "f" else "none"}
    return LatentData(latents, index, info, labels if told else None), labels


def resume(flags: dict[str, Any], given: set[str], device: Any) -> bool:
    """Continue a run from its newest snapshot with its stored configuration; only its length may change."""
    from ldm.run_files import reopen
    from torch_utils import distributed

    if given - CONTINUE_ONLY:
        odd = ", ".join(sorted("--" + key.replace("_", "-") for key in given - CONTINUE_ONLY))
        raise UserError(f"{odd} cannot change in a resumed run; leave it out, or start a new run.")
    begun, state = distributed.from_first(lambda: reopen(Path(flags["resume"])))
    config = begun.config
    config.update({key: flags[key] for key in ("kimg", "minutes", "snap", "keep", "patience", "pictures")
                   if flags[key] is not None})
    distributed.check_batch(config["batch"], distributed.world())
    if flags["dry_run"]:
        click.echo(json.dumps(config, indent=2) + "\nDry run: nothing was trained or written.")
        return True
    first = distributed.rank() == 0
    gan = reopen_gan(begun.data.info, device) if first and config["pictures"] else None
    return launch(begun, device, state, gan)


def reopen_gan(info: dict[str, Any], device: Any) -> Any:
    """The generator of a run that is continued, for its pictures; None, with a note, if it is gone."""
    from training.sampling import load_gan

    try:
        gan = load_gan(info["network"], device)
    except UserError:
        gan = None
    if gan is None or gan.hash != info["gan_hash"]:
        click.echo(f"Note: {info['network']} is not the network any more that this run began with: no pictures.")
        return None
    return gan


def picture_maker(trainer: Trainer, gan: Any, labels: Any) -> Callable[[Path], None] | None:
    """Writes pictures of what the moving average draws, through the generator; None where none are wanted."""
    count, space = trainer.config["pictures"], trainer.data.info["space"]
    if gan is None or not count:
        return None
    from ldm.latents import PriorSource
    from ldm.prior import Prior
    from ldm.settings import Sampling
    from training.latent_data import picture_writer

    write = picture_writer(gan, space, None if labels is None else labels.tolist(), count)

    def pictures(path: Path) -> None:
        prior = Prior("this run", trainer.sampling_state(), trainer.device, trainer.ema)
        write(path, PriorSource(prior, Sampling(sampler="dpm2m")))

    return pictures


def launch(begun: Begun, device: Any, state: dict[str, Any] | None, gan: Any) -> bool:
    """Trains, from the beginning or from `state`; False when interrupted. gan: for pictures, or None."""
    from ldm.trainer import Trainer
    from ldm.training_loop import Run
    from torch_utils import distributed
    from training.logs import opened

    config, data, run_dir = begun.config, begun.data, begun.run_dir
    log = contextlib.nullcontext() if distributed.rank() else opened(run_dir, state)
    with log, stop_on_signal() as stopped:
        trainer = Trainer(config, data, device, state)
        print(f"{trainer.describe()}\nRun:     {run_dir}", flush=True)
        if distributed.world() > 1:
            print(f"Shared:  by {distributed.world()} processes", flush=True)
        run = Run(trainer, run_dir, picture_maker(trainer, gan, begun.labels))
        finished = run.train(stopped)
        print(run.verdict() if finished else
              f"Interrupted; the state is saved. Continue with: python ldm/train.py --resume {run_dir}", flush=True)
    return finished


if __name__ == "__main__":
    tune_process()
    main()
