"""Generate images from a trained network: one PNG per seed.

\b
Examples:
  python gen_images.py --network runs/00000-…/network-snapshot-000200.pkl --ldm ldm.pkl --seeds 0-63 --outdir out
  python gen_images.py --network net.pkl --ref photos/ --seeds 0-15 --outdir out --grid grid.png
  python gen_images.py --network net.pkl --class 3 --seeds 0-15 --outdir out
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dnnlib import UserError
from dnnlib.cli import parse_seeds
from dnnlib.tuning import tune_process


@click.command(help=__doc__)
@click.option("--network", required=True, metavar="PKL", help="Checkpoint of train.py")
@click.option("--seeds", required=True, metavar="LIST", help="Seeds, for example 0,1,4-6")
@click.option("--outdir", required=True, metavar="DIR", help="Where to put seed0000.png, …")
@click.option("--ldm", metavar="PKL", help="New latents: checkpoint of ldm/train.py, or latents of ldm/sample.py")
@click.option("--ref", metavar="IMAGES", help="Latents of reference images (file, folder, zip); seed k takes number k")
@click.option("--class", "class_idx", type=int, help="Class of class-conditional networks")
@click.option("--sigma", type=float, help="Noise scale of h; default: as trained")
@click.option("--ldm-steps", type=click.IntRange(min=1), help="DDIM steps of --ldm  [default: 50]")
@click.option("--eta", type=float, help="DDIM stochasticity of --ldm, 0 .. 1  [default: 0]")
@click.option("--noise-mode", default="random", show_default=True, help="Noise maps: random (per seed) or none")
@click.option("--trunc", type=float, help="Truncation, for networks with a mapping network")
@click.option("--grid", metavar="PNG", help="Also write one picture of all samples")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
@click.option("--translate", hidden=True)
@click.option("--rotate", hidden=True)
def main(network: str, seeds: str, outdir: str, grid: str | None, batch: int, device: str, **flags: Any) -> None:
    if flags.pop("translate") is not None or flags.pop("rotate") is not None:
        raise UserError("--translate, --rotate: only StyleGAN3 can move its input; leave them out.")
    numbers = parse_seeds(seeds)
    make_outdir(outdir)

    from torch_utils.device import select_device

    sampler = make_sampler(network, select_device(device), **flags)
    save_images(sampler, numbers, Path(outdir), batch, grid)
    click.echo(f"{len(numbers)} images in {outdir} ({sampler.provenance['mode']}).")


def make_outdir(outdir: str) -> None:
    """The folder, or a `UserError` before anything is computed."""
    try:
        Path(outdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--outdir {outdir}: cannot make this folder ({error.strerror}); choose another.") from error


def make_sampler(network: str, device: Any, *, ldm: str | None, ref: str | None, class_idx: int | None,
                 sigma: float | None, ldm_steps: int | None, eta: float | None, noise_mode: str,
                 trunc: float | None) -> Any:
    """The network with its source of conditions; every flag without meaning here is a `UserError`."""
    from ldm.latents import open_latents
    from training.sampling import load_gan, open_sampler

    gan = load_gan(network, device)
    if trunc is not None and trunc != 1:
        raise UserError(f"--trunc {trunc:g}: FastGAN has no mapping network to truncate; leave it out.")
    if ldm is None and (ldm_steps is not None or eta is not None):
        raise UserError("--ldm-steps and --eta belong to --ldm; give --ldm FILE or leave them out.")
    latents = None
    if ldm is not None and gan.uses_latents:
        latents = open_latents(ldm, gan.hash, device, steps=ldm_steps, eta=eta)
    return open_sampler(gan, latents=latents, latents_path=ldm, ref=ref, class_idx=class_idx, sigma=sigma,
                        noise_mode=noise_mode)


def save_images(sampler: Any, seeds: list[int], outdir: Path, batch: int, grid: str | None) -> None:
    """Writes ``seedNNNN.png`` for every seed, and the grid."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    from dnnlib import atomic_write
    from training.logs import save_grid

    kept = []
    with tqdm(total=len(seeds), unit="img", disable=None) as bar:
        for start, images in zip(range(0, len(seeds), batch), sampler.images(seeds, batch), strict=True):
            for seed, image in zip(seeds[start:start + batch], images, strict=True):
                with atomic_write(outdir / f"seed{seed:04d}.png") as file:
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="png")
            if grid:
                kept.append(images)
            bar.update(len(images))
    if grid:
        columns = next(n for n in (8, 4, 2, 1) if n <= max(1, len(seeds)))
        save_grid(Path(grid), torch.cat(kept), columns)


if __name__ == "__main__":
    tune_process()
    main()
