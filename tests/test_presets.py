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
from training.run_state import RunState, load_state

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


def test_a_generator_brings_along_what_belongs_to_it(tiny_set: Path) -> None:
    """Any method with another generator trains that as its own preset does."""
    data = data_facts(ImageDataset(tiny_set))
    for suffix in ("", "_demo"):
        own = resolve(f"stylegan2{suffix}", {}, data)
        for cfg in ("icgan", "dicgan"):
            other = resolve(f"{cfg}{suffix}", {"generator": "stylegan2", "latent": (4, 1, 1)} if cfg == "dicgan" else
                            {"generator": "stylegan2"}, data)
            assert other["optim"] == own["optim"]
            assert other["D"]["separable"] is True
            for key in ("class_name", "z_dim", "w_dim", "channel_base", "channel_max"):
                assert other["G"][key] == own["G"][key]
        back = resolve(f"stylegan2{suffix}", {"generator": "fastgan_lite"}, data)
        assert back["optim"] == resolve(f"fastgan{suffix}", {}, data)["optim"]
        assert resolve(f"icgan{suffix}", {"generator": "stylegan2", "glr": 1e-5}, data)["optim"]["glr"] == 1e-5


def test_an_unconditional_network_can_get_a_condition(tiny_set: Path, tmp_path: Path) -> None:
    """Fine-tuning (DISP): all weights that don't depend on the condition are taken, the frozen blocks stay."""
    dataset = open_set(tiny_set, "disp_demo")
    source = new_trainer(tiny_config("fastgan_demo", dataset), dataset, tmp_path)
    step(source, dataset, 1)
    source.run.save(tmp_path / "source.pkl")
    state = load_state(tmp_path / "source.pkl")
    tuned = RunState(tiny_config("disp_demo", dataset, freeze_d=1), torch.device("cpu"))
    fresh = {key: value.clone() for key, value in tuned.G.state_dict().items()}
    tuned.init_from("source.pkl", state)
    G = tuned.G.state_dict()
    for key in ("init.conv.weight", "blocks.16.conv1.weight", "to_rgb.weight"):
        assert torch.equal(G[key], state["G_ema"][key])
    assert torch.equal(G["embed.embeds.instance.weight"], fresh["embed.embeds.instance.weight"])
    assert torch.equal(tuned.D.state_dict()["heads.0.down.0.0.weight"], state["D"]["heads.0.down.0.0.weight"])
    assert not tuned.D.heads[0].down[0][0].weight.requires_grad
    assert tuned.D.heads[0].cls.weight.requires_grad
    other = RunState(tiny_config("disp_demo", dataset, ngf=4), torch.device("cpu"))
    with pytest.raises(UserError, match="--init-from"):
        other.check_init("source.pkl", state)


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
    ("fastgan_lite", {"consistency": float("nan")}, "--consistency"),
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
