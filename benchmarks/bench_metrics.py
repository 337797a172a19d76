"""This project's metrics beside those of torch-fidelity, clean-fid, pytorch-fid and prdc, and its FID beside sqrtm.

\b
Examples:
  python benchmarks/bench_metrics.py tools
  python benchmarks/bench_metrics.py frechet --dim 2048 --counts 1000,6000

`tools`: the demo's satellite tiles, one half of the training tiles judged against the other, features of the default
detector; every tool gets the same features. `frechet`: synthetic features whose variances fall off by a power law;
from fitted means and covariances to the distance. Seconds are of CPU, over all threads, the median of `--repeats`. The
tools come with requirements-dev.txt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib.tuning import tune_process  # noqa: E402  (found from the project's root)

NARROW = 192  # features of which there are fewer than images
Values = tuple[float, ...]


def timed(compute: Callable[[], Values | float]) -> tuple[Values, float]:
    """Values and CPU seconds; what the tools print is left out."""
    begun = time.process_time()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        found = compute()
    return found if isinstance(found, tuple) else (float(found),), time.process_time() - begun


@click.group(help=__doc__)
def main() -> None:
    pass


# The same features to every tool.


def halves() -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Features ``[255, 1280]`` of either half of the demo's training tiles, and the detector's classifier."""
    from dnnlib.images import open_source
    from metrics.detectors import load_detector
    from metrics.image_sets import from_source

    detector = load_detector()
    source = open_source(ROOT / "demo" / "earth_64.zip")
    names = json.loads((ROOT / "demo" / "earth_64_split.json").read_text())["train"]
    images = from_source(source)

    def features(chosen: list[str]) -> torch.Tensor:
        import torch

        return torch.cat([detector(batch) for batch in images.batches([source.names.index(n) for n in chosen])])

    assert detector.head is not None
    return features(names[::2]), features(names[1::2]), detector.head


def moments(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """As the tools fit them."""
    import numpy as np

    features = x.double().numpy()
    return features.mean(0), np.cov(features, rowvar=False)


def fid_rows(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], float]]:
    """FID by each."""
    from cleanfid.fid import fid_from_feats
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    from metrics.fid import fit_gaussian, frechet_distance

    return {
        "this project": lambda: frechet_distance(fit_gaussian(x), fit_gaussian(y)),
        "torch-fidelity": lambda: fid_statistics_to_metric(
            fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)[KEY_METRIC_FID],
        "clean-fid": lambda: float(fid_from_feats(x.double().numpy(), y.double().numpy())),
        "pytorch-fid": lambda: float(calculate_frechet_distance(*moments(x), *moments(y))),
    }


def other_rows(
    x: torch.Tensor, y: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, dict[str, Callable[[], Values | float]]]:
    """KID, Inception Score and the four of neighbours, by every tool that has them."""
    from cleanfid.fid import kernel_distance as clean_kid
    from prdc import compute_prdc
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    from metrics.inception_score import inception_score
    from metrics.kid import kernel_distance
    from metrics.precision_recall import density_coverage, precision_recall

    def prdc(k: int, names: tuple[str, str]) -> Values:
        found = compute_prdc(y.numpy(), x.numpy(), k)
        return float(found[names[0]]), float(found[names[1]])

    count = len(x)
    return {
        "KID, one subset": {
            "this project": lambda: kernel_distance(x, y, subsets=1)[0],
            "torch-fidelity": lambda: kid_features_to_metric(
                x, y, kid_subsets=1, kid_subset_size=count, kid_kernel="poly", verbose=False, rng_seed=0,
            )["kernel_inception_distance_mean"],
            "clean-fid": lambda: clean_kid(x.numpy(), y.numpy(), num_subsets=1),
        },
        "IS, std": {
            "this project": lambda: inception_score(head(x)),
            "torch-fidelity": lambda: tuple(isc_features_to_metric(head(x), shuffle=False).values()),
        },
        "precision, recall (k 3)": {
            "this project": lambda: precision_recall(x, y, 3),
            "torch-fidelity": lambda: calculate_precision_recall_full(x, y, 3),
            "prdc": lambda: prdc(3, ("precision", "recall")),
        },
        "density, coverage (k 5)": {
            "this project": lambda: density_coverage(x, y, 5),
            "prdc": lambda: prdc(5, ("density", "coverage")),
        },
    }


