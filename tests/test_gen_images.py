"""gen_images.py: seeds, conditions, and what it says when something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pictures, run_script
from PIL import Image
from test_presets import CPU, TINY, data_facts, new_trainer, step

from dnnlib import UserError
from training.dataset import ImageDataset
from training.presets import resolve
from training.sampling import encode_images, load_gan, open_sampler


def make_network(tiny_set: Path, path: Path, cfg: str, **changes: Any) -> Path:
    """A checkpoint of a few steps."""
    dataset = ImageDataset(tiny_set, use_labels=bool(changes.get("cond")), mirror=True)
    overrides = {**TINY, "mirror": True, **({"latent": (4, 1, 1), "sigma": 0.5} if "dicgan" in cfg else {}), **changes}
    trainer = new_trainer(resolve(cfg, overrides, data_facts(dataset)), dataset, path.parent)
    step(trainer, dataset, 6)
    trainer.run.save(path)
    return path


@pytest.fixture(scope="module")
def networks(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        "dicgan": make_network(tiny_set, folder / "dicgan.pkl", "dicgan_demo"),
        "full": make_network(tiny_set, folder / "full.pkl", "fastgan"),
        "cond": make_network(tiny_set, folder / "cond.pkl", "fastgan_demo", cond=True),
    }


def generate(*args: str | Path) -> Any:
    return run_script("gen_images.py", *args, "--device", "cpu")


def test_files_and_grid(networks: dict[str, Path], tiny_set: Path, tmp_path: Path) -> None:
    done = generate("--network", networks["dicgan"], "--ref", tiny_set, "--seeds", "0-2,10", "--outdir", tmp_path / "o",
                    "--grid", tmp_path / "grid.png")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "seed0000.png", "seed0001.png", "seed0002.png", "seed0010.png"]
    assert Image.open(tmp_path / "o" / "seed0010.png").size == (32, 32)
    assert Image.open(tmp_path / "grid.png").size == (128, 32)


@pytest.mark.parametrize("name", ["dicgan", "full"])
def test_seed_is_the_same_in_any_batch(name: str, networks: dict[str, Path], tiny_set: Path) -> None:
    gan = load_gan(networks[name], CPU)
    if name == "full":  # noise strengths start at zero; make them matter
        for key, value in gan.G.state_dict().items():
            if "noise" in key:
                value.fill_(0.5)
    sampler = open_sampler(gan, ref=tiny_set if name == "dicgan" else None)
    seeds = list(range(12))
    together = torch.cat(list(sampler.images(seeds, 12))).int()
    alone = torch.cat(list(sampler.images(seeds, 1))).int()
    assert (together - alone).abs().max() <= 1
    assert (together[0] - together[1]).abs().max() > 1


def test_reference_and_sigma_change_the_image(networks: dict[str, Path], tiny_set: Path) -> None:
    gan = load_gan(networks["dicgan"], CPU)
    dataset = ImageDataset(tiny_set, mirror=True)
    f = encode_images(gan, dataset)
    assert f.shape == (80, 4, 1, 1)
    sampler = open_sampler(gan, ref=tiny_set)
    torch.testing.assert_close(sampler.references, f[:40])
    still = open_sampler(gan, ref=tiny_set, sigma=0.0)
    assert sampler.provenance["sigma"] == 0.5
    assert not torch.equal(sampler.batch([0]), still.batch([0]))
    # Seeds 0 and 40 share the reference but not z.
    assert torch.equal(still.condition_latents([0]), still.condition_latents([40]))
    assert not torch.equal(still.batch([0]), still.batch([40]))


def test_single_picture_folder_and_class(networks: dict[str, Path], tmp_path: Path) -> None:
    make_pictures(tmp_path / "refs", 2, 50)
    for ref in (tmp_path / "refs", tmp_path / "refs" / "picture000.png"):
        done = generate("--network", networks["dicgan"], "--ref", ref, "--seeds", "0", "--outdir", tmp_path / "o")
        assert done.returncode == 0, done.stderr
    images = []
    for label in ("0", "1"):
        done = generate("--network", networks["cond"], "--class", label, "--seeds", "0", "--outdir", tmp_path / label)
        assert done.returncode == 0, done.stderr
        images.append(np.array(Image.open(tmp_path / label / "seed0000.png")))
    assert not np.array_equal(*images)


@pytest.mark.parametrize(("name", "args", "words"), [
    ("dicgan", [], ["--ldm", "--ref"]),
    ("dicgan", ["--ref", "nowhere"], ["nowhere"]),
    ("dicgan", ["--ref", "SET", "--sigma", "1"], ["--sigma 1"]),
    ("dicgan", ["--ref", "SET", "--class", "1"], ["--class 1"]),
    ("dicgan", ["--ref", "SET", "--ldm-steps", "5"], ["--ldm-steps"]),
    ("dicgan", ["--ref", "SET", "--trunc", "0.7"], ["--trunc"]),
    ("dicgan", ["--ref", "SET", "--noise-mode", "const"], ["--noise-mode const"]),
    ("dicgan", ["--ref", "SET", "--rotate", "5"], ["--rotate"]),
    ("dicgan", ["--ldm", "SELF"], ["latent"]),
    ("full", ["--ref", "SET"], ["--ref"]),
    ("full", ["--sigma", "0.5"], ["--sigma"]),
    ("cond", [], ["--class 0 .. 1"]),
    ("cond", ["--class", "2"], ["--class 2"]),
])
def test_bad_input_is_one_line(name: str, args: list[str], words: list[str], networks: dict[str, Path],
                               tiny_set: Path, tmp_path: Path) -> None:
    args = [str(tiny_set) if a == "SET" else str(networks[name]) if a == "SELF" else a for a in args]
    done = generate("--network", networks[name], "--seeds", "0", "--outdir", tmp_path / "o", *args)
    assert done.returncode == 2, done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert not list((tmp_path / "o").glob("*.png"))


def test_damaged_configuration(networks: dict[str, Path], tmp_path: Path) -> None:
    from torch_utils import checkpoint

    state = checkpoint.load(networks["full"], "gan")
    state["config"]["G"]["ngf"] = 3
    checkpoint.save(tmp_path / "odd.pkl", "gan", state)
    with pytest.raises(UserError, match=r"odd\.pkl is damaged"):
        load_gan(tmp_path / "odd.pkl", CPU)
