"""Every row of the preset table: bind, build tiny, two steps, save, resume, compare bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_equal, data_facts, new_trainer, open_set, step, tiny_config

from dnnlib import UserError, construct
from training.dataset import ImageDataset
from training.presets import DEFAULTS, PRESETS
from training.resolve import resolve
from training.run_state import load_state

# What the matrix of presets (test_matrix.py) doesn't reach: one row, options that change what is built or drawn.
VARIANTS = [
    ("dicgan_demo", {"encoder": "head", "latent": (4, 1, 1)}),
    ("dicgan_demo", {"encoder": "head", "latent": (4, 2, 2), "f_input": 64}),
    ("dicgan_demo", {"encoder": "frozen", "latent": (4, 2, 2), "f_input": 64}),
    ("dicgan_demo", {"encoder": "joint", "latent": (4, 1, 1)}),
    ("dicgan_lite", {"encoder": "joint", "latent": (4, 8, 8), "info_weight": 0.5}),
    ("dicgan_demo", {"encoder": "constant", "sigma": 0.5}),
    ("dicgan_demo", {"cond": True, "sigma": 0.0}),
    ("dicgan_demo", {"sigma": "uniform:0.7", "cond": True}),
    ("dicgan_demo", {"target": "resampled"}),
    ("dicgan_demo", {"generator": "stylegan2", "sigma": "uniform:0.7", "latent": (4, 4, 4), "encoder": "joint"}),
    ("dicgan_demo", {"d_noise": "pixel", "cond": True}),
    ("icgan_demo", {"generator": "stylegan2", "cond": True, "d_noise": "pixel"}),
    ("icgan_demo", {"info_weight": 1.0, "d_noise": "feature", "d_noise_at": "last", "t_dist": "uniform"}),
    ("disp_demo", {"consistency": 10.0, "freeze_d": 1, "cond": True}),
    ("disp_demo", {"generator": "stylegan2"}),
    ("logogan_demo", {"generator": "stylegan2", "objective": "nonsaturating"}),
    ("selfcond_demo", {"objective": "wasserstein", "mirror": False}),
    ("stylegan2_ada_demo", {"cond": True, "d_noise": "pixel", "freeze_d": 1}),
    ("stylegan2_ada_demo", {"pl_weight": 0.0, "objective": "hinge"}),
    ("fastgan_original_demo", {"cond": True, "d_noise": "pixel", "freeze_d": 1}),
]


@pytest.mark.parametrize(("cfg", "changes"), VARIANTS, ids=lambda v: v if isinstance(v, str) else
                         "-".join(map(str, v.values())))
def test_two_steps_save_resume(cfg: str, changes: dict[str, Any], tiny_set: Path, tmp_path: Path) -> None:
    dataset = open_set(tiny_set, cfg, **changes)
    config = tiny_config(cfg, dataset, **changes)
    whole = new_trainer(config, dataset, tmp_path)
    before = {k: v.clone() for k, v in whole.run.G.state_dict().items()}
    step(whole, dataset, 2)
    after = whole.run.G.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))
    whole.run.save(tmp_path / "snapshot.pkl")
    step(whole, dataset, 1)

    resumed = new_trainer(config, dataset, tmp_path, load_state(tmp_path / "snapshot.pkl"))
    assert resumed.run.progress["cur_nimg"] == 2 * config["run"]["batch"]
    step(resumed, dataset, 1)
    assert_equal(resumed.run.state_dict(), whole.run.state_dict())


@pytest.mark.parametrize("cfg", PRESETS)
def test_rows_use_known_keys(cfg: str) -> None:
    assert set(PRESETS[cfg]) <= set(DEFAULTS)


def test_every_choice_of_the_default_rows_is_built(tiny_set: Path) -> None:
    """Real sizes on the meta device: the official parameter counts at 256 px (facts of the official code)."""
    data = {**data_facts(ImageDataset(tiny_set)), "resolution": 256}
    counts = {}
    for cfg in ("fastgan", "fastgan_lite"):
        config = resolve(cfg, {}, data)
        with torch.device("meta"):
            counts[cfg] = sum(p.numel() for p in construct(config["G"]).parameters()) / 1e6
    assert counts == {"fastgan": pytest.approx(105.68, abs=0.01), "fastgan_lite": pytest.approx(79.35, abs=0.01)}


REFUSED = [
    ("fastgan_lite", {"sigma": 0.3}, "--sigma"),
    ("fastgan_lite", {"encoder": "joint"}, "--encoder"),
    ("fastgan_lite", {"nonsense": 1}, "nonsense"),
    ("fastgan_lite", {"cond": True}, "--cond"),
    ("fastgan_lite", {"amp": "fp64"}, "--amp"),
    ("fastgan_lite", {"glr": 0.0}, "--glr"),
    ("fastgan_lite", {"map_depth": 2}, "--map-depth"),
    ("fastgan_lite", {"cbase": 64}, "--cbase"),
    ("fastgan_lite", {"clusters": 4}, "--clusters"),
    ("fastgan_lite", {"neighbors": 4}, "--neighbors"),
    ("fastgan_lite", {"features": "tf_efficientnet_lite0"}, "--features"),
    ("fastgan_lite", {"info_weight": 1.0}, "--info-weight"),
    ("fastgan_lite", {"d_noise_at": "last"}, "--d-noise-at"),
    ("fastgan_lite", {"t_dist": "uniform"}, "--t-dist"),
    ("fastgan_lite", {"gamma": 1.0}, "--gamma"),
    ("fastgan_lite", {"diffaug": "blur"}, "--diffaug blur"),
    ("fastgan_lite", {"consistency": 1.0, "diffaug": ""}, "--consistency"),
    ("fastgan_lite", {"consistency": 1.0, "d_noise": "feature"}, "--consistency"),
    ("fastgan_lite", {"consistency": -1.0}, "--consistency"),
    ("fastgan_lite", {"d_noise": "feature", "d_noise_target": 2.0}, "--d-noise-target"),
    ("fastgan_lite", {"objective": "least-squares"}, "--objective"),
    ("stylegan2", {"ngf": 8}, "--ngf"),
    ("icgan", {"neighbors": 40}, "--neighbors 40"),
    ("icgan", {"sigma": 0.3}, "--sigma"),
    ("logogan", {"clusters": 41}, "--clusters 41"),
    ("logogan", {"recluster": 1.0}, "--recluster"),
    ("selfcond", {"recluster": 0.0}, "--recluster"),
    ("dicgan", {"encoder": "constant", "info_weight": 1.0}, "--info-weight"),
    ("dicgan", {"encoder": "joint", "features": "tf_efficientnet_lite0"}, "--features"),
    ("dicgan", {"encoder": "head", "target": "resampled"}, "--target resampled"),
    ("dicgan", {"sigma": "uniform:0.5", "target": "resampled"}, "--target resampled"),
    ("fastgan_original", {"d_noise": "feature"}, "--d-noise feature"),
    ("fastgan_original", {"generator": "fastgan"}, "--generator fastgan"),
    ("fastgan_original", {"consistency": 1.0}, "--consistency"),
    ("stylegan2_ada", {"generator": "fastgan_lite"}, "--generator fastgan_lite"),
    ("stylegan2_ada", {"diffaug": "color"}, "--diffaug"),
    ("stylegan2_ada", {"objective": "wasserstein"}, "--objective wasserstein"),
]


@pytest.mark.parametrize(("cfg", "overrides", "word"), REFUSED, ids=lambda v: v if isinstance(v, str) else
                         "-".join(v))
def test_options_without_meaning_are_refused(cfg: str, overrides: dict[str, Any], word: str, tiny_set: Path) -> None:
    with pytest.raises(UserError, match=word):
        resolve(cfg, overrides, data_facts(ImageDataset(tiny_set)))


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(UserError, match="dicgan_lite"):
        resolve("gan", {}, {})
    for cfg in ("biggan", "sngan"):
        with pytest.raises(UserError, match=f"--cfg {cfg}.*not part of this version"):
            resolve(cfg, {}, {})
