"""gen_images.py --vary: only what a study names changes along a row; and what a noise scale does to clusters."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import make_pictures, run_script
from PIL import Image
from runs import CPU
from test_gen_images import make_network as plain_network

import gen_images
from pg_modules.layers import normalize_second_moment
from pg_modules.whitening import rms_normalize
from torch_utils.rng import sample_normal
from training import sigma_study
from training.clusters_at_sigma import cluster_overlap, spread
from training.control_images import draw_cells
from training.controls import Cell, make_study, slerp
from training.dataset import ImageDataset
from training.diffused_instance import posterior_perplexity
from training.labelled_grid import GAP, GridRow, labelled_grid
from training.loader import to_uint8
from training.sampling import Gan, Sampler, load_gan
from training.sources import read_references

make_network = functools.partial(plain_network, modulated=True)  # or z would not act there


@pytest.fixture(scope="module")
def networks(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        "dicgan": make_network(tiny_set, folder / "dicgan.pkl", "dicgan_demo", sigma="auto:5"),
        "map": make_network(tiny_set, folder / "map.pkl", "dicgan_demo", encoder="joint", latent=(3, 4, 4)),
        "style": make_network(tiny_set, folder / "style.pkl", "dicgan_demo", generator="stylegan2"),
        "disp": make_network(tiny_set, folder / "disp.pkl", "disp_demo", generator="stylegan2"),
        "icgan": make_network(tiny_set, folder / "icgan.pkl", "icgan_demo"),
        "cond": make_network(tiny_set, folder / "cond.pkl", "dicgan_demo", cond=True),
        "full": make_network(tiny_set, folder / "full.pkl", "fastgan_demo"),
    }


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("refs"), 3, 40)


def reference_sampler(path: Path, refs: Path, **options: Any) -> Sampler:
    """The `Sampler` of a network with the latents of `refs`; FastGAN's noise is random, StyleGAN2's stored."""
    gan = load_gan(path, CPU)
    pictures = read_references(refs, gan.img_shape)
    with torch.no_grad():
        f = gan.G.encoder(pictures / 127.5 - 1)
    return Sampler(gan, references=f, noise_mode="const" if gan.G.has_mapping else "random", **options)


def drawn(sampler: Sampler, cells: list[Cell], batch_size: int = 32) -> torch.Tensor:
    """The images of cells, in their order."""
    images = torch.empty(len(cells), *sampler.gan.img_shape, dtype=torch.uint8)
    for places, part in draw_cells(sampler, cells, batch_size):
        images[places] = part
    return images


@torch.no_grad()
def by_hand(gan: Gan, f: list[torch.Tensor], z_seed: int, eps_seed: int, sigma: float = 0.0) -> torch.Tensor:
    """The image whose block k is told latent f[k], from the equations: no sampler, no hooks."""
    G = gan.G
    z = torch.from_numpy(np.random.RandomState(z_seed).randn(1, G.z_dim)).float()
    eps = sample_normal([eps_seed], f[0].shape, "eps")
    h_hats: list[Any] = [None] * len(f)
    cs: list[Any] = [one[None].flatten(1) for one in f]
    if gan.diffused is not None:
        h_hats = [G.modulation((1 - sigma**2) ** 0.5 * one[None] + sigma * eps, z, sigma) for one in f]
        cs = [None] * len(f)
    x = img = None
    if G.has_mapping:
        for k, block in enumerate(G.blocks.values()):
            x, img = block(x, img, [G.mapping(z, cs[k])] * 3, h_hats[k], "const")
        return to_uint8(img)[0]
    x = G.init(normalize_second_moment(z))
    gates = {4: x}
    for k, (name, block) in enumerate(G.blocks.items()):
        x = block(x, None if cs[k] is None else G.embed(cs[k]), h_hats[k], None)  # lite: without noise
        assert name not in G.skips
        gates[int(name)] = x
    return to_uint8(G.to_rgb(x))[0]


def assert_near(a: torch.Tensor, b: torch.Tensor) -> None:
    # Images of untrained networks reach far beyond [-1, 1], where rounding may flip a value from black to white.
    assert unlike(a, b) < 0.01


def unlike(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of values that are more than 1 apart."""
    return ((a.int() - b.int()).abs() > 1).float().mean().item()


