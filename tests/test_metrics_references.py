"""The same features in, the same numbers out as torch-fidelity, clean-fid, pytorch-fid and prdc.

Features: EfficientNet-Lite2's (first 192 of 1280) of 300 and 265 satellite tiles of 64 px, train and held-out cells
of the map (fixtures/earth_features.npz, float16; source of the tiles: demo/SOURCES.md). Images, for whole paths:
those that the demo brings and, where it is there, ../shared/data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

from dnnlib.images import open_source
from metrics.confidence import fid_infinity
from metrics.detectors import Detector, load_detector
from metrics.fid import fit_gaussian, frechet_distance
from metrics.image_sets import ImageSet, from_source
from metrics.inception_score import inception_score
from metrics.kid import kernel_distance
from metrics.precision_recall import density_coverage, precision_recall
from metrics.registry import evaluate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
Pair = tuple[torch.Tensor, torch.Tensor]
IMAGES = 12  # that whole paths read of either set


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Features of generated (here: held-out) and of real images."""
    with np.load(ROOT / "tests" / "fixtures" / "earth_features.npz") as file:
        return torch.from_numpy(file["test"]).float(), torch.from_numpy(file["train"]).float()


def moments(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    x = features.double().numpy()
    return x.mean(0), np.cov(x, rowvar=False)


def by_pytorch_fid(x: torch.Tensor, y: torch.Tensor) -> float:
    from pytorch_fid.fid_score import calculate_frechet_distance

    return float(calculate_frechet_distance(*moments(x), *moments(y)))


def by_clean_fid(x: torch.Tensor, y: torch.Tensor) -> float:
    from cleanfid.fid import fid_from_feats

    return float(fid_from_feats(x.double().numpy(), y.double().numpy()))


def by_torch_fidelity(x: torch.Tensor, y: torch.Tensor) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = (fid_features_to_statistics(features) for features in (x, y))
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


@pytest.mark.parametrize("reference", [by_pytorch_fid, by_clean_fid, by_torch_fidelity])
def test_fid(reference: Callable[[torch.Tensor, torch.Tensor], float], pair: Pair) -> None:
    mine = frechet_distance(*map(fit_gaussian, pair))
    assert mine == pytest.approx(reference(*pair), rel=1e-5)
    assert mine > 1


def test_fid_of_fewer_images_than_dimensions(pair: Pair) -> None:
    few = tuple(features[:120] for features in pair)  # sqrtm is undefined there, eigenvalues are not
    assert frechet_distance(*map(fit_gaussian, few)) == pytest.approx(by_torch_fidelity(*few), rel=1e-4)


def test_kid(pair: Pair) -> None:
    from cleanfid.fid import kernel_distance as by_clean
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    x, y = (features[:265] for features in pair)  # as many on both sides, so that a subset is the whole
    mine, _ = kernel_distance(x, y, subsets=2)
    assert mine == pytest.approx(by_clean(x.double().numpy(), y.double().numpy(), num_subsets=2), rel=1e-9)
    options = {"kid_kernel": "poly", "verbose": False, "rng_seed": 0}
    whole = kid_features_to_metric(x.double(), y.double(), kid_subsets=1, kid_subset_size=265, **options)
    assert mine == pytest.approx(whole[KEY_METRIC_KID_MEAN], rel=1e-9)
    # With random subsets the draws differ; mean and spread agree.
    mean, std = kernel_distance(x, y, subsets=300, subset_size=100)
    other = kid_features_to_metric(x, y, kid_subsets=300, kid_subset_size=100, **options)
    assert mean == pytest.approx(other[KEY_METRIC_KID_MEAN], abs=5 * math.sqrt(2 / 300) * std)
    assert std == pytest.approx(other[KEY_METRIC_KID_STD], rel=0.2)


def test_inception_score(pair: Pair) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = pair[0] @ torch.randn(192, 20, generator=torch.Generator().manual_seed(0))
    other = isc_features_to_metric(logits, splits=10, shuffle=False)
    mean, std = inception_score(logits)
    assert (mean, std) == pytest.approx((other["inception_score_mean"], other["inception_score_std"]), rel=1e-9)
    assert 1.5 < mean < 20


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage(k: int, pair: Pair) -> None:
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    x, y = pair[0], pair[1][:200]
    other = compute_prdc(real_features=y.double().numpy(), fake_features=x.double().numpy(), nearest_k=k)
    assert precision_recall(x, y, k) == pytest.approx((other["precision"], other["recall"]), rel=1e-9)
    assert density_coverage(x, y, k) == pytest.approx((other["density"], other["coverage"]), rel=1e-9)
    assert precision_recall(x, y, k) == pytest.approx(calculate_precision_recall_full(x.double(), y.double(), k))
    assert 0 < other["recall"] < 1
    assert 0 < other["coverage"] < 1


def test_fid_infinity_against_the_published_procedure(pair: Pair) -> None:
    """Chong & Forsyth's: 15 counts, a line against 1/N by scikit-learn. The subsets here are the same ones."""
    from sklearn.linear_model import LinearRegression

    value, points = fid_infinity(pair[0], fit_gaussian(pair[1]))
    counts, values = (np.array(column) for column in zip(*points, strict=True))
    line = LinearRegression().fit(1 / counts[:, None], values)
    assert value == pytest.approx(line.predict([[0.0]])[0], rel=1e-9)
    assert (len(points), counts[0], counts[-1]) == (15, 132, 265)
    assert values[-1] == pytest.approx(frechet_distance(*map(fit_gaussian, pair)), rel=1e-6)
    assert value < values[-1] < values[0]  # the bias is upwards


# Whole paths: images in, numbers out.


def narrow_detector() -> Detector:
    """EfficientNet-Lite2's first 96 features: eigenvalues by the general solver of the other tools take a while."""
    whole = load_detector()
    return Detector(whole.name, whole.network, whole.weights_hash, 96, whole.resolution, whole.device,
                    lambda x: whole.pooled(x)[:, :96])


def image_sets(where: str) -> tuple[ImageSet, ImageSet]:
    folder = ROOT / "demo" if where == "demo" else ROOT.parent / "shared" / "data"
    if not (folder / "earth_64.zip").is_file():
        pytest.skip(f"{folder / 'earth_64.zip'} is not there")
    source = open_source(folder / "earth_64.zip")
    split = json.loads((folder / "earth_64_split.json").read_text())
    whole = from_source(source)

    def some(names: list[str]) -> ImageSet:
        numbers = [source.names.index(name) for name in names[:IMAGES]]
        return ImageSet("some", names[0], len(numbers), lambda i: whole.read(numbers[i]))

    return some(split["test"]), some(split["train"])


@pytest.mark.parametrize("where", ["demo", "shared"])
def test_torch_fidelity_with_this_detector(where: str, tmp_path: Path) -> None:
    """The detector as a feature extractor of torch-fidelity, on real images; every number within 1e-3."""
    from torch_fidelity import calculate_metrics, register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    detector = narrow_detector()
    weights = torch.randn(10, 96, generator=torch.Generator().manual_seed(0))

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **options: object) -> None:
            super().__init__(name, features_list)  # the options of the whole call are passed to every extractor

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features = detector(images)
            found = {"features": features, "logits": features @ weights.T}
            return tuple(found[name] for name in self.features_list)

    class Images(torch.utils.data.Dataset):
        def __init__(self, images: ImageSet) -> None:
            self.images = images

        def __len__(self) -> int:
            return self.images.num_images

        def __getitem__(self, i: int) -> torch.Tensor:
            return self.images.read(i)

    register_feature_extractor(f"lite2-{where}", Extractor)
    fakes, reals = image_sets(where)
    other: dict[str, Any] = calculate_metrics(
        input1=Images(fakes), input2=Images(reals), cuda=False, fid=True, kid=True, isc=True, prc=True, verbose=False,
        feature_extractor=f"lite2-{where}", feature_layer_fid="features", feature_layer_kid="features",
        feature_layer_isc="logits", feature_layer_prc="features", kid_subset_size=IMAGES, kid_subsets=1, batch_size=6,
        samples_shuffle=False, save_cpu_ram=True, cache=False, datasets_root=str(tmp_path))
    judged = Detector(detector.name, detector.network, detector.weights_hash, 96, detector.resolution, detector.device,
                      detector.pooled, lambda f: f @ weights.T)
    names = ["fid_full", "kid_full", f"is{IMAGES}", "pr3_full"]
    mine: dict[str, float] = {}
    for record in evaluate(names, fakes, reals, detector=judged, confidence=False):
        mine |= record["results"]
    assert mine["fid_full"] == pytest.approx(other["frechet_inception_distance"], rel=1e-3)
    assert mine["kid_full"] == pytest.approx(other["kernel_inception_distance_mean"], rel=1e-3)
    assert mine[f"is{IMAGES}_mean"] == pytest.approx(other["inception_score_mean"], rel=1e-3)
    assert mine["pr3_full_precision"] == pytest.approx(other["precision"], abs=1e-6)
    assert mine["pr3_full_recall"] == pytest.approx(other["recall"], abs=1e-6)
