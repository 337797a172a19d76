"""Opening a data set, and reading from it, by its number of images: time, peak memory and cost per image.

\b
Examples:
  python benchmarks/bench_startup.py
  python benchmarks/bench_startup.py --kind zip --kind shards --count 1000 --count 1000000 --labels

The sets are synthetic: one small PNG under many names, without compression. Every one is opened in a process of its
own. Peak memory is that of the process, with PyTorch; the first row says what that takes by itself. Reading is by the
loader, without workers and without a cache of decoded images, in random order, from a file that the system has in
memory: what is left is the software's own cost. Seconds and microseconds are of the processor, which a busy machine
doesn't change much; the wall's are shown beside those of opening. An lmdb file is mapped: its pages count as memory.
"""

from __future__ import annotations

import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rounds import machine, markdown  # noqa: E402  (found from the project's root)

KINDS = ("zip", "shards", "lmdb", "folder")
COUNTS = (100, 1000, 10_000, 100_000, 1_000_000)
COLUMNS = {"opened in s": ("open", 2), "wall s": ("wall", 2), "MiB before": ("before", 0), "MiB peak": ("after", 0),
           "µs per image": ("read", 1), "fingerprint s": ("fingerprint", 1)}  # heading: key, digits
READ, BATCH, ROUNDS = 4096, 64, 5  # images of a round


def make_set(path: Path, kind: str, count: int, labels: bool) -> None:
    """A set of `count` equal pictures as `dataset_tool.py` would name them."""
    from PIL import Image

    from dataset_tool import dataset_json
    from dnnlib.packing import WRITERS

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(buffer, "PNG")
    names = [f"{index // 1000:05d}/img{index:08d}.png" for index in range(count)]
    label_of = {name: index % 10 for index, name in enumerate(names)} if labels else None
    with WRITERS[kind](path) as write:
        for name in names:
            write(name, buffer.getvalue())
            if kind == "shards" and label_of is not None:
                write(f"{name.removesuffix('.png')}.cls", str(label_of[name]).encode())
        named = dict(zip(names, names, strict=True))
        write("dataset.json", dataset_json(named, named, label_of, None))


def peak_mib() -> float:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


def measure(path: Path, labels: bool) -> dict[str, float]:
    """In a fresh process: seconds to open, peak MiB before and after it, microseconds per image read."""
    import torch

    from training.dataset import ImageDataset
    from training.loader import batches

    before, begun, wall = peak_mib(), time.process_time(), time.perf_counter()
    dataset = ImageDataset(path, use_labels=labels, cache="off")
    opened, waited, after = time.process_time() - begun, time.perf_counter() - wall, peak_mib()
    stream = batches(dataset, BATCH, 0, 0, torch.device("cpu"), workers=0)
    next(stream)
    rounds = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(READ // BATCH):
            next(stream)
        rounds.append((time.process_time() - begun) / READ)
    begun = time.process_time()
    assert len(dataset.fingerprint) == 64
    return {"open": opened, "wall": waited, "before": before, "after": after, "read": statistics.median(rounds) * 1e6,
            "fingerprint": time.process_time() - begun}


def in_process(arguments: list[str]) -> str:
    """What this script prints for some arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise click.ClickException((done.stderr.strip() or "killed").splitlines()[-1])
    return done.stdout


@click.command(help=__doc__)
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="May be repeated  [default: all]")
@click.option("--count", "counts", type=click.IntRange(min=BATCH), multiple=True,
              help="Images of a set; may be repeated  [default: 10² … 10⁶]")
@click.option("--labels", is_flag=True, help="With class labels, which are read too")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the sets  [default: the system's]")
@click.option("--one", type=click.Path(path_type=Path), hidden=True)
def main(kinds: tuple[str, ...], counts: tuple[int, ...], labels: bool, scratch: Path | None, one: Path | None) -> None:
    if one and counts:  # in a process of its own, since the memory of the one that starts others counts as theirs
        make_set(one, kinds[0], counts[0], labels)
        return
    if one:
        click.echo(json.dumps(measure(one, labels)))
        return
    rows = []
    for kind in kinds or KINDS:
        for count in sorted(counts or COUNTS):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                command = ["--one", f"{folder}/set.{kind}", *(["--labels"] if labels else [])]
                in_process([*command, "--kind", kind, "--count", str(count)])
                got = json.loads(in_process(command))
            rows.append([kind, f"{count:,}", *(f"{got[key]:.{digits}f}" for key, digits in COLUMNS.values())])
            click.echo(" ".join(rows[-1]), err=True)
    click.echo(f"{machine(None)}{', with labels' * labels}.\n")
    click.echo(markdown(["set", "images", *COLUMNS], rows))


if __name__ == "__main__":
    main()