@main.command()
def tools() -> None:
    """The table of docs/metrics.md."""
    x, y, head = halves()
    assert len(y) > NARROW
    tasks: dict[str, Any] = {f"FID, first {NARROW} features": fid_rows(x[:, :NARROW], y[:, :NARROW]),
                             f"FID, all {x.shape[1]} features": fid_rows(x, y),
                             **other_rows(x, y, head)}
    click.echo(f"{len(x)} images judged against {len(y)}\n")
    click.echo("| metric | by | value | relative difference | CPU s |\n|---|---|---|---|---|")
    for metric, ways in tasks.items():
        own: Values = ()
        for tool, compute in ways.items():
            timed(compute)  # what is loaded on first use is not counted
            values, seconds = timed(compute)
            own = own or values
            gap = max(abs(v - o) / abs(o) for v, o in zip(values, own, strict=True))
            shown = ", ".join(f"{value:.8g}" for value in values)
            click.echo(f"| {metric} | {tool} | {shown} | {'' if values is own else f'{gap:.1e}'} | {seconds:.3f} |")


# Speed of the distance alone.


def power_law(count: int, dim: int, seed: int) -> torch.Tensor:
    """Features ``[count, dim]`` with standard deviations like k^-0.7 along random directions."""
    import torch

    from torch_utils.rng import generator

    directions = torch.linalg.qr(torch.randn(dim, dim, generator=generator("bench metrics"), dtype=torch.float64)).Q
    spread = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.7
    noise = torch.randn(count, dim, generator=generator("bench metrics", seed), dtype=torch.float64)
    return ((noise * spread) @ directions).float()


def by_eigenvalues(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """torch-fidelity's distance of statistics."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]


def frechet_ways(count: int, dim: int) -> dict[str, Callable[[], float]]:
    """FID of two sets of `count` from what is fitted to them.

    `reference kept`: every distance but the first to the same reals, whose Cholesky factor is there by then.
    """
    from pytorch_fid.fid_score import calculate_frechet_distance

    from metrics.fid import fit_gaussian, frechet_distance

    x, y = power_law(count, dim, 0), 1.1 * power_law(count, dim, 1)
    fake, real = fit_gaussian(x), fit_gaussian(y)
    fitted = [*moments(x), *moments(y)]
    pairs = [dict(zip(("mu", "sigma"), fitted[k:k + 2], strict=True)) for k in (0, 2)]
    frechet_distance(fake, real)
    kept = {} if real.cov is None else {"this project, reference kept": lambda: frechet_distance(fake, real)}
    return {
        **kept,
        "this project": lambda: frechet_distance(fake, dataclasses.replace(real)),
        "torch-fidelity (eigenvalues)": lambda: by_eigenvalues(*pairs),
        "pytorch-fid (sqrtm)": lambda: float(calculate_frechet_distance(*fitted)),
    }


@main.command()
@click.option("--dim", type=int, default=2048, show_default=True, help="Feature dimensions")
@click.option("--counts", default="500,2000,6000", show_default=True, help="Images on both sides")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each")
def frechet(dim: int, counts: str, repeats: int) -> None:
    """FID from fitted Gaussians: this project, eigenvalues of the product (torch-fidelity), sqrtm (the others)."""
    import numpy as np
    import scipy

    click.echo(f"{dim} dimensions, scipy {scipy.__version__}, numpy {np.__version__}, medians of {repeats}\n")
    click.echo("| images | by | FID | relative difference | CPU s | times as long |\n|---|---|---|---|---|---|")
    for count in map(int, counts.split(",")):
        own, own_seconds = 0.0, 0.0
        for name, compute in frechet_ways(count, dim).items():
            runs = [timed(compute) for _ in range(repeats)]
            (value,), seconds = runs[0][0], statistics.median(seconds for _, seconds in runs)
            own, own_seconds = own or value, own_seconds or seconds
            gap = "" if name.startswith("this") else f"{abs(value - own) / own:.1e}"
            click.echo(f"| {count} | {name} | {value:.8g} | {gap} | {seconds:.2f} | {seconds / own_seconds:.1f} |")


if __name__ == "__main__":
    tune_process()
    main()
