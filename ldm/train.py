"""Train a latent diffusion model on the instance latents of a DIC-GAN.

\b
Examples:
  python ldm/train.py --network runs/00000-…/network-snapshot-000200.pkl --outdir ldm-runs --minutes 2
  python -m ldm.train --network net.pkl --data flowers.zip --outdir ldm-runs --kimg 2000
  python ldm/train.py --resume ldm-runs/00000-ldm-flowers-mlp

The run directory gets best_model.pkl, the weights with the lowest loss on held-out images: the file to give to
--ldm. network-snapshot-*.pkl are for --resume.

Exit codes: 0 finished, 2 bad input, 3 interrupted (a snapshot was written; continue with --resume).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: the project is found from its root, and this folder shadows nothing
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(p for p in sys.path if Path(p).resolve() != _HERE)]

import click

from dnnlib import UserError, atomic_write
from dnnlib.cli import make_run_dir, next_run_dir, stop_on_signal
from dnnlib.tuning import tune_process
from ldm.presets import PRESETS, resolve

if TYPE_CHECKING:
    from ldm.batches import LatentData

CONTINUE_ONLY = {"resume", "kimg", "minutes", "snap", "keep", "device", "dry_run"}
CONFIG_FLAGS = ("kimg", "minutes", "batch", "lr", "tick", "snap", "keep", "seed")
LATENTS = "training_latents.pkl"
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command(help=__doc__)
@click.option("--network", metavar="PKL", help="DIC-GAN checkpoint of train.py  [required for new runs]")
@click.option("--data", metavar="ZIP|DIR", help="Its images  [default: the set that the checkpoint names]")
@click.option("--mirror", type=bool, metavar="BOOL", help="Add x-flipped images  [default: as the GAN was trained]")
@click.option("--outdir", metavar="DIR", help="Where to put the run directory  [required for new runs]")
@click.option("--cfg", default="auto", show_default=True, metavar="NAME", help=f"auto, {', '.join(PRESETS)}")
@click.option("--kimg", type=POSITIVE, help="Length of the run in thousands of latents")
@click.option("--minutes", type=POSITIVE, help="Length of the run in minutes of training; alone, it replaces --kimg")
@click.option("--batch", type=click.IntRange(min=1), help="Latents per step")
@click.option("--lr", type=POSITIVE, help="Learning rate of Adam")
@click.option("--tick", type=POSITIVE, help="Thousands of latents between two lines of stats.jsonl")
@click.option("--snap", type=click.IntRange(min=1), help="Ticks between two snapshots")
@click.option("--keep", type=click.IntRange(min=0), help="Newest snapshots that are kept; 0 = all")
@click.option("--seed", type=click.IntRange(min=0, max=2**31 - 1), help="Random seed")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
@click.option("--desc", metavar="TEXT", help="Ending of the run directory's name")
@click.option("--resume", metavar="RUN_DIR", help="Continue this run, bit for bit, from its newest snapshot")
@click.option("-n", "--dry-run", is_flag=True, help="Print the resolved configuration and stop")
@click.pass_context
def main(ctx: click.Context, **flags: Any) -> None:
    if flags["resume"]:
        given = {key for key in flags if ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE}
        finished = resume(flags, given)
    else:
        for key in ("network", "outdir"):
            if not flags[key]:
                raise UserError(f"--{key} is missing. Example: python ldm/train.py --network net.pkl --outdir ldm-runs")
        finished = start(flags)
    sys.exit(0 if finished else 3)


def new_config(flags: dict[str, Any], latent_shape: tuple[int, ...]) -> dict[str, Any]:
    """The preset with the command line's values, and the keys that every run has: seed and minutes."""
    config = {**resolve(flags["cfg"], latent_shape, {}), "seed": 0, "minutes": None}
    config.update({key: flags[key] for key in CONFIG_FLAGS if flags[key] is not None})
    if flags["minutes"] is not None and flags["kimg"] is None:
        config["kimg"] = None
    return config


def start(flags: dict[str, Any]) -> bool:
    """A new run: resolve, show, encode the data set, make the run directory, train."""
    from torch_utils import checkpoint
    from torch_utils.device import select_device
    from training.sampling import load_gan

    device = select_device(flags["device"])
    gan = load_gan(flags["network"], device)
    if not gan.uses_latents:
        raise UserError(f"--network {gan.path}: this generator has no encoder and no latents; use a dicgan network.")
    encoder: Any = gan.G.encoder
    config = new_config(flags, encoder.latent_shape)
    dataset = open_dataset(gan, flags["data"], flags["mirror"])
    options = {
        **config, "network": os.path.abspath(gan.path), "gan_hash": gan.hash,
        "latent_shape": list(encoder.latent_shape),
        "dataset": {"path": os.path.abspath(dataset.path), "name": dataset.name, "num_images": dataset.num_images,
                    "resolution": dataset.resolution, "mirror": len(dataset) > dataset.num_images,
                    "fingerprint": dataset.fingerprint},
    }
    name = f"ldm-{dataset.name}-{config['cfg']}" + (f"-{flags['desc']}" if flags["desc"] else "")
    click.echo(json.dumps(options, indent=2))
    if dataset.fingerprint != gan.dataset["fingerprint"]:
        click.echo(f"Note: {dataset.path} is not the set that {gan.path} was trained on.")
    if flags["dry_run"]:
        run_dir = next_run_dir(Path(flags["outdir"]), name)
        click.echo(f"Dry run: nothing was trained or written; the run directory would be {run_dir}.")
        return True
    data = encode_dataset(gan, dataset, options)
    run_dir = make_run_dir(Path(flags["outdir"]), name)
    with atomic_write(run_dir / "training_options.json") as file:
        file.write(json.dumps(options, indent=2).encode())
    stored = {"latents": data.latents, "image_index": data.image_index, **data.info}
    checkpoint.save(run_dir / LATENTS, "latents", stored)
    return launch(config, data, run_dir, device, None)


