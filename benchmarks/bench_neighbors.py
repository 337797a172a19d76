"""Time and peak memory of neighbours, k-means and mixtures of synthetic features, each in a process of its own.

\b
Example:
  python benchmarks/bench_neighbors.py --sizes 10000,100000

The features lie in 1000 clusters in 1280 dimensions, in a memory map on disk (5 KB an image) that is deleted
afterwards. `CPU s` is how long all threads worked together: on a busy machine it says more than `seconds`.
`own MiB` is what the process can't give back: pages of the map are not in it, they are in `peak MiB` where the
system had room for them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np
    import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib.tuning import tune_process  # noqa: E402  (found from the project's root)

DIM, LATENT = 1280, 256
NEIGHBORS, CLUSTERS, COMPONENTS, SAMPLE = 50, 1000, 64, 1000
TASKS = ("knn", "knn-exact", "kmeans", "gmm")
# Larger sets are searched without an index for the sampled queries alone; the time of all is extrapolated.
EXACT_LIMIT = 20_000


def synthetic(count: int) -> Iterator[torch.Tensor]:
    """Blocks of features ``[n, 1280]``, the same in every call.

    Non-negative, with variances that fall off by a power law, as those of the EfficientNets that they stand for.
    """
    import torch

    from torch_utils.rng import generator

    rng = generator("bench neighbors")
    spread = torch.arange(1, LATENT + 1) ** -0.7
    spread /= spread.norm()
    centres = spread * torch.randn(CLUSTERS, LATENT, generator=rng)
    lift, shift = torch.randn(LATENT, DIM, generator=rng), 0.3 * torch.randn(DIM, generator=rng)
    for begin in range(0, count, 4096):
        rng = generator("bench neighbors", begin)
        n = min(4096, count - begin)
        cluster = torch.randint(CLUSTERS, (n,), generator=rng)
        place = centres[cluster] + 0.8 * spread * torch.randn(n, LATENT, generator=rng)
        yield (place @ lift + shift).relu() + 0.02 * torch.randn(n, DIM, generator=rng)


class Meter:
    """Time since it was made, and peak memory; what isn't shared with files is sampled every 20 ms."""

    def __init__(self) -> None:
        self._own, self._done = 0, threading.Event()
        self._begun, self._worked = time.perf_counter(), time.process_time()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        import psutil

        process = psutil.Process()
        while not self._done.wait(0.02):
            info = process.memory_info()
            self._own = max(self._own, info.rss - getattr(info, "shared", 0))

    def read(self) -> dict[str, float]:
        """Seconds of the clock and of all threads; peak bytes without and with mapped pages of files."""
        return {"seconds": time.perf_counter() - self._begun, "cpu": time.process_time() - self._worked,
                "own": self._own, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}

    def stop(self) -> dict[str, float]:
        """The last `read`."""
        self._done.set()
        self._thread.join()
        return self.read()


def recall(array: np.ndarray, queries: np.ndarray, found: np.ndarray) -> float:
    """Share of the exact neighbours that `found [n, k]` holds, for up to 1000 of the rows numbered `queries [n]`."""
    import torch

    from torch_utils.neighbors import nearest_rows
    from torch_utils.rng import generator

    sample = torch.randperm(len(queries), generator=generator("bench queries"))[:SAMPLE].numpy()
    exact, _ = nearest_rows(torch.from_numpy(array[queries[sample]]), array, NEIGHBORS + 1)
    hits = 0
    for query, near, row in zip(queries[sample].tolist(), exact.tolist(), found[sample].tolist(), strict=True):
        hits += len(set([index for index in near if index != query][:NEIGHBORS]) & set(row))
    return hits / (len(sample) * NEIGHBORS)


