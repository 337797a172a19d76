"""Generate images from a trained network: one PNG per seed.

\b
Examples:
  python gen_images.py --network runs/00000-…/network-snapshot-000200.pkl --ldm ldm.pkl --seeds 0-63 --outdir out
  python gen_images.py --network net.pkl --ref photos/ --seeds 0-15 --outdir out --grid grid.png
  python gen_images.py --network net.pkl --ref photos/ --alter sketch --ref-grid refs.png --seeds 0-63 --outdir out
  python gen_images.py --network net.pkl --ref photos/ --vary sigma --seeds 0-3 --outdir out --nearest
  python gen_images.py --network net.pkl --instances 100 --save-source instances.pkl --seeds 0-63 --outdir out
  python gen_images.py --network net.pkl --class 3 --trunc 0.7 --seeds 0-15 --outdir out

Networks that are told of instances (dicgan, icgan, disp) need one of --ldm, --ref, --instances and --prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from dnnlib import UserError
from dnnlib.cli import parse_seeds
from dnnlib.tuning import tune_process
from training.control_options import ControlFlags, control_options
from training.source_options import SourceFlags, source_options


@click.command(help=__doc__)
@click.option("--network", required=True, metavar="PKL", help="Checkpoint of train.py")
@click.option("--seeds", required=True, metavar="LIST", help="Seeds, for example 0,1,4-6")
@click.option("--outdir", required=True, metavar="DIR", help="Where to put seed0000.png, …")
@source_options
@click.option("--data", metavar="ZIP|DIR", help="Training set, for --instances, --prior, --ref-grid and "
              "--nearest  [default: as the checkpoint names it]")
@click.option("--save-source", metavar="FILE", help="Keep what --instances or --prior made of the training set")
@click.option("--alter", metavar="NAMES", help="Change the references first: cutmix, cutout, sketch, gray")
@click.option("--ref-grid", metavar="PNG", help="Also write one picture of references, samples of each, and the "
              "nearest training images")
@click.option("--per-ref", type=click.IntRange(min=1), help="Samples of each reference in --ref-grid  [default: 4]")
@click.option("--noise-mode", help="Noise maps: random (per seed), none, or const (as stored in StyleGAN2)  "
              "[default: const for StyleGAN2, else random]")
@control_options
@click.option("--grid", metavar="PNG", help="Also write one picture of all samples  [--vary: always, by default "
              "OUTDIR/vary-NAME.png]")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time")
@click.option("--gpus", type=click.IntRange(min=1), help="Processes on this machine, a GPU each (--device cpu: cores)")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
@click.option("--translate", hidden=True)
@click.option("--rotate", hidden=True)
def main(gpus: int | None, device: str, **flags: Any) -> None:
    from torch_utils.launch import together

    together(gpus, device, lambda own: generate(device=own, **flags))


def generate(network: str, seeds: str, outdir: str, grid: str | None, batch: int, device: Any, **flags: Any) -> None:
    """The command, in each of its processes."""
    if flags.pop("translate") is not None or flags.pop("rotate") is not None:
        raise UserError("--translate, --rotate: only StyleGAN3 can move its input; leave them out.")
    numbers = parse_seeds(seeds)
    source, controls = SourceFlags.take(flags), ControlFlags.take(flags)
    controls.check(source, flags["ref_grid"])
    check_companions(source, **{key: flags[key] for key in ("save_source", "alter", "ref_grid", "per_ref")})
    make_outdir(outdir)

    from torch_utils.distributed import world
    from training.sampling import load_gan

    if controls.vary is not None and world() > 1:
        raise UserError(f"--vary {controls.vary} is drawn in one process; leave out --gpus and torchrun.")
    sampler = make_sampler(load_gan(network, device), source, numbers, batch, nearest=controls.nearest, **flags)
    if controls.vary is None:
        save_images(sampler, numbers, Path(outdir), batch, grid)
        click.echo(f"{len(numbers)} images in {outdir} ({sampler.provenance['mode']}).")
    else:
        picture = Path(grid or Path(outdir) / f"vary-{controls.vary}.png")
        count = save_controls(sampler, controls, numbers, Path(outdir), picture, batch, ref=source.ref,
                              alter=flags["alter"], data=flags["data"])
        click.echo(f"{count} images in {outdir}, all of them in {picture} (vary {controls.vary}).")


def check_companions(source: SourceFlags, *, save_source: str | None, alter: str | None, ref_grid: str | None,
                     per_ref: int | None) -> None:
    """Flags that only mean something beside others."""
    if ref_grid is not None and source.ref is None:
        raise UserError("--ref-grid shows what becomes of references; give --ref IMAGES or leave it out.")
    if per_ref is not None and ref_grid is None:
        raise UserError("--per-ref belongs to --ref-grid; give --ref-grid PNG or leave it out.")
    if alter is not None and source.ref is None:
        raise UserError("--alter changes reference images; give --ref IMAGES or leave it out.")
    if save_source is not None and source.instances is None and source.prior is None:
        raise UserError("--save-source keeps what --instances K or --prior NAME made of the training set; give one of "
                        "them or leave it out.")


def make_outdir(outdir: str) -> None:
    """The folder, or a `UserError` before anything is computed."""
    try:
        Path(outdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--outdir {outdir}: cannot make this folder ({error.strerror}); choose another.") from error


def make_sampler(gan: Any, source: SourceFlags, seeds: list[int], batch: int, *, data: str | None,
                 save_source: str | None, alter: str | None, ref_grid: str | None, per_ref: int | None,
                 noise_mode: str | None, nearest: bool = False) -> Any:
    """The network with its source of conditions; writes the files of ``--save-source`` and ``--ref-grid``."""
    from ldm.latents import open_latents
    from torch_utils.distributed import from_first
    from training.prior_files import save_prior
    from training.priors import LatentPrior
    from training.sources import open_sampler, prior_spec, training_set

    spec = prior_spec(source)
    if save_source is not None and spec is None:
        raise UserError(f"--save-source {save_source}: what {source.latent_sources[0]} names is a file "
                        "already; leave it out.")
    if data is not None and spec is None and ref_grid is None and not nearest:
        raise UserError(f"--data {data} names the training set, which only --instances K, --prior NAME, --ref-grid and "
                        "--nearest need; leave it out.")
    if noise_mode is None:
        noise_mode = "const" if gan.G.has_mapping else "random"  # as the official script
    sampler = open_sampler(gan, source, open_latents=open_latents, images=lambda flag: training_set(gan, data, flag),
                           noise_mode=noise_mode, alterations=alter)
    if save_source is not None:
        assert isinstance(sampler.latents, LatentPrior)
        from_first(partial(save_prior, save_source, gan, sampler.latents))
        click.echo(f"Stored {sampler.provenance['prior']} in {save_source}.")
    if ref_grid is not None:
        from_first(lambda: save_reference_grid(Path(ref_grid), sampler, source.ref, alter,
                                               training_set(gan, data, "--ref-grid"), seeds, per_ref or 4, batch))
    return sampler


def save_reference_grid(path: Path, sampler: Any, ref: str | None, alter: str | None, dataset: Any, seeds: list[int],
                        per_ref: int, batch: int) -> None:
    """Writes the picture of ``--ref-grid``."""
    from training.logs import save_grid
    from training.reference_grid import reference_grid
    from training.sources import altered_references

    assert ref is not None
    pictures = altered_references(sampler.gan, ref, alter)
    save_grid(path, reference_grid(sampler, pictures, dataset, seeds, per_ref, batch)[None], 1)


def save_controls(sampler: Any, controls: ControlFlags, seeds: list[int], outdir: Path, picture: Path, batch: int, *,
                  ref: str | None, alter: str | None, data: str | None) -> int:
    """Writes the single images and the labelled picture of ``--vary``; returns how many images there are."""
    import torch
    from tqdm import tqdm

    from training.control_images import draw_cells, save_nearest, save_study
    from training.controls import make_study
    from training.logs import save_grid
    from training.sources import altered_references, training_set

    assert ref is not None
    assert controls.vary is not None
    dataset = training_set(sampler.gan, data, "--nearest") if controls.nearest else None
    study = make_study(controls.vary, sampler, seeds, controls.steps, controls.sigma_max)
    images = torch.empty(len(study.cells), *sampler.gan.img_shape, dtype=torch.uint8)
    with tqdm(total=len(images), unit="img", disable=None) as bar:
        for places, drawn in draw_cells(sampler, study.cells, batch):
            images[places] = drawn
            for place, image in zip(places, drawn, strict=True):
                save_grid(outdir / f"{study.cells[place].name}.png", image[None], 1)
            bar.update(len(places))
    below = None
    if dataset is not None:
        below = save_nearest(picture.with_suffix(".json"), sampler, study, images, dataset)
    save_study(picture, study, altered_references(sampler.gan, ref, alter), images, below)
    return len(images)


def save_images(sampler: Any, seeds: list[int], outdir: Path, batch: int, grid: str | None) -> None:
    """Writes ``seedNNNN.png`` for every seed, each process those of its batches, and the grid."""
    import torch
    from tqdm import tqdm

    from torch_utils.distributed import from_first, rank
    from torch_utils.exchange import dealt, in_batches
    from training.logs import save_grid

    def write(part: Sequence[int]) -> tuple[int, torch.Tensor | None]:
        images = sampler.batch(part)
        for seed, image in zip(part, images, strict=True):
            save_grid(outdir / f"seed{seed:04d}.png", image[None], 1)
        return len(images), images if grid else None

    kept = []
    with tqdm(total=len(seeds), unit="img", disable=True if rank() else None) as bar:
        for count, images in dealt(in_batches(seeds, batch, write)):
            if images is not None:
                kept.append(images)
            bar.update(count)
    if grid:
        columns = next(n for n in (8, 4, 2, 1) if n <= max(1, len(seeds)))
        from_first(lambda: save_grid(Path(grid), torch.cat(kept), columns))


if __name__ == "__main__":
    tune_process()
    main()
