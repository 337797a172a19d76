"""Exchange networks with other programs.

\b
Examples:
  python export.py import-official network-snapshot.pkl --dest pokemon.pkl
"""

from __future__ import annotations

import click

from dnnlib.tuning import tune_process


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.argument("file", metavar="FILE")
@click.option("--dest", required=True, metavar="PKL", help="Checkpoint to write, which must not exist")
def import_official(file: str, dest: str) -> None:
    """Make a checkpoint of a snapshot of the official Projected GAN or StyleGAN2-ADA (PyTorch).

    The snapshot is read as data: no code in it runs, and what asks for more than data is refused. gen_images.py,
    calc_metrics.py and train.py --init-from take the result.
    """
    from training.official.report import describe
    from training.official.snapshot import import_official as convert

    click.echo(describe(convert(file, dest), dest))


if __name__ == "__main__":
    tune_process()
    main()
