"""Every preset on every kind of data set: bind, two steps, save, resume bit for bit, sample, two metrics.

A pairwise cover here; all combinations with ``make test-matrix``.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from allpairspy import AllPairs
from PIL import Image
from runs import CPU, assert_equal, new_trainer, open_set, step, tiny_config

from dnnlib import UserError
from metrics.detectors import load_detector
from metrics.image_sets import from_dataset
from metrics.registry import evaluate
from training.presets import PRESETS, preset
from training.run_state import load_state
from training.sampling import load_gan, training_sampler

RESOLUTIONS, LABELS, CHANNELS, ASPECTS = (32, 64, 128, 256), (False, True), (3, 1), ((1, 1), (1, 2), (2, 1))
AXES = [list(PRESETS), RESOLUTIONS, LABELS, CHANNELS, ASPECTS]
CLUSTERED = ("cluster", "selfcond")  # conditioning whose labels are its own
IMAGES = 8


def has_meaning(case: list) -> bool:
    """Whether the beginning of a combination can be trained."""
    return not (len(case) > 2 and case[2] and preset(case[0])["conditioning"] in CLUSTERED)


WHOLE = os.environ.get("TEST_MATRIX") == "whole"
CASES = list(filter(has_meaning, map(list, itertools.product(*AXES)))) if WHOLE else list(
    AllPairs(AXES, filter_func=has_meaning))


def name_of(case: list) -> str:
    cfg, resolution, labels, channels, (high, wide) = case
    return f"{cfg}-{resolution}-{'labels' if labels else 'plain'}-{'rgb' if channels == 3 else 'grey'}-{wide}x{high}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data sets of this module are made, each when it is first asked for."""
    return tmp_path_factory.mktemp("sets")


def make_set(folder: Path, resolution: int, channels: int, aspect: tuple[int, int]) -> Path:
    """A converted set of `IMAGES` smooth pictures in two classes."""
    size = (resolution * aspect[1], resolution * aspect[0])
    path = folder / f"{size[0]}x{size[1]}-{channels}.zip"
    if path.exists():
        return path
    with zipfile.ZipFile(path, "w") as archive:
        names = [f"00000/img{i:08d}.png" for i in range(IMAGES)]
        for i, name in enumerate(names):
            coarse = np.random.default_rng(i).integers(0, 256, (4, 4, channels), dtype=np.uint8)
            picture = Image.fromarray(coarse[:, :, 0] if channels == 1 else coarse).resize(size)
            data = io.BytesIO()
            picture.save(data, format="png")
            archive.writestr(name, data.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": [[name, i % 2] for i, name in enumerate(names)]}))
    return path


def check(case: list, folder: Path, tmp_path: Path, **changes: object) -> None:
    cfg, resolution, labels, channels, aspect = case
    path = make_set(folder, resolution, channels, aspect)
    changes = {"cond": labels, **({"neighbors": 3} if preset(cfg)["conditioning"] == "icgan" else {}), **changes}
    dataset = open_set(path, cfg, cond=labels)
    config = tiny_config(cfg, dataset, **changes)
    whole = new_trainer(config, dataset, tmp_path)
    before = {k: v.clone() for k, v in whole.run.state_dict()["G"].items()}
    step(whole, dataset, 1)
    whole.run.save(tmp_path / "snapshot.pkl")
    step(whole, dataset, 1)
    after = whole.run.state_dict()["G"]
    assert any(not torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))

    resumed = new_trainer(config, dataset, tmp_path, load_state(tmp_path / "snapshot.pkl"))
    step(resumed, dataset, 1)
    assert_equal(resumed.run.state_dict(), whole.run.state_dict())
    whole.run.save(tmp_path / "last.pkl")

    gan = load_gan(tmp_path / "last.pkl", CPU)
    gan.conditioning.table = whole.run.conditioning.table
    sampler = training_sampler(gan, dataset)
    one, many = sampler.batch([5]), sampler.batch([3, 4, 5])
    assert many.shape == (3, *dataset.shape)
    assert (one[0].int() - many[2].int()).abs().max() <= 1
    records = evaluate("fid4_full,kid4_full", lambda count: sampler.images(range(count)), from_dataset(dataset, False),
                       detector=load_detector())
    assert len(records) == 2
    assert all(np.isfinite(value) for record in records for value in record["results"].values())


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_combination(case: list, folder: Path, tmp_path: Path) -> None:
    check(case, folder, tmp_path)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_native_input_of_the_frozen_network(resolution: int, folder: Path, tmp_path: Path) -> None:
    """What a user gets: D and f look at the sizes that the preset says, not at the tests' 32 px."""
    check(["dicgan_lite", resolution, False, 3, (1, 1)], folder, tmp_path, d_input=None, f_input=None)


@pytest.mark.parametrize("cfg", [cfg for cfg in PRESETS if preset(cfg)["conditioning"] in CLUSTERED])
def test_labels_beside_clusters_are_refused(cfg: str, folder: Path) -> None:
    dataset = open_set(make_set(folder, 32, 3, (1, 1)), cfg, cond=True)
    with pytest.raises(UserError, match="--cond"):
        tiny_config(cfg, dataset, cond=True)