def open_dataset(gan: Any, path: str | None, mirror: bool | None) -> Any:
    """The images to encode: those of the GAN's own training unless `path` names others."""
    from training.dataset import ImageDataset

    own = gan.dataset
    if path is None and not os.path.exists(own["path"]):
        raise UserError(f"{gan.path} was trained on {own['path']}, which is not there; give its place with --data.")
    dataset = ImageDataset(path or own["path"], mirror=own["mirror"] if mirror is None else mirror,
                           max_images=own.get("max_images") if path is None else None, cache=False)
    if dataset.resolution != own["resolution"]:
        raise UserError(f"--data {dataset.path}: {dataset.resolution} px, but {gan.path} has {own['resolution']} px; "
                        f"convert it with dataset_tool.py --resolution {own['resolution']}.")
    return dataset


def encode_dataset(gan: Any, dataset: Any, options: dict[str, Any]) -> LatentData:
    """Latents of all images and flips, with what the checkpoints say about them."""
    import torch

    from ldm.batches import LatentData
    from training.sources import encode_images

    click.echo(f"Encoding {len(dataset)} images ({dataset.num_images} and their flips)…"
               if len(dataset) > dataset.num_images else f"Encoding {len(dataset)} images…")
    info = {"gan_hash": gan.hash, "normalize": gan.G.encoder.normalization, "network": options["network"],
            "dataset": options["dataset"]}
    return LatentData(encode_images(gan, dataset), torch.arange(len(dataset)) % dataset.num_images, info)


def resume(flags: dict[str, Any], given: set[str]) -> bool:
    """Continue a run from its newest snapshot with its stored configuration; only its length may change."""
    from ldm.batches import LatentData
    from ldm.training_loop import list_snapshots
    from torch_utils import checkpoint
    from torch_utils.device import select_device

    if given - CONTINUE_ONLY:
        odd = ", ".join(sorted("--" + key.replace("_", "-") for key in given - CONTINUE_ONLY))
        raise UserError(f"{odd} cannot change in a resumed run; leave it out, or start a new run.")
    run_dir = Path(flags["resume"])
    snapshots = list_snapshots(run_dir) if run_dir.is_dir() else []
    if not snapshots:
        raise UserError(f"--resume {run_dir}: no network-snapshot-*.pkl there; give a run directory of ldm/train.py.")
    state = checkpoint.load(snapshots[-1], "ldm")
    stored = checkpoint.load(run_dir / LATENTS, "latents")
    wanted = {"net", "ema", "optimizer", "config", "progress", "collector", "best", "whitening", "latents_hash"}
    if missing := sorted(wanted - set(state)) + sorted({"image_index", "gan_hash"} - set(stored)):
        raise UserError(f"--resume {run_dir}: its files are damaged, {', '.join(missing)} missing. Start a new run.")
    config = state["config"]
    config.update({key: flags[key] for key in ("kimg", "minutes", "snap", "keep") if flags[key] is not None})
    click.echo(f"Resuming {run_dir} from {snapshots[-1].name}, {state['progress']['cur_nimg']} latents seen.")
    if flags["dry_run"]:
        click.echo(json.dumps(config, indent=2) + "\nDry run: nothing was trained or written.")
        return True
    info = {key: stored[key] for key in ("gan_hash", "normalize", "network", "dataset")}
    data = LatentData(stored["latents"], stored["image_index"], info)
    return launch(config, data, run_dir, select_device(flags["device"]), state)


def launch(config: dict[str, Any], data: LatentData, run_dir: Path, device: Any, state: dict[str, Any] | None) -> bool:
    """Trains in `run_dir`, new or from `state`; False when interrupted."""
    from ldm.trainer import Trainer
    from ldm.training_loop import BEST, Run
    from torch_utils.device import device_description
    from training.logs import Tee

    with Tee(run_dir / "log.txt"), stop_on_signal() as stopped:
        trainer = Trainer(config, data, device, state)
        count = sum(parameter.numel() for parameter in trainer.net.parameters())
        print(f"Latents: {len(data.latents)} of shape {'x'.join(map(str, data.latents.shape[1:]))}, "
              f"{len(trainer.train_latents)} for training; whitening: {trainer.whitening.kind}, shrinkage "
              f"{trainer.whitening.shrinkage:.2f}\nNetwork: {config['cfg']}, {count / 1e6:.2f} M parameters\n"
              f"Device:  {device_description(device)}\nRun:     {run_dir}", flush=True)
        finished = Run(trainer, run_dir).train(stopped)
        assert trainer.best is not None
        if finished:
            print(f"Done: held-out loss {trainer.best['loss']:.4f} at {trainer.best['cur_nimg'] / 1000:.1f} kimg, "
                  f"Gaussian guess {trainer.guess_loss:.4f}.\nUse it with --ldm {run_dir / BEST}", flush=True)
            if trainer.best["loss"] > (1 - 1e-4) * trainer.guess_loss:  # an untrained net equals it up to rounding
                print("Warning: on held-out images the model never beat the Gaussian guess, so its samples are no "
                      "better than normal noise with the latents' mean and covariance. Train longer, or on more "
                      "images.", flush=True)
        else:
            print(f"Interrupted; the state is saved. Continue with: python ldm/train.py --resume {run_dir}", flush=True)
    return finished


if __name__ == "__main__":
    tune_process()
    main()