def measure_index(array: np.ndarray, limit: int | None) -> dict[str, float | str]:
    """The approximate search: building its lists, then all blocks of queries or `limit` of them, evenly spread."""
    import numpy as np

    from torch_utils.neighbors import InvertedFile

    meter = Meter()
    index = InvertedFile(array, NEIGHBORS, 0)
    built = meter.read()
    blocks = index.blocks if limit is None else index.blocks[::-(-len(index.blocks) // limit)]
    found = np.concatenate([index.search(block) for block in blocks])
    row = meter.stop()
    queries = np.concatenate(blocks)
    note = (f"recall@{NEIGHBORS} {recall(array, queries, found):.3f}; "
            f"lists {built['seconds']:.1f} s, CPU {built['cpu']:.1f} s")
    if len(blocks) < len(index.blocks):
        for name in ("seconds", "cpu"):
            row[name] = built[name] + (row[name] - built[name]) * len(array) / len(queries)
        note += f"; search extrapolated from {len(queries)} queries"
    return {**row, "note": note}


def measure(task: str, path: str, limit: int | None) -> dict[str, float | str]:
    """Seconds and peak bytes of one task on the features under `path`, and what it is worth."""
    import torch

    from torch_utils.clustering import fit_gmm, kmeans
    from torch_utils.feature_store import FeatureStore
    from torch_utils.neighbors import knn, nearest_rows

    store = FeatureStore.open(path)
    if task == "knn":
        return measure_index(store.array, limit)
    meter, share, note = Meter(), 1.0, ""
    if task == "knn-exact" and len(store) <= EXACT_LIMIT:
        knn(store, NEIGHBORS, exact_below=len(store) + 1)
    elif task == "knn-exact":
        share = SAMPLE / len(store)
        nearest_rows(store[torch.arange(SAMPLE)], store, NEIGHBORS + 1)
        note = f"extrapolated from {SAMPLE} queries"
    elif task == "kmeans":
        counts = kmeans(store, CLUSTERS, 0).counts
        note = f"{int(counts.min())} to {int(counts.max())} rows per cluster"
    else:
        weights = fit_gmm(store, COMPONENTS, 0).weights
        note = f"weights {float(weights.min()):.4f} to {float(weights.max()):.4f}"
    row = meter.stop()
    return {**row, "seconds": row["seconds"] / share, "cpu": row["cpu"] / share, "note": note}


@click.command(help=__doc__)
@click.option("--sizes", default="10000,100000", show_default=True, help="Numbers of images, comma-separated")
@click.option("--tasks", default=",".join(TASKS), show_default=True, help="What to measure, comma-separated")
@click.option("--folder", type=click.Path(file_okay=False, exists=True), help="Where the features are kept "
              "meanwhile  [default: the system's temporary folder]")
@click.option("--blocks", type=click.IntRange(min=1), help="Search the index for this many blocks of 16384 images and "
              "extrapolate  [default: all]")
@click.option("--one", hidden=True)
def main(sizes: str, tasks: str, folder: str | None, blocks: int | None, one: str | None) -> None:
    if one:
        click.echo(json.dumps(measure(tasks, one, blocks)))
        return
    unknown = set(tasks.split(",")) - set(TASKS)
    if unknown:
        raise click.UsageError(f"--tasks: {', '.join(sorted(unknown))} is none of {', '.join(TASKS)}")
    from torch_utils.feature_store import FeatureStore

    click.echo(f"{DIM} dimensions; {NEIGHBORS} neighbours, {CLUSTERS} clusters, {COMPONENTS} components")
    click.echo(f"{'images':>9}  {'task':<10}{'seconds':>10}{'CPU s':>10}{'own MiB':>10}{'peak MiB':>10}  note")
    for size in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "features.npy"
            FeatureStore.build(path, size, DIM, synthetic(size), limit_bytes=0)
            for task in tasks.split(","):
                command = [sys.executable, __file__, "--tasks", task, "--one", str(path),
                           *(["--blocks", str(blocks)] if blocks else [])]
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
                if done.returncode:
                    raise click.ClickException(f"{task}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
                row = json.loads(done.stdout.splitlines()[-1])
                click.echo(f"{size:>9}  {task:<10}{row['seconds']:>10.1f}{row['cpu']:>10.1f}"
                           f"{row['own'] / 2**20:>10.0f}{row['peak'] / 2**20:>10.0f}  {row['note']}")


if __name__ == "__main__":
    tune_process()  # as train.py
    main()
