"""Sample latents from a latent diffusion model and store them by seed.

\b
Examples:
  python ldm/sample.py --network ldm-runs/00000-…/best_model.pkl --seeds 0-999 --out latents.pkl
  python -m ldm.sample --network best_model.pkl --seeds 0-63 --sampler dpm2m --steps 15 --outdir out

The file goes to --ldm of gen_images.py and calc_metrics.py, together with the GAN that the model was trained for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the project is found from its root, and this folder shadows nothing
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(p for p in sys.path if Path(p).resolve() != _HERE)]

import click

from dnnlib import UserError
from dnnlib.cli import parse_seeds
from dnnlib.tuning import tune_process
from ldm.names import SAMPLERS, SPACINGS
from ldm.settings import Sampling


@click.command(help=__doc__)
@click.option("--network", required=True, metavar="PKL", help="Checkpoint of ldm/train.py, best_model.pkl as a rule")
@click.option("--seeds", required=True, metavar="LIST", help="Seeds, for example 0-63 or 1,5,9-12")
@click.option("--out", metavar="PKL", help="File to write")
@click.option("--outdir", metavar="DIR", help="Or the folder in which to write latents.pkl")
@click.option("--sampler", type=click.Choice(SAMPLERS), default="ddim", show_default=True,
              help="DDIM, DPM-Solver++ of second order, predictor-corrector, or (control) normal noise")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the sampler  [default: 50; dpm2m: 20]")
@click.option("--eta", type=click.FloatRange(0, 1), help="ddim: 0 = DDIM … 1 = DDPM  [default: 0]")
@click.option("--spacing", type=click.Choice(SPACINGS), help="Times that are visited  [default: the sampler's]")
@click.option("--corrections", type=click.IntRange(min=1), help="pc: Langevin steps per step  [default: 1]")
@click.option("--snr", type=float, help="pc: size of a Langevin step  [default: 0.16]")
@click.option("--class", "class_idx", type=int, help="Class, for models of --cond 1  [default: as in training]")
@click.option("--cfg-scale", type=float, help="Classifier-free guidance by the class  [default: 1]")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Latents at a time")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
def main(network: str, seeds: str, out: str | None, outdir: str | None, batch: int, device: str,
         **asked: Any) -> None:
    if (out is None) == (outdir is None):
        raise UserError("Say where the latents go with one of --out FILE and --outdir DIR.")
    path = Path(out) if out is not None else Path(str(outdir)) / "latents.pkl"
    if path.is_dir():
        raise UserError(f"--out {path}: this is a folder; give a file name, or use --outdir.")
    numbers = parse_seeds(seeds)

    import torch
    from tqdm import tqdm

    from ldm.latents import PriorSource
    from ldm.prior import load_prior
    from torch_utils import checkpoint
    from torch_utils.device import select_device

    prior = load_prior(network, select_device(device))
    source = PriorSource(prior, Sampling.asked(asked), batch)
    rows = []
    with tqdm(total=len(numbers), unit="latents", disable=None) as bar:
        for start in range(0, len(numbers), batch):
            rows.append(source(numbers[start:start + batch]))
            bar.update(len(rows[-1]))
    checkpoint.save(path, "latents", {
        "latents": torch.cat(rows), "seeds": numbers, "gan_hash": prior.gan_hash, "space": prior.space,
        "labels": source.labels, "network": prior.network, "ldm": network, "ldm_hash": prior.hash,
        "settings": source.settings.state(), "provenance": source.provenance,
    })
    click.echo(f"{len(numbers)} latents of shape {'x'.join(map(str, prior.latent_shape))} in {path}.")


if __name__ == "__main__":
    tune_process()
    main()
