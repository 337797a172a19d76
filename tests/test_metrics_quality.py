"""Precision, recall, density, coverage, Inception Score, diversity, intervals: against loops, and what moves them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dnnlib import UserError
from metrics.confidence import fid_error, fid_infinity, kid_error
from metrics.detectors import Detector
from metrics.diversity import mean_pairwise_distance, within_groups
from metrics.fid import fit_gaussian, frechet_distance
from metrics.image_sets import from_tensor
from metrics.inception_score import inception_score
from metrics.kid import kernel_distance
from metrics.precision_recall import density_coverage, neighbour_radii, precision_recall
from metrics.registry import evaluate
from metrics.table import format_table

DIM = 24


def normal(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def scenes(count: int, seed: int, modes: int = 6) -> torch.Tensor:
    """uint8 [count, 3, 16, 16]: a bright square at one of `modes` places, in a random colour, on a textured ground."""
    g = torch.Generator().manual_seed(seed)
    images = 90 + 25 * torch.randn(count, 3, 16, 16, generator=g)
    for k in range(count):
        row, column = divmod(int(torch.randint(modes, (1,), generator=g)), 3)
        images[k, :, 2 + 7 * row:7 + 7 * row, 1 + 5 * column:5 + 5 * column] = (
            160 + 80 * torch.rand(3, 1, 1, generator=g))
    return images.clamp(0, 255).byte()


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Random 5 × 5 filters, rectified, pooled over a 2 × 3 grid: sees edges, places and texture; with a classifier."""
    g = torch.Generator().manual_seed(0)
    filters, head = torch.randn(4, 3, 5, 5, generator=g) / 60, torch.randn(5, DIM, generator=g)

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(F.conv2d(x - 128, filters).relu(), (2, 3)).flatten(1)

    return Detector("efficientnet_lite2", "filters", "0" * 64, DIM, 16, torch.device("cpu"), pooled,
                    lambda f: f @ head.T)


# Definitions, by loops.


def test_balls_against_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.precision_recall._ENTRIES", 200)  # several blocks
    x, y, k = normal(30, 4, 0) + 100, 1.5 * normal(25, 4, 1) + 100.5, 3

    def distance(u: torch.Tensor, v: torch.Tensor) -> float:
        return math.dist(u.tolist(), v.tolist())

    def radii(points: torch.Tensor) -> list[float]:
        return [sorted(distance(p, q) for q in points)[k] for p in points]

    inside = [[distance(f, r) <= size for r, size in zip(y, radii(y), strict=True)] for f in x]
    caught = [[distance(r, f) <= size for f, size in zip(x, radii(x), strict=True)] for r in y]
    assert precision_recall(x, y, k) == pytest.approx((np.mean([any(row) for row in inside]),
                                                       np.mean([any(row) for row in caught])))
    assert density_coverage(x, y, k) == pytest.approx((np.sum(inside) / k / len(x),
                                                       np.mean(np.any(inside, axis=0))))
    copies = normal(6, 4, 2)[[0, 0, 0, 0, 1, 2]]
    assert neighbour_radii(copies, 3)[:4].tolist() == pytest.approx([0] * 4, abs=1e-12)


def test_inception_score_bounds() -> None:
    sure = 100 * torch.eye(5).repeat(20, 1)
    assert inception_score(sure) == pytest.approx((5, 0), abs=1e-9)  # certain and balanced: the number of classes
    assert inception_score(torch.zeros(40, 5)) == pytest.approx((1, 0))
    assert inception_score(sure[:1].expand(40, -1)) == pytest.approx((1, 0))


def test_diversity_against_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.diversity._BLOCK", 7)
    x = normal(40, 5, 0) + 30
    pairs = [math.dist(u.tolist(), v.tolist()) for u, v in itertools.combinations(x, 2)]
    assert mean_pairwise_distance(x) == pytest.approx(np.mean(pairs), rel=1e-6)
    groups = torch.arange(40) % 13
    found = within_groups(x, groups)
    assert found is not None
    assert found == pytest.approx((np.mean([mean_pairwise_distance(x[groups == g]) for g in range(13)]), 13))
    assert within_groups(x, torch.arange(40)) is None


# Confidence.


@pytest.mark.parametrize("kind", ["fid", "kid"])
def test_intervals_are_as_wide_as_other_draws_scatter(kind: str) -> None:
    """Standard errors from one sample, beside the scatter over independent samples."""
    real = normal(300, 6, 0)
    gaussian = fit_gaussian(real)
    samples = [0.3 + 1.2 * normal(200, 6, 1 + k) for k in range(40)]
    if kind == "fid":
        values = [frechet_distance(fit_gaussian(x), gaussian) for x in samples]
        errors = [fid_error(x, 200, gaussian) for x in samples[:10]]
    else:
        values = [kernel_distance(x, real, subsets=1)[0] for x in samples]
        errors = [kid_error(x, real) for x in samples[:10]]
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35)
    # Of four times as many images, from the vectors that are kept: half as wide.
    if kind == "fid":
        assert fid_error(samples[0], 800, gaussian) == pytest.approx(errors[0] / 2)


def test_fid_infinity_is_nearer_to_the_truth() -> None:
    """Two equal Gaussians: all of the FID of finite samples is bias."""
    real = fit_gaussian(normal(20_000, 16, 0))
    finite, extrapolated = [], []
    for seed in range(1, 5):
        x = normal(400, 16, seed)
        finite.append(frechet_distance(fit_gaussian(x), real))
        extrapolated.append(fid_infinity(x, real)[0])
    assert abs(np.mean(extrapolated)) < 0.2 * np.mean(finite)


