"""Speed of dataset_tool.py against a single-process loop of Pillow calls, and what both make of the same pictures.

\b
Examples:
  python benchmarks/bench_dataset.py
  python benchmarks/bench_dataset.py --source people3d_256.zip --count 1000 --side 768 --rounds 3

The pictures are JPEGs of --side pixels and somewhat more in width: those of --source enlarged, or without it synthetic
ones with the spectrum of photographs. The loop reads, crops the centre, resizes by Lanczos and writes uncompressed
PNGs into a stored zip, as the official tool does. Whole processes are timed, in turns. Both sets must hold the same
pixels.
"""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rounds import Row, machine, markdown, record, spread  # noqa: E402  (found from the project's root)

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

TARGET = 256


def loop(source: Path, dest: Path) -> None:
    """One picture after the other, by Pillow alone."""
    from PIL import Image

    with zipfile.ZipFile(dest, "w", zipfile.ZIP_STORED) as archive:
        for number, path in enumerate(sorted(source.iterdir())):
            img = Image.open(path).convert("RGB")
            side = min(img.size)
            left, top = (img.width - side) // 2, (img.height - side) // 2
            img = img.crop((left, top, left + side, top + side))
            img = img.resize((TARGET, TARGET), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            img.save(buffer, "PNG", compress_level=0)
            archive.writestr(f"{number // 1000:05d}/img{number:08d}.png", buffer.getvalue())


def synthetic(number: int, width: int, height: int) -> np.ndarray:
    """uint8 ``[height, width, 3]`` whose amplitudes fall with the frequency."""
    import numpy as np

    rng = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.fft.rfft2(rng.standard_normal((height, width, 3)), axes=(0, 1))
    spectrum /= np.maximum(frequency, 1 / max(width, height))[:, :, None]
    picture = np.fft.irfft2(spectrum, (height, width), (0, 1))
    return (picture / picture.std() * 50 + 128).clip(0, 255).astype(np.uint8)


def enlarged(source: Path, number: int, size: tuple[int, int]) -> Image.Image:
    """Picture `number`, cyclically, of a zip or folder of pictures."""
    from PIL import Image

    from dnnlib.images import open_source

    with open_source(source) as pictures:
        data = pictures.read(pictures.names[number % len(pictures.names)])
    return Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BICUBIC)


def make_pictures(folder: Path, source: Path | None, count: int, side: int) -> None:
    """`count` JPEGs in a new folder."""
    from PIL import Image

    folder.mkdir()
    size = (side * 4 // 3, side)
    drawn = [Image.fromarray(synthetic(k, *size)) for k in range(8)] if source is None else []
    for number in range(count):
        if source is None:  # a few, turned over: the transform is slow
            picture = drawn[number % 8].transpose(Image.Transpose(number // 8 % 2))
        else:
            picture = enlarged(source, number, size)
        picture.save(folder / f"{number:06d}.jpg", quality=92)


def pixels_differ(a: Path, b: Path) -> int:
    """Images of two sets that aren't equal."""
    from PIL import Image, ImageChops

    with zipfile.ZipFile(a) as first, zipfile.ZipFile(b) as second:
        names = [name for name in first.namelist() if name.endswith(".png")]
        assert names == [name for name in second.namelist() if name.endswith(".png")]
        return sum(ImageChops.difference(*(Image.open(io.BytesIO(archive.read(name))) for archive in (first, second)))
                   .getbbox() is not None for name in names)


def convert_with(command: list[str], count: int) -> Row:
    """Pictures per second of a whole process."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise click.ClickException(f"{command[0]}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return {"img_per_sec": count / seconds}


@click.command(help=__doc__)
@click.option("--source", type=click.Path(exists=True, path_type=Path), help="Zip or folder of pictures to enlarge")
@click.option("--count", type=click.IntRange(min=1), default=1000, show_default=True, help="Pictures")
@click.option("--side", type=click.IntRange(min=TARGET), default=768, show_default=True, help="Their height")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Turns")
@click.option("--workers", type=click.IntRange(min=1), help="Of dataset_tool.py  [default: its own]")
@click.option("--out", type=click.Path(path_type=Path), help="File that lines of JSON are added to")
@click.option("--one", type=click.Path(path_type=Path), nargs=2, hidden=True)
def main(source: Path | None, count: int, side: int, rounds: int, workers: int | None, out: Path | None,
         one: tuple[Path, Path] | None) -> None:
    if one:
        loop(*one)
        return
    description = machine(None)
    rows: dict[str, list[Row]] = {"Pillow loop": [], "dataset_tool.py": []}
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "pictures"
        make_pictures(pictures, source, count, side)
        results = {name: Path(scratch) / f"{number}.zip" for number, name in enumerate(rows)}
        commands = {
            "Pillow loop": [__file__, "--one", str(pictures), str(results["Pillow loop"])],
            "dataset_tool.py": ["dataset_tool.py", "--source", str(pictures), "--dest",
                                str(results["dataset_tool.py"]), "--resolution", str(TARGET), "--transform",
                                "center-crop", "--force", *(["--workers", str(workers)] if workers else [])]}
        for number in range(rounds):
            for name, command in commands.items():
                record(rows[name], {"tool": name, "count": count, "side": side, "round": number,
                                    **convert_with(command, count), "machine": description}, out)
        differing = pixels_differ(*results.values())
    base = statistics.median(row["img_per_sec"] for row in rows["Pillow loop"])
    click.echo(f"{description}. {count} JPEGs of {side * 4 // 3}x{side} to {TARGET} px, {rounds} rounds, medians "
               f"(minimum – maximum); {differing} images differ.\n")
    click.echo(markdown(["tool", "img/s", "ratio"], [
        [f"`{name}`", spread(own, "img_per_sec", 1),
         f"{statistics.median(row['img_per_sec'] for row in own) / base:.2f}"] for name, own in rows.items()]))


if __name__ == "__main__":
    main()