def differ(images: torch.Tensor) -> bool:
    """Whether every image differs from the one before it, by more than rounding could do."""
    return all(unlike(a, b) > 0.02 for a, b in zip(images[1:], images[:-1], strict=True))


# What changes along a row.


@pytest.mark.parametrize("name", ["dicgan", "map", "style"])
@pytest.mark.parametrize("vary", ["z", "h", "sigma"])
def test_one_thing_changes(vary: str, name: str, networks: dict[str, Path], refs: Path) -> None:
    sampler = reference_sampler(networks[name], refs, sigma=0.6)
    f = sampler.references
    study = make_study(vary, sampler, [4, 7], steps=3, sigma_max=0.8)
    images = drawn(sampler, study.cells).unflatten(0, (len(study.rows), -1))
    if vary == "sigma":
        assert study.columns == ["sigma 0.00", "sigma 0.40", "sigma 0.80"]
        wanted = [[(r, z, 4, sigma) for sigma in (0.0, 0.4, 0.8)] for r in range(3) for z in (4, 7)]
    else:
        seeds = [(4, 4), (7, 4)] if vary == "z" else [(4, 4), (4, 7)]
        wanted = [[(r, *pair, 0.6) for pair in seeds] for r in range(3)]
    for row, cells in zip(images, wanted, strict=True):
        assert differ(row)
        for image, (r, z, eps, sigma) in zip(row, cells, strict=True):
            assert_near(image, by_hand(sampler.gan, [f[r]] * len(sampler.gan.G.blocks), z, eps, sigma))
    assert [row.first for row in study.rows] == [cells[0][0] for cells in wanted]


@pytest.mark.parametrize("name", ["dicgan", "map", "style", "disp", "icgan"])
def test_blocks_hear_one_reference_or_the_other(name: str, networks: dict[str, Path], refs: Path) -> None:
    sampler = reference_sampler(networks[name], refs)
    study = make_study("blocks", sampler, [5])
    images = drawn(sampler, study.cells).unflatten(0, (2, -1))
    G, f, count = sampler.gan.G, sampler.references, len(sampler.gan.G.blocks)
    assert len(study.columns) == count + 1
    for r in range(2):
        row = [by_hand(sampler.gan, [f[r]] * own + [f[r + 1]] * (count - own), 5, 5, sampler.sigma or 0.0)
               for own in range(count, -1, -1)]
        assert_near(images[r], torch.stack(row))
        assert differ(torch.stack(row))
    assert not any(block._forward_pre_hooks for block in G.blocks.values())
    assert_near(images, drawn(sampler, study.cells, 3).unflatten(0, (2, -1)))  # rows of a batch switch apart
    # The last column is the next reference, as it is drawn by itself.
    assert_near(images[0, -1], drawn(sampler, make_study("path", sampler, [5], steps=2).cells)[1])


def test_path_is_an_arc_in_equal_steps(networks: dict[str, Path], refs: Path) -> None:
    for name in ("dicgan", "map", "icgan"):
        sampler = reference_sampler(networks[name], refs)
        study = make_study("path", sampler, [1, 2], steps=5)
        assert [(row.first, row.last) for row in study.rows] == [(0, 1), (0, 1), (1, 2), (1, 2)]
        for row in study.rows:
            assert row.last is not None
            f = torch.stack([cell.f for cell in row.cells])
            torch.testing.assert_close(f[[0, -1]], sampler.references[[row.first, row.last]])
            torch.testing.assert_close(f, sampler.gan.G.encoder.normalize(f))
            rows = torch.nn.functional.normalize(f.flatten(1).double(), dim=1)
            angles = (rows[1:] * rows[:-1]).sum(1).acos()
            torch.testing.assert_close(angles, angles.mean().expand(4), rtol=1e-3, atol=1e-5)
            assert {(cell.z, cell.eps) for cell in row.cells} == {(row.cells[0].z, row.cells[0].z)}
    same = sampler.references[0]
    torch.testing.assert_close(slerp(same, same.clone(), 0.3), same)