# Sanity: what is worse scores worse, and in the metric that is about it.


def scores(fakes: torch.Tensor, reals: torch.Tensor, detector: Detector) -> dict[str, float]:
    names = "fid_full,kid_full,pr3_full,dc5_full,diversity240,is240"
    (first, *rest) = evaluate(names, from_tensor(fakes, "fakes"), from_tensor(reals, "reals"), detector=detector,
                              confidence=False)
    return {**first["results"], **{name: value for record in rest for name, value in record["results"].items()}}


def test_noise_blur_and_lost_modes_move_what_they_should(detector: Detector) -> None:
    reals, good = scenes(240, 0), scenes(240, 1)
    noise = 60 * torch.randn(good.shape, generator=torch.Generator().manual_seed(2))
    base = scores(good, reals, detector)
    noisy = scores((good.float() + noise).clamp(0, 255).byte(), reals, detector)
    blurred = scores(F.avg_pool2d(good.float(), 5, 1, 2, count_include_pad=False).byte(), reals, detector)
    dropped = scores(scenes(240, 1, modes=1), reals, detector)
    for bad in (noisy, blurred, dropped):
        assert bad["fid_full"] > 3 * base["fid_full"]
        assert bad["kid_full"] > base["kid_full"] + 0.001
        assert bad["dc5_full_coverage"] < 0.7 * base["dc5_full_coverage"]
    for bad in (noisy, blurred):
        assert bad["pr3_full_precision"] < 0.5 * base["pr3_full_precision"]
    # What is left of the modes is as good as before: precision stays, variety falls.
    assert dropped["pr3_full_precision"] > 0.8 * base["pr3_full_precision"]
    assert dropped["pr3_full_recall"] < 0.5 * base["pr3_full_recall"]
    assert dropped["diversity240"] < 0.8 * base["diversity240"]
    assert base["diversity240"] == pytest.approx(base["diversity240_real"], rel=0.1)


def test_a_set_against_itself(detector: Detector) -> None:
    reals = scenes(240, 0)
    same = scores(reals, reals, detector)
    assert same["fid_full"] < 1e-6 * fit_gaussian(detector(reals)).trace
    assert [same[f"{name}"] for name in ("pr3_full_precision", "pr3_full_recall", "dc5_full_coverage")] == [1, 1, 1]


# Through the registry.


def test_new_metrics_in_records(detector: Detector) -> None:
    reals, fakes = from_tensor(scenes(60, 0), "reals"), scenes(120, 1)
    names = ["fid100_full", "kid100_full", "fidinf100_full", "pr100n3", "dc5_full", "is100", "diversity100"]
    records = evaluate(names, lambda n: fakes[:n].split(50), reals, detector=detector, groups=lambda k: k % 4)
    found = dict(zip(names, records, strict=True))
    made, real = detector(fakes[:100]), detector(scenes(60, 0))
    for name in ("fid100_full", "kid100_full"):
        interval, value = found[name]["intervals"][name], found[name]["results"][name]
        assert interval["low"] < value < interval["high"]
    assert found["fid100_full"]["intervals"]["fid100_full"]["standard_error"] == pytest.approx(
        fid_error(made, 100, fit_gaussian(real)), rel=1e-4)
    results = found["fidinf100_full"]["results"]
    assert results["fidinf100_full_finite"] == pytest.approx(found["fid100_full"]["results"]["fid100_full"], rel=1e-5)
    assert results["fidinf100_full"] == pytest.approx(fid_infinity(made, fit_gaussian(real))[0], rel=1e-4)
    assert (found["pr100n3"]["num_fake"], found["pr100n3"]["num_real"]) == (100, 60)
    assert found["dc5_full"]["results"]["dc5_full_density"] == pytest.approx(density_coverage(made[:60], real)[0])
    assert detector.head is not None
    assert found["is100"]["results"]["is100_mean"] == pytest.approx(inception_score(detector.head(made))[0])
    assert any("not Inception-v3's" in note for note in found["is100"]["notes"])
    groups = within_groups(made, torch.arange(100) % 4)
    assert groups is not None
    assert found["diversity100"]["results"]["diversity100_within"] == pytest.approx(groups[0], rel=1e-5)
    table = format_table(records)
    assert "95 % interval" in table
    assert "different detectors" not in table
    without = evaluate(names[:2], lambda n: [fakes[:n]], reals, detector=detector, confidence=False)
    assert [record["intervals"] for record in without] == [{}, {}]


def test_two_detectors_are_never_beside_each_other(detector: Detector) -> None:
    reals = from_tensor(scenes(20, 0), "reals")
    other = Detector("inception", "filters", "1" * 64, DIM, 16, detector.device, detector.pooled)
    records = [record for d in (detector, other) for record in evaluate("fid_full,kid_full", reals, reals, detector=d)]
    text = format_table([records[0], records[2], records[1], records[3]])
    parts = text.split("\n\n")
    assert len(parts) == 3
    assert parts[0].startswith("Detector efficientnet_lite2")
    assert parts[1].startswith("Detector inception")
    assert "different detectors" in parts[2]


def test_refusals(detector: Detector) -> None:
    few, plain = from_tensor(scenes(4, 0), "few"), Detector("swav", "r", "0" * 64, DIM, 16, detector.device,
                                                            detector.pooled)
    for name, words, judge in (("is10", "swav has no classifier", plain), ("pr5_full", "5 neighbours need", detector),
                               ("fidinf_full", "needs 10 images", detector)):
        with pytest.raises(UserError, match=words):
            evaluate(name, lambda n: [scenes(n, 1)], few, detector=judge)
