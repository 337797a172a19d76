"""Every row of the preset table: bind, build tiny, two steps, save, resume, compare bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dnnlib import UserError, construct
from training.dataset import ImageDataset
from training.loader import batches
from training.presets import DEFAULTS, PRESETS, resolve
from training.run_state import RunState, load_state
from training.training_loop import Trainer, prepare_latents

CPU = torch.device("cpu")
# What makes any row small enough for a test; everything else stays as the row says.
TINY = {"ngf": 2, "z_dim": 16, "d_input": 32, "d_width": 0.125, "batch": 4, "batch_gpu": 2, "metrics": "none"}


def data_facts(dataset: ImageDataset) -> dict[str, Any]:
    """The ``data`` argument of `resolve`."""
    return {"path": str(dataset.path), "name": dataset.name, "resolution": dataset.resolution,
            "num_images": dataset.num_images, "label_dim": dataset.label_dim, "fingerprint": dataset.fingerprint}


def new_trainer(config: dict[str, Any], dataset: ImageDataset, run_dir: Path, state: dict | None = None) -> Trainer:
    """A trainer at its start, or restored from `state`."""
    run = RunState(config, CPU)
    if state is not None:
        run.load_state_dict(state)
    prepare_latents(run, dataset, fit=state is None, choose=state is None)
    return Trainer(run, dataset, run_dir, None)


def step(trainer: Trainer, dataset: ImageDataset, count: int) -> None:
    """`count` iterations, from wherever the run is."""
    options = trainer.options
    data = batches(dataset, options.batch, options.seed, trainer.run.progress["cur_nimg"], CPU, 0)
    for _ in range(count):
        trainer.iteration(next(data), int(options.batch_gpu))


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Equal to the bit, through nests of containers."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    else:
        assert a == b, where


VARIANTS = [(cfg, {}) for cfg in PRESETS] + [
    ("dicgan_demo", {"encoder": "head", "latent": (4, 1, 1)}),
    ("dicgan_demo", {"encoder": "joint", "latent": (4, 1, 1)}),
    ("dicgan_lite", {"encoder": "joint", "latent": (4, 8, 8), "info_weight": 0.5}),
    ("dicgan_demo", {"encoder": "constant", "sigma": 0.5}),
    ("dicgan_demo", {"cond": True, "sigma": 0.0}),
    ("fastgan_lite", {"cond": True, "mirror": True}),
]


@pytest.mark.parametrize(("cfg", "changes"), VARIANTS, ids=lambda v: str(v) if isinstance(v, str) else
                         "-".join(map(str, v.values())) or "plain")
def test_two_steps_save_resume(cfg: str, changes: dict[str, Any], tiny_set: Path, tmp_path: Path) -> None:
    overrides = {**TINY, **({"latent": (4, 1, 1), "sigma": 0.5} if "dicgan" in cfg else {}), **changes}
    mirror = {**DEFAULTS, **PRESETS[cfg], **changes}["mirror"]
    dataset = ImageDataset(tiny_set, use_labels=bool(changes.get("cond")), mirror=mirror)
    config = resolve(cfg, overrides, data_facts(dataset))
    whole = new_trainer(config, dataset, tmp_path)
    before = {k: v.clone() for k, v in whole.run.G.state_dict().items()}
    step(whole, dataset, 2)
    after = whole.run.G.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))
    whole.run.save(tmp_path / "snapshot.pkl")
    step(whole, dataset, 1)

    resumed = new_trainer(config, dataset, tmp_path, load_state(tmp_path / "snapshot.pkl"))
    assert resumed.run.progress["cur_nimg"] == 8
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


@pytest.mark.parametrize(("overrides", "word"), [
    ({"sigma": 0.3}, "--sigma"),
    ({"encoder": "joint"}, "--encoder"),
    ({"nonsense": 1}, "nonsense"),
    ({"cond": True}, "--cond"),
    ({"amp": "fp64"}, "--amp"),
    ({"glr": 0.0}, "--glr"),
])
def test_options_without_meaning_are_refused(overrides: dict[str, Any], word: str, tiny_set: Path) -> None:
    with pytest.raises(UserError, match=word):
        resolve("fastgan_lite", overrides, data_facts(ImageDataset(tiny_set)))


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(UserError, match="dicgan_lite"):
        resolve("biggan", {}, {})
