"""What stands beside every quality figure: is this generator nearer to its training images than new images are?"""

from __future__ import annotations

from typing import Any

import torch

from metrics.copying import QUERIES, copying_report, nearest
from metrics.fid import fit_gaussian, frechet_distance
from metrics.three_sample import three_sample_test
from torch_utils import rng

CLOSEST = 10
FID_COUNT = 10_000  # images on each side of the bar, at most


def memorisation_report(
    fakes: torch.Tensor, train: torch.Tensor, numbers: torch.Tensor, heldout: torch.Tensor | None, seed: int
) -> dict[str, Any]:
    """`copying_report`, the ten closest pairs and, with held-out images, the two tests that need them.

    ``fakes [n, D]``; ``train [m, D]``, the images and then their flips, with image numbers ``numbers [m]``;
    ``heldout [k, D]``.

    ``closest``: generated image, training image, whether it is the flip, distance; nearest first.
    ``three_sample``: `three_sample_test`. ``resampled``: `resampled_fid`. Both None without held-out images.
    """
    two = heldout is not None and min(len(heldout), len(fakes)) >= 2
    return {
        **copying_report(fakes, train, numbers, heldout),
        "closest": closest_pairs(fakes[:QUERIES], train, numbers),
        "three_sample": None if heldout is None else three_sample_test(fakes[:QUERIES], train, heldout, seed),
        "resampled": resampled_fid(fakes, train, heldout, seed) if heldout is not None and two else None,
    }


def closest_pairs(fakes: torch.Tensor, train: torch.Tensor, numbers: torch.Tensor) -> list[dict[str, Any]]:
    """The `CLOSEST` generated images that are nearest to a training image, each with it."""
    distance, index = nearest(fakes, train)
    flips = len(train) // 2 if len(numbers.unique()) < len(numbers) else len(train)
    return [{"generated": int(k), "image": int(numbers[index[k]]), "flipped": bool(index[k] >= flips),
             "distance": distance[k].item()} for k in distance.argsort(stable=True)[:CLOSEST]]


def resampled_fid(fakes: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor, seed: int) -> dict[str, Any]:
    """FID against the held-out images of the generated ones, and of as many redrawn training images: the bar.

    A generator that only repeated its training set would score ``train``; one with a lower ``generated`` has learned
    more of the distribution than that (DISP, Mangla et al. 2020). Training images are drawn with replacement, among
    their flips where training saw these. At most 10,000 images on either side.
    """
    count = min(len(fakes), FID_COUNT)
    rows = torch.randint(len(train), (count,), generator=rng.generator("resampled", seed))
    real = fit_gaussian(heldout)
    return {"generated": frechet_distance(fit_gaussian(fakes[:count]), real),
            "train": frechet_distance(fit_gaussian(train[rows]), real), "count": count, "num_heldout": len(heldout)}


def warnings(report: dict[str, Any]) -> list[str]:
    """Notes for results of a generator that is nearer to its training images than new images are."""
    ratio, test = report["ratio"], report["three_sample"]
    if ratio is not None and ratio < 0.5:
        return [f"the images lie at {ratio:.2g} of the distance that {report['bar']} have to the nearest training "
                "image: they may be copies; look at the closest pairs (--pairs PNG)"]
    if test is not None and test["c_t"] is not None and test["c_t"] < -3 * test["null_std"] and (ratio or 1) < 0.9:
        return [f"the three-sample test says that the images are nearer to the training images than held-out ones are "
                f"(C_T {test['c_t']:.1f}): they may be copies; look at the closest pairs (--pairs PNG)"]
    return []
