"""The whole thread through the command lines: data, GAN, latent DDIM, samples, metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from PIL import Image


@pytest.fixture(scope="module")
def thread(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short GAN run with metrics, and a short latent run on its snapshot."""
    folder = tmp_path_factory.mktemp("thread")
    done = run_script("train.py", "--outdir", folder / "runs", "--data", tiny_set, "--cfg", "dicgan_demo", "--sigma",
                      "auto:3", "--latent", "4", "--batch", "4", "--ngf", "2", "--kimg", "0.04", "--tick", "0.02",
                      "--snap", "1", "--metrics", "fid16_full", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    network = max(run.glob("network-snapshot-*.pkl"))
    done = run_script("ldm/train.py", "--network", network, "--outdir", folder / "ldm", "--kimg", "5",
                      "--device", "cpu")
    assert done.returncode == 0, done.stderr
    (ldm,) = (folder / "ldm").iterdir()
    return {"folder": folder, "run": run, "network": network, "ldm": ldm / "best_model.pkl"}


def test_metrics_during_training_and_best_snapshot(thread: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (thread["run"] / "metric-fid16_full.jsonl").read_text().splitlines()]
    assert lines
    assert lines[0]["detector"]["name"] == "efficientnet_lite2"
    assert (thread["run"] / "best_model.pkl").exists()
    best = min(lines, key=lambda line: line["results"]["fid16_full"])
    assert int((thread["run"] / "best_nimg.txt").read_text()) == best["cur_nimg"]


def test_latents_and_their_file_give_the_same_images(thread: dict[str, Path]) -> None:
    folder = thread["folder"]
    done = run_script("ldm/sample.py", "--network", thread["ldm"], "--seeds", "0-3", "--steps", "10", "--out",
                      folder / "latents.pkl", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for name, extra in (("model", ["--ldm", thread["ldm"], "--ldm-steps", "10"]),
                        ("file", ["--ldm", folder / "latents.pkl"])):
        done = run_script("gen_images.py", "--network", thread["network"], "--seeds", "0-3", "--outdir", folder / name,
                          "--device", "cpu", *extra)
        assert done.returncode == 0, done.stderr
    for seed in range(4):
        a, b = (np.array(Image.open(folder / name / f"seed{seed:04d}.png")).astype(int) for name in ("model", "file"))
        assert np.abs(a - b).max() <= 1


def test_calc_metrics_with_ldm_as_written(thread: dict[str, Path], tiny_set: Path) -> None:
    done = run_script("calc_metrics.py", "--metrics", "fid24_full,kid24", "--network", thread["network"], "--ldm",
                      thread["ldm"], "--ldm-steps", "5", "--outdir", thread["folder"] / "m", "--device", "cpu",
                      "--no-cache")
    assert done.returncode == 0, done.stderr
    record = json.loads((thread["folder"] / "m" / "metric-kid24.jsonl").read_text())
    assert record["conditions"]["mode"] == "ldm"
    assert len(record["conditions"]["ldm_sha256"]) == 64
    assert record["num_fake"] == 24
    assert any("not comparable" in note for note in record["notes"])
    assert record["copying"]["ratio"] > 0


def test_calc_metrics_without_a_source_explains_both(thread: dict[str, Path]) -> None:
    done = run_script("calc_metrics.py", "--metrics", "fid24_full", "--network", thread["network"], "--device", "cpu")
    assert done.returncode == 2
    assert "--ldm" in done.stderr
    assert "--ref" in done.stderr


def test_latent_model_of_another_gan_is_refused(thread: dict[str, Path], tiny_set: Path, tmp_path: Path) -> None:
    done = run_script("train.py", "--outdir", tmp_path, "--data", tiny_set, "--cfg", "dicgan_demo", "--sigma", "0.5",
                      "--latent", "4", "--batch", "4", "--ngf", "2", "--kimg", "0.004", "--seed", "1",
                      "--device", "cpu")
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.iterdir()
    done = run_script("gen_images.py", "--network", next(run.glob("network-snapshot-*.pkl")), "--ldm", thread["ldm"],
                      "--seeds", "0", "--outdir", tmp_path / "o", "--device", "cpu")
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert str(thread["ldm"]) in message
    assert not list((tmp_path / "o").glob("*.png"))