def test_channels_and_space(networks: dict[str, Path], refs: Path) -> None:
    sampler = reference_sampler(networks["map"], refs)
    a, b, _ = sampler.references
    row = make_study("channels", sampler, [0]).rows[0]
    assert [cell.name[-8:] for cell in row.cells] == [f"s-{k}-of-3" for k in range(4)]
    mixed = a.clone()
    mixed[:2] = b[:2]
    torch.testing.assert_close(row.cells[2].f, rms_normalize(mixed[None])[0])
    row = make_study("space", sampler, [0], steps=3).rows[0]
    mixed = a.clone()
    mixed[:, :, :2] = b[:, :, :2]
    torch.testing.assert_close(row.cells[1].f, rms_normalize(mixed[None])[0])
    torch.testing.assert_close(row.cells[2].f, b)
    assert differ(drawn(sampler, row.cells))
    wide = make_study("channels", reference_sampler(networks["icgan"], refs), [0])
    assert wide.columns == [f"B {k}/1280" for k in (0, 213, 427, 640, 853, 1067, 1280)]


def test_classes_are_those_of_the_references(networks: dict[str, Path], refs: Path) -> None:
    sampler = reference_sampler(networks["cond"], refs, labels=[0, 1, 1])
    study = make_study("z", sampler, [3])
    images = drawn(sampler, study.cells)
    asked = reference_sampler(networks["cond"], refs, class_idx=1)
    assert differ(torch.stack([images[0], drawn(asked, study.cells)[0]]))
    assert_near(images[1:], drawn(asked, study.cells)[1:])


# Files.


def generate(*args: str | Path) -> Result:
    """gen_images.py in this process."""
    return CliRunner().invoke(gen_images.main, [*map(str, args), "--device", "cpu"])


