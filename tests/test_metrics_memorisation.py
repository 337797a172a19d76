"""The memorisation report: three-sample test, the bar of resampled training images, closest pairs, warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from dnnlib import UserError
from metrics.detectors import Detector
from metrics.fid import fit_gaussian, frechet_distance
from metrics.image_sets import ImageSet, from_tensor
from metrics.memorisation import closest_pairs, memorisation_report, resampled_fid
from metrics.pairs import CELL, draw_pairs, save_pairs
from metrics.registry import evaluate
from metrics.table import format_table
from metrics.three_sample import mann_whitney_z, three_sample_test

SIDE = 8


def normal(count: int, seed: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ties", [False, True])
def test_mann_whitney_against_scipy(ties: bool) -> None:
    x, y = normal(30, 0, 1)[:, 0].double(), normal(50, 1, 1)[:, 0].double() + 0.3
    if ties:
        x, y = x.round(decimals=0), y.round(decimals=0)
    found = scipy.stats.mannwhitneyu(x.numpy(), y.numpy(), use_continuity=False, method="asymptotic")
    z = mann_whitney_z(x, y)
    assert 2 * scipy.stats.norm.sf(abs(z)) == pytest.approx(found.pvalue, rel=1e-9)
    assert (z < 0) == (found.statistic < len(x) * len(y) / 2)
    assert mann_whitney_z(x[:5] * 0, y[:4] * 0) == 0


def test_three_sample_test_of_new_near_and_far_images() -> None:
    train, heldout = normal(800, 0), normal(400, 1)
    values = [three_sample_test(normal(400, 2 + k), train, heldout) for k in range(12)]
    null = [value["c_t"] for value in values]
    assert values[0]["cells"] == 10
    assert values[0]["cells_used"] >= 8
    # What is said of new images holds: mean 0, the standard deviation as predicted. (The held-out set is one draw.)
    assert abs(np.mean(null)) < 2 * values[0]["null_std"]
    assert np.std(null) == pytest.approx(values[0]["null_std"], rel=0.6)
    copies = three_sample_test(train[:400] + 0.02 * normal(400, 50), train, heldout)
    assert copies["c_t"] < -10 * copies["null_std"]
    assert three_sample_test(1.7 * normal(400, 51), train, heldout)["c_t"] > 3 * copies["null_std"]
    # The held-out images themselves: all distances are tied.
    assert three_sample_test(heldout, train, heldout)["c_t"] == pytest.approx(0)
    nothing = three_sample_test(normal(5, 0), train, heldout)
    assert (nothing["c_t"], nothing["null_std"], nothing["cells_used"]) == (None, None, 0)


def test_copies_in_one_cell_only_are_seen() -> None:
    """What a test over the whole space misses, since the other images are farther away than held-out ones."""
    centres = torch.tensor([[0.0] * 6, [30.0] * 6])

    def both(seed: int, count: int) -> torch.Tensor:
        return normal(count, seed) + centres[torch.arange(count) % 2]

    train, heldout = both(0, 400), both(1, 80)
    even = (torch.arange(80) % 2 == 0)[:, None]
    fakes = torch.where(even, train[:80] + 0.01 * normal(80, 2), 1.3 * normal(80, 3) + 30)
    found = three_sample_test(fakes, train, heldout)
    assert found["cells"] == 2
    assert found["c_t"] < -2 * found["null_std"]


def test_the_bar_of_resampled_training_images() -> None:
    train, heldout = normal(300, 0), normal(200, 1)
    repeats = resampled_fid(train, train, heldout, 0)
    better = resampled_fid(normal(5000, 2), train, heldout, 0)
    worse = resampled_fid(normal(300, 3) + 1, train, heldout, 0)
    assert repeats["generated"] == pytest.approx(repeats["train"], rel=0.8)
    assert better["generated"] < better["train"]
    assert worse["generated"] > 3 * worse["train"]
    assert (worse["count"], worse["num_heldout"]) == (300, 200)
    assert worse["generated"] == pytest.approx(
        frechet_distance(fit_gaussian(normal(300, 3) + 1), fit_gaussian(heldout)))


def test_closest_pairs_name_images_and_flips() -> None:
    plain, flips = normal(20, 0), normal(20, 1)
    train, numbers = torch.cat([plain, flips]), torch.arange(100, 120).repeat(2)
    fakes = torch.cat([normal(30, 2) + 9, flips[[4]] + 0.01, plain[[7]]])
    first, second, *rest = closest_pairs(fakes, train, numbers)
    assert first == {"generated": 31, "image": 107, "flipped": False, "distance": 0}
    assert (second["generated"], second["image"], second["flipped"]) == (30, 104, True)
    assert len(rest) == 8
    assert rest == sorted(rest, key=lambda pair: pair["distance"])
    assert not any(pair["flipped"] for pair in closest_pairs(fakes, plain, numbers[:20]))


def test_report_without_heldout_images() -> None:
    report = memorisation_report(normal(40, 0), normal(60, 1), torch.arange(60), None, 0)
    assert (report["three_sample"], report["resampled"]) == (None, None)
    assert report["ratio"] == pytest.approx(1, abs=0.3)


# A generator that copies, and one that doesn't, from images to the words.


@pytest.fixture(scope="module")
def detector() -> Detector:
    """The pixels of 4 × 4 pictures."""
    return Detector("efficientnet_lite2", "pixels", "0" * 64, 48, 4, torch.device("cpu"), lambda x: x.flatten(1) / 50)


def pictures(count: int, seed: int) -> torch.Tensor:
    rough = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 2, 2), dtype=np.uint8))
    return rough.repeat_interleave(SIDE // 2, 2).repeat_interleave(SIDE // 2, 3)


def judged(fakes: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor | None,
           detector: Detector) -> dict[str, Any]:
    plain = from_tensor(train, "train")
    reals = ImageSet(plain.name, plain.fingerprint, plain.num_images, plain.read, mirror=True)
    bar = None if heldout is None else from_tensor(heldout, "heldout")
    return evaluate("fid60_full", lambda n: [fakes[:n]], reals, detector=detector, heldout=bar)[0]


def test_a_generator_of_training_images_is_caught_and_one_of_heldout_images_is_not(detector: Detector) -> None:
    train, heldout, fresh = pictures(90, 0), pictures(60, 1), pictures(60, 2)
    noise = torch.from_numpy(np.random.default_rng(3).integers(-12, 13, train.shape))
    near = (train + noise).clamp(0, 255).byte()
    for fakes in (train, train.flip(-1), near):
        for bar in (heldout, None):
            record = judged(fakes, train, bar, detector)
            assert any("may be copies" in note for note in record["notes"])
            assert record["copying"]["ratio"] < 0.5
            if bar is not None:
                assert record["copying"]["three_sample"]["c_t"] < -4
    for fakes in (heldout, fresh):
        for bar in (heldout, None):
            record = judged(fakes, train, bar, detector)
            assert not any("may be copies" in note for note in record["notes"])
            assert record["copying"]["ratio"] > 0.8
            if bar is not None:
                assert record["copying"]["three_sample"]["c_t"] > -3
    text = format_table([judged(near, train, heldout, detector)])
    assert "Three-sample test: C_T -" in text
    assert "of 60 training images, the bar to beat" in text


def test_a_third_of_copies_is_caught_by_the_three_sample_test(detector: Detector) -> None:
    """The median distance hardly moves; the ranks do."""
    train, heldout = pictures(90, 0), pictures(60, 1)
    fakes = torch.cat([train[:27], pictures(33, 2)])
    record = judged(fakes, train, heldout, detector)
    assert record["copying"]["ratio"] > 0.5
    assert record["copying"]["three_sample"]["c_t"] < -3
    assert any("three-sample test says" in note for note in record["notes"])


def test_picture_of_pairs(tmp_path: Path) -> None:
    fake = torch.full((3, 8, 8), 10, dtype=torch.uint8)
    real = torch.full((1, 300, 150), 200, dtype=torch.uint8)
    sheet = draw_pairs([(fake, real, 0.5)] * 3)
    pixels = np.array(sheet)
    columns = (pixels[4:4 + CELL] == 10).all(2).any(0).sum()
    assert columns == 3 * CELL  # enlarged to the whole cell
    assert (pixels[8 + CELL:8 + 2 * CELL] == 200).all(2).sum() == 3 * CELL * CELL // 2  # 1:2, fitted
    save_pairs(tmp_path / "new" / "pairs.png", [(fake, real, 0.5)])
    with Image.open(tmp_path / "new" / "pairs.png") as image:
        assert image.size == (CELL + 8, sheet.height)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        save_pairs(tmp_path / "file" / "pairs.png", [(fake, real, 0.5)])
