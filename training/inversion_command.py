"""The command ``invert``: images to the latents or conditions that a trained network makes them of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dnnlib import UserError

STEPS = 200

@click.command()
@click.option("--network", required=True, metavar="PKL", help="Checkpoint of train.py")
@click.option("--target", required=True, metavar="IMAGES", help="Images to invert (file, folder, zip), of any size")
@click.option("--outdir", required=True, metavar="DIR", help="Where to put pictures, curves, latents and results")
@click.option("--space", "spaces", default="all", show_default=True, metavar="LIST",
              help="What is optimised. Networks told of an instance: feed-forward (nothing: the encoder's latent), h, "
              "hz, blocks (each block's condition). Others: z, and with a mapping network w, w+, s")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of Adam  [default: 200]")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True),
              help="Its learning rate  [default: 0.1; s: 0.05]")
@click.option("--loss", type=click.Choice(["mse", "perceptual", "mse+perceptual"]), default="mse", show_default=True,
              help="Pixels, or the maps of EfficientNet-Lite0")
@click.option("--draws", type=click.IntRange(min=1), default=1, show_default=True,
              help="Random z (and noise of h) tried per image; the best one at the start is taken")
@click.option("--sigma", type=float, help="DIC-GAN: noise scale of h, for example 0  [default: as trained]")
@click.option("--class", "class_idx", type=int, help="Class of class-conditional networks")
@click.option("--count", type=click.IntRange(min=1), help="Invert that many of the images, a fixed random choice")
@click.option("--seed", type=click.IntRange(0, 1_000_000), default=0, show_default=True, help="Random seed")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images at a time")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
def invert(network: str, target: str, outdir: str, device: str, **flags: Any) -> None:
    """Find what a network has to be told to make given images.

    \b
    DIR/target/NAME.png, DIR/SPACE/NAME.png   the images, and what was found
    DIR/comparison.png                        a row per image, 16 at most: itself, then each space
    DIR/latents/SPACE.pkl or SPACE.npz        h, w, s for gen_images.py --ldm; the others as arrays
    DIR/curves.csv, DIR/results.jsonl         losses by step; what each image came to
    """
    from torch_utils.device import select_device
    from training.sampling import load_gan

    gan = load_gan(network, select_device(device))
    run_inversion(gan, target, Path(outdir), **flags)


def run_inversion(gan: Any, target: str, outdir: Path, *, spaces: str, steps: int | None, lr: float | None, loss: str,
                  draws: int, sigma: float | None, class_idx: int | None, count: int | None, seed: int,
                  batch: int) -> None:
    """The command, with the network at hand."""
    from tqdm import tqdm

    from pg_modules.perceptual import JUDGE
    from training import inversion_files as files
    from training.inversion import invert as optimise
    from training.inversion_losses import open_judge, open_loss
    from training.run_state import frozen_networks

    opened = [open_named(gan, name, sigma, class_idx) for name in parse_spaces(gan, spaces)]
    if draws > 1 and not any(space.seeded for space in opened):
        raise UserError(f"--draws {draws}: nothing is random where {' and '.join(s.name for s in opened)} start; leave "
                        "it out.")
    for flag, value in (("--steps", steps), ("--lr", lr)):
        if value is not None and all(space.name == "feed-forward" for space in opened):
            raise UserError(f"{flag} {value:g}: feed-forward optimises nothing; leave it out or add a space.")
    names, images = read_targets(target, gan.img_shape, count)
    judge = None
    if JUDGE in frozen_networks(gan.config):
        click.echo(f"No perceptual distance: this network was trained on {JUDGE}, which would judge it.")
    else:
        judge = open_judge()
    distance = open_loss(loss)
    candidates = [[seed + k * draws + draw for draw in range(draws)] for k in range(len(images))]
    files.write_pictures(outdir / "target", names, images)
    flat = files.compared(files.flat(images), images, judge, gan.device)
    results, records, stored = {}, [], []
    for space in opened:
        its_steps = 0 if space.name == "feed-forward" else steps or STEPS
        with tqdm(total=len(images) * (its_steps + 1), desc=space.name, unit="step", disable=None) as bar:
            result = optimise(space, images, candidates, distance, steps=its_steps, lr=lr, batch_size=batch,
                              track=bar.update)
        results[space.name] = result
        settings = {"loss": loss, "lr": (lr or space.lr) if its_steps else None, "draws": draws, "base_seed": seed,
                    "targets": target, "flat_mse": sum(flat["mse"]) / len(images)}
        values = files.measured(result, images, judge, gan.device)
        records.append(files.make_record(space, result, values, names, settings))
        files.write_pictures(outdir / space.name, names, result.img)
        stored.append(files.write_latents(outdir / "latents", space, result))
    files.write_comparison(outdir / "comparison.png", images, names, results)
    files.write_curves(outdir / "curves.csv", results)
    files.write_results(outdir / "results.jsonl", records)
    click.echo(files.table(records, flat))
    click.echo("\n".join(["MSE in [-1, 1], after optimisation the IvOM of DISP if --loss is mse.", *stored]))


def parse_spaces(gan: Any, text: str) -> list[str]:
    """Names of a comma-separated list, each once; ``all`` for what fits the network.

    The encoder's own reconstruction goes in front wherever something is started from it.
    """
    from training.inversion_spaces import fitting_spaces

    fitting = fitting_spaces(gan)
    asked = fitting if text == "all" else list(dict.fromkeys(part.strip() for part in text.split(",")))
    compared = ["feed-forward"] if "feed-forward" in fitting and set(asked) & set(fitting) else []
    return list(dict.fromkeys([*compared, *asked]))


def open_named(gan: Any, name: str, sigma: float | None, class_idx: int | None) -> Any:
    """`training.inversion_spaces.open_space`, imported when it is needed."""
    from training.inversion_spaces import open_space

    return open_space(gan, name, sigma=sigma, class_idx=class_idx)


def read_targets(path: str, shape: tuple[int, int, int], count: int | None) -> tuple[list[str], Any]:
    """Names (``….png``, unique) and images uint8 ``[N, *shape]``, prepared as --ref does."""
    import torch

    from dnnlib.images import open_source, strip_extension
    from torch_utils.rng import generator
    from training.sources import is_picture, read_references

    if not Path(path).exists():
        raise UserError(f"--target {path} does not exist; give an image file, a folder or a zip of images.")
    if is_picture(path):
        names = [Path(path).name]
    else:
        with open_source(path) as source:
            names = list(source.names)
    images = read_references(path, shape)
    if count is not None and count > len(names):
        raise UserError(f"--count {count}: {path} holds {len(names)} image{'s' * (len(names) > 1)}; ask for fewer or "
                        "leave it out.")
    order = list(range(len(names)))
    if count is not None:  # the first ones are often of one class or one place
        order = sorted(torch.randperm(len(names), generator=generator("inversion targets"))[:count].tolist())
    stems = [strip_extension(names[k]).replace("/", "_") for k in order]
    if len(set(stems)) < len(stems):  # a.jpg beside a.png
        stems = [f"{k:05d}_{stem}" for k, stem in enumerate(stems)]
    return [f"{stem}.png" for stem in stems], images[order]
