"""What each metric says of sets whose fault is known: noise, blur, a lost mode, copies. The table of docs/metrics.md.

\b
Example:
  python benchmarks/sanity_metrics.py

The demo's 586 satellite tiles in random order: 330 count as the training set, 128 as held-out images, 128 are judged as
they are or spoilt. The tiles don't overlap.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from metrics.detectors import Detector

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib.tuning import tune_process  # noqa: E402  (found from the project's root)

TRAIN, JUDGED = 330, 128
METRICS = "fid_full,kid_full,pr3_full,dc5_full,diversity128"
VALUES = {"FID": "fid_full", "KID": "kid_full", "precision": "pr3_full_precision", "recall": "pr3_full_recall",
          "density": "dc5_full_density", "coverage": "dc5_full_coverage", "diversity": "diversity128"}


def tiles() -> list[torch.Tensor]:
    """uint8 [3, 64, 64], always in the same random order."""
    import torch

    from dnnlib.images import open_source
    from metrics.image_sets import from_source
    from torch_utils.rng import generator

    images = from_source(open_source(ROOT / "demo" / "earth_64.zip"))
    order = torch.randperm(images.num_images, generator=generator("sanity"))
    return [images.read(int(i)) for i in order]


def noisy(images: torch.Tensor, level: float) -> torch.Tensor:
    """With independent normal noise of standard deviation `level`, of 255."""
    import torch

    from torch_utils.rng import generator

    noise = torch.randn(images.shape, generator=generator("sanity", "noise"))
    return (images + level * noise).round().clamp(0, 255).byte()


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Means of 3 × 3 pixels."""
    import torch.nn.functional as F

    return F.avg_pool2d(F.pad(images.float(), (1, 1, 1, 1), "replicate"), 3, 1).round().byte()


def one_mode(images: torch.Tensor, detector: Detector) -> torch.Tensor:
    """As many images, drawn from the largest of four k-means cells of their features."""
    import torch

    from torch_utils.clustering import kmeans
    from torch_utils.rng import generator

    cells = kmeans(detector(images), 4, 0)
    members = (cells.assignment == cells.counts.argmax()).nonzero()[:, 0]
    return images[members[torch.randint(len(members), (len(images),), generator=generator("sanity", "mode"))]]


@click.command(help=__doc__)
def main() -> None:
    import torch

    from metrics.detectors import load_detector
    from metrics.features import FeatureCache
    from metrics.image_sets import from_tensor
    from metrics.registry import evaluate

    detector, images = load_detector(), tiles()
    train, heldout, new = (torch.stack(part) for part in (images[:TRAIN], images[TRAIN:-JUDGED], images[-JUDGED:]))
    judged = {
        "new images": new,
        "the held-out images": heldout,
        "new images, noise of 12 in 255": noisy(new, 12),
        "new images, blurred 3 × 3": blurred(new),
        "one of four modes of new images": one_mode(new, detector),
        "training images": train[:JUDGED],
        "training images, 10 % darker": (train[:JUDGED] * 0.9).byte(),
        "training images, noise of 3": noisy(train[:JUDGED], 3),
    }
    reals, bar = from_tensor(train, "train"), from_tensor(heldout, "held-out")
    click.echo(f"| judged | {' | '.join(VALUES)} | copying | C_T (deviation) | warned |")
    click.echo("|---|" + "---|" * (len(VALUES) + 3))
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, click.echo)
        for name, made in judged.items():
            records = evaluate(METRICS, from_tensor(made, name), reals, detector=detector, heldout=bar, cache=cache,
                               confidence=False)
            click.echo(row(name, records))
        (same, *_) = evaluate("fid_full", reals, reals, detector=detector, cache=cache, confidence=False)
    click.echo(f"\nThe training set against itself: FID {same['results']['fid_full']:.2g}")


def row(name: str, records: list[dict[str, Any]]) -> str:
    """A line of the table."""
    results = {key: value for record in records for key, value in record["results"].items()}
    report = records[0]["copying"]
    test = report["three_sample"]
    warned = any("may be copies" in note for note in records[0]["notes"])
    cells = [name, *(f"{results[key]:.3g}" for key in VALUES.values()), f"{report['ratio']:.2f}",
             f"{test['c_t']:.1f} ({test['null_std']:.1f})", "yes" if warned else ""]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    tune_process()
    main()
