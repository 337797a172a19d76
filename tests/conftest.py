"""Shared fixtures: small data sets made with numpy, and scripts run in their own process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# One thread per test process: the suite runs two of them on two cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Networks that a test builds without a seed of their own are the same in every run."""
    torch.manual_seed(0)


def run_script(*args: str | Path, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs ``python args...`` from `cwd` with one thread; returns the finished process with its output."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=environment, capture_output=True,
                          text=True, timeout=timeout, check=False)


@pytest.fixture
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_script` as a fixture."""
    return run_script


def make_pictures(folder: Path, count: int, side: int, classes: int = 0) -> Path:
    """A folder of `count` smooth colourful PNGs, in `classes` subfolders if any."""
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        target = folder / f"class{i % classes}" if classes else folder
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(target / f"picture{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted 32 px data set of 40 images in two classes, as a zip."""
    folder = tmp_path_factory.mktemp("tiny")
    make_pictures(folder / "raw", 40, 32, classes=2)
    done = run_script(ROOT / "dataset_tool.py", "--source", folder / "raw", "--dest", folder / "tiny.zip",
                      "--resolution", "32", "--labels", "folders")
    assert done.returncode == 0, done.stderr
    return folder / "tiny.zip"
