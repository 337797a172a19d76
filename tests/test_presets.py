"""Every row of the preset table: bind, build tiny, two steps, save, resume, compare bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import float64
from runs import CPU, assert_equal, data_facts, new_trainer, open_set, step, tiny_config

from dnnlib import UserError, construct
from torch_utils.rng import generator
from training.conditioning.base import Batch
from training.dataset import ImageDataset
from training.loader import batches, split
from training.presets import DEFAULTS, PRESETS
from training.resolve import resolve
from training.run_state import RunState, load_state
from training.sampling import load_gan, training_sampler

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


# A demo row is its method's at other sizes, and sizes are tiny here.
@pytest.mark.parametrize("cfg", [cfg for cfg in PRESETS if not cfg.endswith("_demo")])
def test_same_seed_gives_the_same_statistics_and_images(cfg: str, tiny_set: Path, tmp_path: Path) -> None:
    """Two runs from nothing: state, what stats.jsonl would say, and images of G_ema are the same to the bit."""
    found = []
    for _ in range(2):
        dataset = open_set(tiny_set, cfg)
        trainer = new_trainer(tiny_config(cfg, dataset), dataset, tmp_path)
        step(trainer, dataset, 1)
        trainer.run.save(tmp_path / "snapshot.pkl")
        sampler = training_sampler(load_gan(tmp_path / "snapshot.pkl", CPU), dataset)
        found.append({**trainer.run.state_dict(), "images": torch.cat(list(sampler.images(range(2)))),
                      "stats": trainer.run.collector.pop()})
    assert found[0]["stats"]
    assert_equal(found[1], found[0])


def test_gradients_do_not_depend_on_batch_gpu(tiny_set: Path, tmp_path: Path) -> None:
    """In float64, where norms use what they have learned instead of the images of a pass."""
    cfg = "stylegan2_demo"
    dataset, gradients = open_set(tiny_set, cfg), {}
    with float64():
        trainer = new_trainer(tiny_config(cfg, dataset, batch=4, amp="off"), dataset, tmp_path)
        run, batch = trainer.run, next(batches(dataset, 4, 0, 0, CPU, 0))
        for net, optimizer in ((run.G, run.opt_G), (run.D, run.opt_D)):
            net.double().eval()
            optimizer.param_groups[0]["lr"] = 0.0  # the same weights each time
        batch = Batch(batch.img.double(), batch.labels, batch.indices, batch.draws)
        for size, phase in itertools.product((4, 2, 1), run.loss.phases(0)):
            trainer._phase(phase, split(batch, size), generator(0, phase.name))
            net = run.G if phase.net == "G" else run.D
            gradients[phase.name, size] = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    for (name, _), gradient in gradients.items():
        assert gradient.dtype == torch.float64
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradient, gradients[name, 4], rtol=1e-9, atol=1e-9)


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