def read(path: Path) -> torch.Tensor:
    """A picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_pictures_and_nearest_images(networks: dict[str, Path], tiny_set: Path, refs: Path, tmp_path: Path) -> None:
    asked = ["--network", networks["dicgan"], "--ref", refs, "--seeds", "0,5"]
    for folder in ("a", "b"):
        done = generate(*asked, "--vary", "z", "--nearest", "--data", tiny_set, "--outdir", tmp_path / folder)
        assert done.exit_code == 0, done.output
    singles = [f"ref{r:03d}_z{z:04d}_eps0000.png" for r in range(3) for z in (0, 5)]
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted([*singles, "vary-z.png", "vary-z.json"])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    record = json.loads((tmp_path / "a" / "vary-z.json").read_text())
    assert list(record["nearest"]) == singles
    dataset = ImageDataset(tiny_set)
    picture = read(tmp_path / "a" / "vary-z.png")
    # From the right: two columns of 32 px shown at 64; below each sample is its training image.
    for place, (name, found) in enumerate(record["nearest"].items()):
        assert found["file"] == dataset.names[found["index"]]
        assert -1 <= found["cosine"] <= 1
        top = picture.shape[1] - (3 - place // 2) * (128 + GAP)
        left = picture.shape[2] - (2 - place % 2) * (64 + GAP)
        cell = picture[:, top:top + 128:2, left:left + 64:2]
        assert torch.equal(cell[:, :32], read(tmp_path / "a" / name))
        assert torch.equal(cell[:, 32:], dataset[found["index"]][0])
    done = generate(*asked, "--vary", "blocks", "--outdir", tmp_path / "c", "--grid", tmp_path / "own.png")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "c").iterdir())) == 2 * 2 * 4
    assert (tmp_path / "c" / "ref001-002_seed0005_B-from-0016.png").is_file()
    assert (tmp_path / "own.png").is_file()


def test_labels_never_cover_each_other() -> None:
    """Columns are as wide as their headings, and grey images become colour ones."""
    image = torch.full((1, 32, 64), 7, dtype=torch.uint8)
    narrow, wide = (labelled_grid([text, text], [GridRow(["row"], [image, image])]) for text in ("z 1", "z" + "1" * 40))
    assert wide.width > narrow.width + 200
    assert narrow.getpixel((narrow.width - 10, narrow.height - 10)) == (7, 7, 7)


# Bad input.


@pytest.mark.parametrize(("name", "args", "words"), [
    ("dicgan", ["--steps", "3"], ["--steps", "--vary"]),
    ("dicgan", ["--sigma-max", "0.5", "--nearest"], ["--sigma-max, --nearest", "--vary"]),
    ("dicgan", ["--vary", "sigma", "--sigma", "0.3"], ["--sigma 0.3", "--sigma-max"]),
    ("dicgan", ["--vary", "sigma", "--sigma-max", "1"], ["--sigma-max 1", "below 1"]),
    ("dicgan", ["--vary", "path", "--sigma-max", "0.5"], ["--sigma-max", "--vary path"]),
    ("dicgan", ["--vary", "h", "--sigma", "0"], ["--vary h", "σ = 0"]),
    ("dicgan", ["--vary", "z", "--steps", "3"], ["--steps 3", "per seed"]),
    ("dicgan", ["--vary", "blocks", "--steps", "3"], ["--steps 3", "per block"]),
    ("dicgan", ["--vary", "z", "--ref-grid", "g.png"], ["--ref-grid", "--vary"]),
    ("dicgan", ["--vary", "z", "--data", "SET"], ["--data", "--nearest"]),
    ("dicgan", ["--vary", "z", "--nearest", "--data", "REFS"], ["convert"]),
    ("dicgan", ["--vary", "channels", "--steps", "6"], ["--steps 6", "4 channels", "5 steps"]),
    ("dicgan", ["--vary", "space"], ["--vary space", "4x1x1", "--latent"]),
    ("dicgan", ["--vary", "path", "--ref", "ONE"], ["--vary path", "one image only"]),
    ("map", ["--vary", "space", "--steps", "6"], ["4 columns"]),
    ("icgan", ["--vary", "sigma"], ["--vary sigma", "no noise scale"]),
    ("disp", ["--vary", "h"], ["--vary h", "one image is one h"]),
    ("cond", ["--vary", "path", "--ref", "SET"], ["--vary path", "--class 0 .. 1"]),
    ("full", ["--vary", "z"], ["leave out --ref"]),
])
def test_bad_input_is_one_line(name: str, args: list[str], words: list[str], networks: dict[str, Path],
                               tiny_set: Path, refs: Path, tmp_path: Path) -> None:
    places = {"SET": tiny_set, "ONE": refs / "picture000.png", "REFS": refs}
    done = generate("--network", networks[name], "--ref", refs, "--seeds", "0", "--outdir", tmp_path / "o",
                    *(places.get(a, a) for a in args))
    assert done.exit_code == 2, (done.output, done.exception)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert all(word in line for word in words), line
    assert not list(tmp_path.glob("o/*"))


def test_vary_needs_references(networks: dict[str, Path], tmp_path: Path) -> None:
    done = generate("--network", networks["dicgan"], "--prior", "train", "--vary", "z", "--seeds", "0", "--outdir",
                    tmp_path / "o")
    assert done.exit_code == 2
    assert "--vary z shows what can be controlled about references" in done.stderr


# The noise scale.


def test_overlap_of_known_clusters() -> None:
    f = rms_normalize(torch.randn(60, 16, 1, 1, generator=torch.Generator().manual_seed(1)))
    for sigma in (0.3, 0.6, 0.9):
        expected = posterior_perplexity(f, sigma, torch.Generator().manual_seed(3))
        overlap = cluster_overlap(f, sigma, 3)
        assert overlap.perplexity == pytest.approx(expected, rel=1e-5)
        assert 1 / overlap.perplexity <= overlap.top <= 1
    assert cluster_overlap(f, 0.0, 3).one_image == 1
    assert cluster_overlap(f, 0.0, 3).perplexity == pytest.approx(1)
    assert cluster_overlap(f, 0.95, 3).one_image == 0
    # Images in pairs of one f share their clusters at any σ, however small; one f for all says nothing.
    pairs = cluster_overlap(f[:20].repeat(2, 1, 1, 1), 0.0, 3)
    assert (pairs.perplexity, pairs.top, pairs.one_image) == (pytest.approx(2), pytest.approx(0.5), 0)
    assert cluster_overlap(f[:1].repeat(30, 1, 1, 1), 0.2, 3).perplexity == pytest.approx(30)
    # Half of the images apart, half in pairs.
    assert cluster_overlap(torch.cat([f[:20], f[20:30], f[20:30]]), 0.0, 3).one_image == 0.5


def test_spread_tells_z_from_eps() -> None:
    """A square: z goes 3 along x, ε 4 along y."""
    features = torch.tensor([[[[0.0, 0], [0, 4]], [[3, 0], [3, 4]]]]).repeat(2, 1, 1, 1)
    features[1] += 100
    assert spread(features) == (pytest.approx(5), pytest.approx(3), pytest.approx(4))


def sigma_command(*args: str | Path) -> Result:
    """``python -m training.sigma_study`` in this process."""
    return CliRunner().invoke(sigma_study.main, [*map(str, args), "--device", "cpu"])


def test_sigma_study(networks: dict[str, Path], tmp_path: Path) -> None:
    done = sigma_command("--network", networks["dicgan"], "--outdir", tmp_path, "--images", "1")
    assert done.exit_code == 0, (done.output, done.exception)
    gan = load_gan(networks["dicgan"], CPU)
    assert gan.diffused is not None
    # The very σ that auto:5 found before training, on the same images with the same noise.
    assert f"Recommended: --sigma {gan.diffused.sigma:g}, " in done.output
    assert f"Trained at σ {gan.diffused.sigma:g}: 5.0 images share a cluster" in done.output
    with open(tmp_path / "sigma.csv", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["sigma"] for row in rows] == pytest.approx([0.05 * k for k in range(20)])
    assert (rows[0]["perplexity"], rows[0]["one_image"]) == (1, 1)
    perplexities = [row["perplexity"] for row in rows]
    assert perplexities == sorted(perplexities)
    assert perplexities[-1] > 20
    # At σ = 0 there is no ε to differ in.
    assert rows[0]["diversity_eps"] == 0
    assert rows[0]["diversity_z"] == pytest.approx(rows[0]["diversity"], rel=1e-4)
    assert rows[-1]["diversity_eps"] > 0
    with Image.open(tmp_path / "sigma.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_sigma_study_without_a_judge_or_a_sigma(tiny_set: Path, tmp_path: Path) -> None:
    """Lite2 doesn't judge a network that looks through it; an f that says nothing has no σ to recommend."""
    network = make_network(tiny_set, tmp_path / "net.pkl", "dicgan_demo", encoder="constant",
                           backbone="tf_efficientnet_lite2")
    done = sigma_command("--network", network, "--outdir", tmp_path / "o")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "stay empty: this network was trained on tf_efficientnet_lite2" in done.output
    assert "No σ makes 5 of these 40 images share a cluster" in done.output
    lines = (tmp_path / "o" / "sigma.csv").read_text().splitlines()
    assert lines[1] == "0,40,0.025,0,,,"
    assert (tmp_path / "o" / "sigma.png").is_file()


def test_sigma_study_refuses(networks: dict[str, Path], tiny_set: Path, tmp_path: Path) -> None:
    for args, words in ((["--network", networks["icgan"]], "is no DIC-GAN"),
                        (["--network", networks["dicgan"], "--images", "41"], "--images 41: the training set has 40"),
                        (["--network", networks["dicgan"], "--data", make_pictures(tmp_path / "set32", 4, 32)],
                         "is not what")):
        done = sigma_command(*args, "--outdir", tmp_path / "o")
        assert done.exit_code == 2, (done.output, done.exception)
        assert words in done.stderr
    assert not (tmp_path / "o").exists()


def test_help_of_the_study_needs_no_heavy_imports() -> None:
    done = run_script("-c", "import sys, training.sigma_study, training.control_options\n"
                            "print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr
