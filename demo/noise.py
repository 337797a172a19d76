"""Write pictures of uniform noise: the far end of the scale on which the demo's metrics are read."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(help=__doc__)
@click.option("--outdir", required=True, metavar="DIR", help="Where to put 0000.png, …")
@click.option("--count", type=click.IntRange(min=1), default=256, show_default=True, help="Number of pictures")
@click.option("--resolution", type=click.IntRange(min=1), default=64, show_default=True, help="Side in pixels")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed")
def main(outdir: str, count: int, resolution: int, seed: int) -> None:
    import numpy as np
    from PIL import Image

    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    click.echo(f"{count} pictures of noise in {folder}.")


if __name__ == "__main__":
    main()
