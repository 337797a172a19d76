"""What the noise scale of a trained DIC-GAN does: clusters and samples at σ from 0 to 0.95, as sigma.csv and sigma.png.

\b
Examples:
  python -m training.sigma_study --network runs/00000-…/network-snapshot-000200.pkl --outdir sigma
  python -m training.sigma_study --network net.pkl --data photos.zip --images 32 --outdir sigma

\b
Columns of sigma.csv:
  perplexity         how many training images share a cluster (Eq. 4)
  top                share of the cluster that its most likely image has, on average
  one_image          share of clusters with a perplexity below 1.5 of their own: one image has two thirds or more
  diversity          distance between samples of one image that differ in z and ε, where that of real images is 1
  diversity_z, _eps  the same for samples that differ in z alone, in ε alone
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dnnlib import UserError, atomic_write

SIGMAS = [round(0.05 * k, 2) for k in range(20)]
WANTED = 5.0  # images that are to share a cluster: the default ``--sigma auto:5`` of train.py
COLUMNS = ("sigma", "perplexity", "top", "one_image", "diversity", "diversity_z", "diversity_eps")


@click.command(help=__doc__)
@click.option("--network", required=True, metavar="PKL", help="Checkpoint of train.py with a DIC-GAN")
@click.option("--data", metavar="ZIP|DIR", help="Its training set  [default: as the checkpoint names it]")
@click.option("--outdir", required=True, metavar="DIR", help="Where to put sigma.csv and sigma.png")
@click.option("--images", type=click.IntRange(min=1), default=16, show_default=True,
              help="Training images whose samples are compared")
@click.option("--draws", type=click.IntRange(min=2), default=2, show_default=True,
              help="z and ε of each of them; every pair is drawn at every σ")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of these images, z and ε")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
def main(network: str, data: str | None, outdir: str, images: int, draws: int, seed: int, batch: int,
         device: str) -> None:
    from torch_utils.device import select_device
    from training.clusters_at_sigma import auto_sample
    from training.sampling import load_gan
    from training.sources import training_set

    gan = load_gan(network, select_device(device))
    if gan.diffused is None:
        raise UserError(f"--network {network} is no DIC-GAN and has no noise scale; name a network of --cfg dicgan….")
    dataset = training_set(gan, data, "training.sigma_study")
    if images > dataset.num_images:
        raise UserError(f"--images {images}: the training set has {dataset.num_images} only; ask for fewer.")
    f = auto_sample(gan, dataset)
    rows, wanted = study(gan, dataset, f, images, draws, seed, batch), sigma_wanted(f, gan.config["run"]["seed"])
    write_csv(Path(outdir) / "sigma.csv", rows)
    write_chart(Path(outdir) / "sigma.png", rows, gan.diffused.sigma, wanted)
    click.echo(recommendation(gan, f, wanted))
    click.echo(f"Wrote {Path(outdir) / 'sigma.csv'} and sigma.png.")


def study(gan: Any, dataset: Any, f: Any, images: int, draws: int, seed: int, batch: int) -> list[list[float | None]]:
    """The rows of sigma.csv, with clusters of the latents f.

    Diversity is None where D or f look through the network that would judge it.
    """
    from tqdm import tqdm

    from training.clusters_at_sigma import Diversity, cluster_overlap
    from training.diagnostics import JUDGE
    from training.run_state import frozen_networks

    judge = None
    if JUDGE in frozen_networks(gan.config):
        click.echo(f"The columns of diversity stay empty: this network was trained on {JUDGE} itself, which would "
                   "judge them.")
    else:
        judge = Diversity(gan, dataset, images, draws, seed, batch)
    rows: list[list[float | None]] = []
    for sigma in tqdm(SIGMAS, unit="sigma", disable=None):
        overlap = cluster_overlap(f, sigma, gan.config["run"]["seed"])
        spread = (None, None, None) if judge is None else judge.measure(sigma)
        rows.append([sigma, overlap.perplexity, overlap.top, overlap.one_image, *spread])
    return rows


def sigma_wanted(f: Any, seed: int) -> float | None:
    """The σ of ``--sigma auto:5`` for latents f, None if there is none or f doesn't tell images apart."""
    from training.diffused_instance import sigma_for_perplexity

    try:
        return sigma_for_perplexity(f, WANTED, seed) or None
    except UserError:
        return None


def recommendation(gan: Any, f: Any, wanted: float | None) -> str:
    """A line about the σ to train with, and one about the σ that this network was trained with."""
    from training.clusters_at_sigma import cluster_overlap

    trained = gan.diffused.sigma
    here = cluster_overlap(f, trained, gan.config["run"]["seed"])
    kind = "up to " if gan.diffused.per_sample else ""
    if wanted is None:
        advice = (f"No σ makes {WANTED:g} of these {len(f)} images share a cluster; see the column perplexity of "
                  "sigma.csv, and train with --encoder frozen if it is high at every σ.")
    else:
        advice = (f"Recommended: --sigma {wanted:g}, at which {WANTED:g} images share a cluster (the σ of --sigma "
                  f"auto:{WANTED:g}).")
    return (f"{advice}\nTrained at σ {kind}{trained:g}: {here.perplexity:.1f} images share a cluster, "
            f"{here.one_image:.0%} of clusters are one image's.")


def write_csv(path: Path, rows: Sequence[Sequence[float | None]]) -> None:
    """sigma.csv; empty fields for None."""
    lines = [",".join(COLUMNS), *(",".join("" if value is None else f"{value:.6g}" for value in row) for row in rows)]
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def write_chart(path: Path, rows: Sequence[Sequence[float | None]], trained: float, wanted: float | None) -> None:
    """sigma.png: the columns as curves over σ, with the trained and the recommended σ."""
    from training.line_chart import Chart, draw_charts
    from training.report_parts import Line

    def line(label: str, column: str) -> Line:
        k = COLUMNS.index(column)
        return Line(label, [(float(row[0] or 0), value) for row in rows if (value := row[k]) is not None])

    marks = [(trained, f"trained: {trained:g}")]
    if wanted is not None:
        marks.append((wanted, f"recommended: {wanted:g}"))
    charts = [
        Chart("Images that share a cluster", [line("posterior perplexity", "perplexity")], marks, log=True),
        Chart("Clusters of one image", [line("share of them", "one_image"), line("posterior of the top image", "top")],
              marks),
    ]
    diversity = [line("z and eps differ", "diversity"), line("z alone", "diversity_z"),
                 line("eps alone", "diversity_eps")]
    if diversity[0].points:
        charts.append(Chart("Distance of samples / of real images", diversity, marks))
    with atomic_write(path) as file:
        draw_charts(charts, "sigma").save(file, format="png")


if __name__ == "__main__":
    main()
