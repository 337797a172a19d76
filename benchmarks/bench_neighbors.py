"""Time and peak memory of neighbours, k-means and mixtures of synthetic features, each in a process of its own.

\b
Example:
  python benchmarks/bench_neighbors.py --sizes 10000,100000

The features lie in 1000 clusters on a curved sheet of 64 dimensions in 1280, in a memory map on disk (5 KB an
image) that is deleted afterwards. `own MiB` is what the process can't give back: pages of the map are not in it,
they are in `peak MiB` where the system had room for them.
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

DIM, NEIGHBORS, CLUSTERS, COMPONENTS, SAMPLE = 1280, 50, 1000, 64, 1000
TASKS = ("knn", "knn-exact", "kmeans", "gmm")
# Larger sets are searched without an index for the sampled queries alone; the time of all is extrapolated.
EXACT_LIMIT = 100_000


def synthetic(count: int) -> Iterator[torch.Tensor]:
    """Blocks of features ``[n, 1280]``, non-negative as pooled activations are; the same in every call."""
    import torch

    from torch_utils.rng import generator

    rng = generator("bench neighbors")
    centres, lift = torch.randn(CLUSTERS, 64, generator=rng), torch.randn(64, DIM, generator=rng) / 8
    for begin in range(0, count, 4096):
        rng = generator("bench neighbors", begin)
        n = min(4096, count - begin)
        place = centres[torch.randint(CLUSTERS, (n,), generator=rng)] + 0.7 * torch.randn(n, 64, generator=rng)
        yield (place @ lift).relu() + 0.02 * torch.randn(n, DIM, generator=rng)


class PeakMemory:
    """Samples the memory of this process that isn't shared with files, every 20 ms, until `stop`."""

    def __init__(self) -> None:
        self.own, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        import psutil

        process = psutil.Process()
        while not self._done.wait(0.02):
            info = process.memory_info()
            self.own = max(self.own, info.rss - getattr(info, "shared", 0))

    def stop(self) -> dict[str, float]:
        """Peaks in bytes: own memory and, with mapped pages of files, all resident memory."""
        self._done.set()
        self._thread.join()
        return {"own": self.own, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}


def recall(array: np.ndarray, found: torch.Tensor) -> float:
    """Share of the exact neighbours that `found [N, k]` holds, for 1000 random rows."""
    import torch

    from torch_utils.neighbors import nearest_rows
    from torch_utils.rng import generator

    queries = torch.randperm(len(array), generator=generator("bench queries"))[:SAMPLE]
    exact, _ = nearest_rows(torch.from_numpy(array[queries.numpy()]), array, NEIGHBORS + 1)
    shares = []
    for query, row in zip(queries.tolist(), exact.tolist(), strict=True):
        others = [index for index in row if index != query][:NEIGHBORS]
        shares.append(len(set(others) & set(found[query].tolist())) / NEIGHBORS)
    return sum(shares) / len(shares)


def measure(task: str, path: str) -> dict[str, float | str]:
    """Seconds and peak bytes of one task on the features under `path`, and what it is worth."""
    import torch

    from torch_utils.clustering import fit_gmm, kmeans
    from torch_utils.feature_store import FeatureStore
    from torch_utils.neighbors import knn, nearest_rows

    store = FeatureStore.open(path)
    memory, begun, note = PeakMemory(), time.perf_counter(), ""
    share = 1.0
    found = None
    if task == "knn":
        found = knn(store, NEIGHBORS, exact_below=0)
    elif task == "knn-exact" and len(store) <= EXACT_LIMIT:
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
    seconds = time.perf_counter() - begun
    peaks = memory.stop()
    if found is not None:
        note = f"recall@{NEIGHBORS} {recall(store.array, found):.3f}"
    return {"seconds": seconds / share, "note": note, **peaks}


@click.command(help=__doc__)
@click.option("--sizes", default="10000,100000", show_default=True, help="Numbers of images, comma-separated")
@click.option("--tasks", default=",".join(TASKS), show_default=True, help="What to measure, comma-separated")
@click.option("--folder", type=click.Path(file_okay=False, exists=True), help="Where the features are kept "
              "meanwhile  [default: the system's temporary folder]")
@click.option("--one", hidden=True)
def main(sizes: str, tasks: str, folder: str | None, one: str | None) -> None:
    if one:
        click.echo(json.dumps(measure(tasks, one)))
        return
    unknown = set(tasks.split(",")) - set(TASKS)
    if unknown:
        raise click.UsageError(f"--tasks: {', '.join(sorted(unknown))} is none of {', '.join(TASKS)}")
    from torch_utils.feature_store import FeatureStore

    click.echo(f"{DIM} dimensions; {NEIGHBORS} neighbours, {CLUSTERS} clusters, {COMPONENTS} components")
    click.echo(f"{'images':>9}  {'task':<10}{'seconds':>10}{'own MiB':>10}{'peak MiB':>10}  note")
    for size in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "features.npy"
            FeatureStore.build(path, size, DIM, synthetic(size), limit_bytes=0)
            for task in tasks.split(","):
                command = [sys.executable, __file__, "--tasks", task, "--one", str(path)]
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
                if done.returncode:
                    raise click.ClickException(f"{task}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
                row = json.loads(done.stdout.splitlines()[-1])
                click.echo(f"{size:>9}  {task:<10}{row['seconds']:>10.1f}{row['own'] / 2**20:>10.0f}"
                           f"{row['peak'] / 2**20:>10.0f}  {row['note']}")


if __name__ == "__main__":
    tune_process()  # as train.py
    main()
