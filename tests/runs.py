"""What tests of training share: tiny configurations, trainers without a command line, comparison to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from training.dataset import ImageDataset
from training.loader import batches
from training.preparation import prepare
from training.presets import preset
from training.resolve import resolve
from training.run_state import RunState
from training.training_loop import Trainer

CPU = torch.device("cpu")
# What makes any row small enough for a test; everything else stays as the row says.
TINY = {"z_dim": 16, "d_input": 32, "d_width": 0.125, "f_input": 32, "ndf": 4, "w_dim": 16, "batch": 4, "batch_gpu": 2,
        "metrics": "none"}


def data_facts(dataset: ImageDataset) -> dict[str, Any]:
    """The ``data`` argument of `resolve`."""
    return {"path": str(dataset.path), "name": dataset.name, "resolution": dataset.resolution,
            "aspect": list(dataset.aspect), "channels": dataset.channels, "num_images": dataset.num_images,
            "label_dim": dataset.label_dim, "fingerprint": dataset.fingerprint}


def tiny(cfg: str, **changes: Any) -> dict[str, Any]:
    """Overrides that make the row `cfg` tiny, with `changes` on top."""
    row = {**preset(cfg), **changes}
    small: dict[str, Any] = {"cbase": 256, "cmax": 8} if row["generator"] == "stylegan2" else {"ngf": 2}
    if row["conditioning"] == "dicgan":
        small |= {"latent": (4, 1, 1), "sigma": 0.5}
    if row["conditioning"] in ("cluster", "selfcond"):
        small["clusters"] = 3
    if row["conditioning"] == "selfcond":
        small["recluster"] = 0.008  # after two steps
    return {**TINY, **small, **changes}


def open_set(path: Path, cfg: str, **changes: Any) -> ImageDataset:
    """The data set as a run of `cfg` opens it."""
    row = {**preset(cfg), **changes}
    return ImageDataset(path, use_labels=row["cond"], mirror=row["mirror"], cache=row["cache_images"])


def tiny_config(cfg: str, dataset: ImageDataset, **changes: Any) -> dict[str, Any]:
    """The resolved tiny configuration of a preset."""
    return resolve(cfg, tiny(cfg, **changes), data_facts(dataset))


def new_trainer(config: dict[str, Any], dataset: ImageDataset, run_dir: Path, state: dict | None = None,
                device: torch.device = CPU) -> Trainer:
    """A trainer at its start, or restored from `state`."""
    run = RunState(config, device)
    if state is not None:
        run.load_state_dict(state)
    prepare(run, dataset, run_dir, fit=state is None, resumed=state is not None)
    return Trainer(run, dataset, run_dir, None)


def step(trainer: Trainer, dataset: ImageDataset, count: int) -> None:
    """`count` iterations, from wherever the run is."""
    options, run = trainer.options, trainer.run
    data = batches(dataset, options.batch, options.seed, run.progress["cur_nimg"], run.device, 0, run.conditioning.pair)
    for _ in range(count):
        trainer.iteration(next(data), int(options.batch_gpu))


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Equal to the bit, through nests of containers; wall-clock seconds aside."""
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
