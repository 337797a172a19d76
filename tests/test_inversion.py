"""Inversion: spaces and where they start, what optimisation promises, distances, and the command from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import make_pictures
from PIL import Image
from runs import CPU
from test_calc_metrics import quick_detector  # noqa: F401
from test_gen_images import make_network, the_error

import calc_metrics
import gen_images
from metrics.image_sets import fixed_subset
from pg_modules.perceptual import GUIDE, JUDGE
from torch_utils import checkpoint
from training import inversion_metric
from training.inversion import Inversion, choose_seeds
from training.inversion import invert as optimise
from training.inversion_command import invert, read_targets
from training.inversion_losses import mean_squared, open_judge, open_loss
from training.inversion_spaces import InversionSpace, Variables, fitting_spaces, open_space, richest_space
from training.loader import to_float, to_uint8
from training.sampling import Gan, Sampler, load_gan
from training.sources import read_references

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dicgan": ("dicgan_demo", {}),
    "disp": ("disp_demo", {}),
    "disp_stylegan2": ("disp_demo", {"generator": "stylegan2"}),
    "dicgan_stylegan2": ("dicgan_demo", {"generator": "stylegan2"}),
    "icgan": ("icgan_demo", {"cond": True, "neighbors": 3}),
    "fastgan": ("fastgan_demo", {}),
    "stylegan2": ("stylegan2_demo", {}),
}
CLASS = {"icgan": 1}
SPACES = [(name, space) for name in KINDS for space in (
    ["z"] if name == "fastgan" else ["w", "w+", "s", "z"] if name == "stylegan2" else ["h", "hz", "blocks"])]


@torch.no_grad()
def calm(path: Path, pictures: torch.Tensor) -> None:
    """Gives the untrained network at `path` the statistics and spectral norms of some passes, and images in [-1, 1]."""
    gan = load_gan(path, CPU)
    G, labels = gan.G, torch.zeros(len(pictures), dtype=torch.int64) if gan.conditioning.classes else None
    f = G.encoder(to_float(pictures)) if gan.uses_latents else None
    G.train()
    if G.has_mapping:
        for block in G.blocks.values():
            block.to_rgb.weight.mul_(0.1)
    else:
        G.to_rgb.bias.zero_()
    for _ in range(12):
        told = gan.conditioning.told(f, labels, None, None if f is None else torch.randn(f.shape))
        G(torch.randn(len(pictures), G.z_dim), c=told.c, h=told.h, sigma=told.sigma)
    state = checkpoint.load(path, "gan")
    checkpoint.save(path, "gan", {**state, "G_ema": G.state_dict()})


@pytest.fixture(scope="module")
def networks(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks")
    paths = {name: make_network(tiny_set, folder / f"{name}.pkl", cfg, **changes)
             for name, (cfg, changes) in KINDS.items()}
    for path in paths.values():
        calm(path, read_references(tiny_set, (3, 32, 32))[:16])
    return paths


@pytest.fixture(scope="module")
def gans(networks: dict[str, Path]) -> dict[str, Gan]:
    return {name: load_gan(path, CPU) for name, path in networks.items()}


@pytest.fixture(scope="module")
def pictures(tiny_set: Path) -> torch.Tensor:
    return read_references(tiny_set, (3, 32, 32))[:3]


def opened(gans: dict[str, Gan], name: str, space: str, **flags: Any) -> InversionSpace:
    return open_space(gans[name], space, class_idx=CLASS.get(name), **flags)


def run(space: InversionSpace, pictures: torch.Tensor, steps: int = 4, draws: int = 1, **settings: Any) -> Inversion:
    candidates = [[k * draws + d for d in range(draws)] for k in range(len(pictures))]
    return optimise(space, pictures, candidates, mean_squared, steps=steps, **settings)


# Spaces.


def test_what_fits(gans: dict[str, Gan]) -> None:
    for name, space in SPACES:
        assert space in fitting_spaces(gans[name])
    assert [richest_space(gans[name]) for name in ("disp", "disp_stylegan2", "stylegan2", "fastgan")] == [
        "blocks", "blocks", "w+", "z"]


@pytest.mark.parametrize("name", ["dicgan", "disp", "disp_stylegan2", "dicgan_stylegan2", "icgan"])
def test_all_start_from_what_the_encoder_says(name: str, gans: dict[str, Gan], pictures: torch.Tensor) -> None:
    """Equal conditions in all blocks are the shared condition, which is that of ``gen_images.py --ref``."""
    gan, seeds = gans[name], [5, 6, 7]
    references = gan.G.encoder(to_float(pictures))
    sampler = Sampler(gan, references=references, class_idx=CLASS.get(name),
                      noise_mode="const" if gan.G.has_mapping else "random")
    shown = torch.cat([sampler.draw(f[None], sampler._labels([seed]), [seed], [seed])
                       for f, seed in zip(references, seeds, strict=True)])
    for space in ("feed-forward", "h", "hz", "blocks"):
        opening = opened(gans, name, space)
        start = opening.start(to_float(pictures), seeds)
        with torch.no_grad():
            made = opening.decode(start, seeds)
        assert (to_uint8(made).int() - shown.int()).abs().max() <= 1, space
    assert (shown[0].int() - shown[1].int()).abs().max() > 1
    f = gan.G.encoder.normalize(opened(gans, name, "h").start(to_float(pictures), seeds)["latents"])
    torch.testing.assert_close(f, references, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["dicgan", "disp", "disp_stylegan2"])
def test_blocks_are_independent(name: str, gans: dict[str, Gan], pictures: torch.Tensor) -> None:
    space = opened(gans, name, "blocks")
    start = space.start(to_float(pictures), [0, 1, 2])
    (key, value), = start.items()
    images = [space.decode(start, [0, 1, 2])]
    for k in range(value.shape[1]):
        moved = value.clone()
        moved[:, k] += 1
        images.append(space.decode({key: moved}, [0, 1, 2]))
    for k, img in enumerate(images):
        assert all((img - other).abs().max() > 1e-6 for other in images[:k])


def test_w_starts_from_its_mean(gans: dict[str, Gan], pictures: torch.Tensor) -> None:
    from training.spaces import draw_latents, styles_of

    gan = gans["stylegan2"]
    mean = opened(gans, "stylegan2", "w").start(to_float(pictures), [0, 1, 2])["latents"].flatten(1)
    own = draw_latents(gan, "w", None, 4000, 1)[0].flatten(1)
    assert (mean[0] - own.mean(0)).abs().max() < 0.2 * own.std(0).max()
    assert torch.equal(mean[0], mean[2])
    ws = opened(gans, "stylegan2", "w+").start(to_float(pictures), [0, 1, 2])["ws"]
    assert ws.shape == (3, gan.G.num_ws, gan.G.w_dim)
    assert torch.equal(ws[:, 3], mean)
    styles = opened(gans, "stylegan2", "s").start(to_float(pictures), [0, 1, 2])["latents"].flatten(1)
    torch.testing.assert_close(styles, styles_of(gan.G, mean), atol=1e-5, rtol=1e-4)


def test_sigma_is_that_of_h(gans: dict[str, Gan], pictures: torch.Tensor) -> None:
    without, trained = (run(opened(gans, "dicgan", "feed-forward", **flags), pictures, 0) for flags in
                        ({"sigma": 0.0}, {}))
    assert not torch.equal(without.img, trained.img)
    again = optimise(opened(gans, "dicgan", "feed-forward", sigma=0.0), pictures, [[9], [8], [7]], mean_squared,
                     steps=0)
    assert not torch.equal(again.img, without.img)  # z differs, though h has no noise


# Optimisation.


class From(InversionSpace):
    """`inner`, started from given variables."""

    def __init__(self, inner: InversionSpace, variables: Variables) -> None:
        super().__init__(inner.name, inner.edit)
        self.inner, self.variables = inner, variables

    def start(self, img: torch.Tensor, seeds: Any) -> Variables:
        return self.variables

    def decode(self, variables: Variables, seeds: Any) -> torch.Tensor:
        return self.inner.decode(variables, seeds)


QUANTIZED = 1e-5  # twice the mean squared error of rounding to 8 bits


@pytest.mark.parametrize(("name", "space"), [
    pair for pair in SPACES if pair[0] in ("dicgan", "stylegan2", "fastgan") or pair[1] == "blocks"], ids=str)
def test_own_images_are_found(name: str, space: str, gans: dict[str, Gan], pictures: torch.Tensor) -> None:
    """A generated image has no error at its own latents, and is found from near them."""
    inner, seeds = opened(gans, name, space), [0, 1, 2]
    own = {key: value + 0.2 * torch.randn(value.shape)
           for key, value in inner.start(to_float(pictures), seeds).items()}
    with torch.no_grad():
        made = inner.decode(own, seeds)
    clipped = (made - made.clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    there = run(From(inner, own), to_uint8(made), 0).losses[0]
    assert (there < clipped + QUANTIZED).all()
    near = {key: value + 0.3 * torch.randn(value.shape) for key, value in own.items()}
    above = run(From(inner, near), to_uint8(made), 30, lr=0.02).losses - there
    assert (above[0] > 0).all()
    assert (above.min(0).values < 0.5 * above[0]).all(), above.min(0).values / above[0]


@pytest.mark.parametrize("lr", [0.1, 30.0])
@pytest.mark.parametrize(("name", "space"), [("dicgan", "blocks"), ("stylegan2", "w+"), ("disp", "blocks")])
def test_never_worse_than_the_start(name: str, space: str, lr: float, gans: dict[str, Gan],
                                    pictures: torch.Tensor) -> None:
    opening = opened(gans, name, space)
    result = run(opening, pictures, 6, lr=lr)
    assert result.losses.shape == (7, 3)
    if lr > 1:
        assert (result.losses[-1] > result.losses.min(0).values).any()  # it went astray
    with torch.no_grad():
        made = opening.decode(result.variables, result.seeds)
    torch.testing.assert_close(mean_squared(to_float(pictures))(made), result.losses.min(0).values)
    assert torch.equal(to_uint8(made), result.img)
    assert torch.equal(run(opening, pictures, 0).img, result.first)


@pytest.mark.parametrize(("name", "space"), [("dicgan", "hz"), ("disp", "blocks"), ("stylegan2", "s"),
                                             ("fastgan", "z")])
def test_batches_do_not_matter(name: str, space: str, gans: dict[str, Gan], pictures: torch.Tensor) -> None:
    opening = opened(gans, name, space)
    together, alone = (run(opening, pictures, 4, draws=2, batch_size=size) for size in (3, 1))
    assert together.seeds == alone.seeds
    torch.testing.assert_close(together.losses, alone.losses, atol=1e-4, rtol=1e-3)
    assert (together.img.int() - alone.img.int()).abs().max() <= 2
    for key, value in together.variables.items():
        assert len(value) == 3
        torch.testing.assert_close(value, alone.variables[key], atol=0.02, rtol=0.02)


def test_best_of_several_draws(gans: dict[str, Gan], pictures: torch.Tensor) -> None:
    space = opened(gans, "dicgan", "h")
    target = to_float(pictures)
    candidates = [[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]]
    with torch.no_grad():
        errors = torch.stack([mean_squared(target)(space.decode(space.start(target, seeds), seeds))
                              for seeds in zip(*candidates, strict=True)])
    chosen = choose_seeds(space, target, candidates, mean_squared(target))
    assert chosen == [10 * (i + 1) + int(k) for i, k in enumerate(errors.argmin(0))]
    result = optimise(space, pictures, candidates, mean_squared, steps=0)
    torch.testing.assert_close(result.losses[0], errors.min(0).values)


# Distances.


def test_distances(pictures: torch.Tensor) -> None:
    a, b = to_float(pictures), to_float(pictures.flip(0))
    torch.testing.assert_close(mean_squared(a)(b), ((a - b) ** 2).mean(dim=(1, 2, 3)))
    pixels, maps, both = (open_loss(name)(a) for name in ("mse", "perceptual", "mse+perceptual"))
    torch.testing.assert_close(both(b), pixels(b) + maps(b))
    judge = open_judge()(a)
    assert GUIDE != JUDGE
    for distance in (maps, judge):
        assert distance(a).abs().max() < 1e-5
        assert distance(b)[0] > distance((a + 0.05 * b).clamp(-1, 1))[0] > 0
        torch.testing.assert_close(distance(b)[:1], distance(b[:1].expand(3, -1, -1, -1))[:1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(maps(b), judge(b))
    wide = torch.rand(1, 1, 32, 64)  # grey, 2:1
    assert open_loss("perceptual")(wide)(-wide).shape == (1,)


# The command.


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(invert, [*map(str, args), "--device", "cpu"])


def regenerated(network: Path, latents: Path, seeds: list[int], folder: Path, *args: str) -> np.ndarray:
    done = CliRunner().invoke(gen_images.main, [
        "--network", str(network), "--ldm", str(latents), "--seeds", ",".join(map(str, seeds)), "--outdir",
        str(folder), "--device", "cpu", *args])
    assert done.exit_code == 0, (done.output, done.exception)
    return np.stack([np.asarray(Image.open(folder / f"seed{seed:04d}.png"), dtype=int) for seed in seeds])


@pytest.mark.parametrize(("name", "args", "again"), [
    ("dicgan", ["--draws", "2", "--sigma", "0.2", "--loss", "mse+perceptual"], "h"), ("stylegan2", [], "s"),
    ("icgan", ["--class", "1", "--space", "h"], "h")])
def test_from_images_to_latents_and_back(name: str, args: list[str], again: str, networks: dict[str, Path],
                                         tiny_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    done = call("--network", networks[name], "--target", tiny_set, "--count", 2, "--steps", 2, "--outdir", out,
                "--seed", 7, *args)
    assert done.exit_code == 0, (done.output, done.exception)
    records = {record["space"]: record for record in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    expected = {"dicgan": ["feed-forward", "h", "hz", "blocks"], "stylegan2": ["z", "w", "w+", "s"],
                "icgan": ["feed-forward", "h"]}[name]
    assert list(records) == expected
    names = [image["name"] for image in records[expected[0]]["images"]]
    assert len(set(names)) == 2
    for space in expected:
        assert sorted(path.name for path in (out / space).iterdir()) == sorted(names)
        assert records[space]["steps"] == (0 if space == "feed-forward" else 2)
        assert space in done.output
        suffix = "pkl" if space in ("feed-forward", "h", "w", "s") else "npz"
        assert (out / "latents" / f"{space}.{suffix}").exists()
    width, height = Image.open(out / "comparison.png").size
    assert width > 64 * (1 + len(expected))
    assert height > 2 * 64
    # The numbers are those of the pictures.
    record = records[again]
    read = {folder: np.stack([np.asarray(Image.open(out / folder / name), dtype=float) for name in names]) / 127.5
            for folder in (again, "target")}
    assert record["mse"] == pytest.approx(((read[again] - read["target"]) ** 2).mean(), rel=1e-4)
    assert 0 < record["lite2"] < 4
    assert "(mean colour)" in done.output
    deviation = read["target"] - read["target"].mean(axis=(1, 2), keepdims=True)
    assert record["flat_mse"] == pytest.approx((deviation ** 2).mean(), rel=1e-2)
    # What gen_images.py makes of the stored latents are the same pictures.
    seeds = [image["seed"] for image in record["images"]]
    assert all(7 <= seed < 11 for seed in seeds)
    sigma = ["--sigma", "0.2"] if name == "dicgan" else []
    label = ["--class", "1"] if name == "icgan" else []
    made = regenerated(networks[name], out / "latents" / f"{again}.pkl", seeds, tmp_path / "g", *sigma, *label)
    assert np.abs(made - read[again] * 127.5).max() <= 1
    assert all(" ".join(flag) in done.output for flag in (sigma, label))
    lines = (out / "curves.csv").read_text().splitlines()
    assert lines[0] == "space,step,mean,median,best_mean"
    assert len(lines) == 1 + sum(records[space]["steps"] + 1 for space in expected)


def test_targets_of_any_kind(tmp_path: Path) -> None:
    for name, size in (("a.png", (50, 40)), ("a.bmp", (20, 20)), ("in/b.png", (32, 64))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (10, 20, 30)).save(tmp_path / name)
    names, images = read_targets(str(tmp_path), (3, 32, 32), None)
    assert images.shape == (3, 3, 32, 32)
    assert names == ["00000_a.png", "00001_a.png", "00002_in_b.png"]
    assert read_targets(str(tmp_path / "a.png"), (3, 32, 32), None)[0] == ["a.png"]
    some, _ = read_targets(str(tmp_path / "in"), (1, 32, 32), 1)
    assert some == ["b.png"]


@pytest.mark.parametrize(("name", "args", "words"), [
    ("dicgan", ["--space", "w"], "choose feed-forward, h, hz, blocks"),
    ("dicgan", ["--space", "x"], "--space x: there is none"),
    ("stylegan2", ["--space", "h"], "told of no instance and has a mapping network; choose z, w, w+, s"),
    ("fastgan", ["--space", "z,w+"], "--space w+"),
    ("stylegan2", ["--space", "w,s", "--draws", "3"], "--draws 3"),
    ("disp", ["--sigma", "0.3"], "--sigma"),
    ("dicgan", ["--sigma", "1"], "--sigma 1"),
    ("icgan", [], "--class 0 .. 1"),
    ("dicgan", ["--class", "0"], "--class 0"),
    ("dicgan", ["--space", "feed-forward", "--lr", "0.1"], "--lr 0.1"),
    ("dicgan", ["--space", "feed-forward", "--steps", "9"], "--steps 9"),
    ("dicgan", ["--count", "41"], "holds 40 images"),
    ("dicgan", ["--target", "nothing.png"], "nothing.png does not exist"),
], ids=str)
def test_bad_combinations(name: str, args: list[str], words: str, networks: dict[str, Path], tiny_set: Path,
                          tmp_path: Path) -> None:
    error = the_error(call("--network", networks[name], "--target", tiny_set, "--outdir", tmp_path / "o", *args))
    assert words in error
    assert not (tmp_path / "o").exists()


# IvOM.


def measure(network: Path, heldout: Path | None, folder: Path, metric: str, *args: str | Path) -> Result:
    flags = [] if heldout is None else ["--heldout", str(heldout)]
    return CliRunner().invoke(calc_metrics.main, [
        "--network", str(network), "--metrics", metric, "--outdir", str(folder), *flags, "--device", "cpu",
        "--no-cache", *map(str, args)])


@pytest.mark.parametrize(("name", "args"), [("fastgan", []), ("disp", ["--prior", "train"])])
@pytest.mark.usefixtures("quick_detector")
def test_ivom_is_the_error_of_the_richest_space(name: str, args: list[str], networks: dict[str, Path],
                                                gans: dict[str, Gan], tiny_set: Path, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion_metric, "STEPS", 20)
    done = measure(networks[name], tiny_set, tmp_path, "ivom2,fid3_full", *args)
    assert done.exit_code == 0, (done.output, done.exception)
    record = json.loads((tmp_path / "metric-ivom2.jsonl").read_text())
    images = read_references(tiny_set, (3, 32, 32))[fixed_subset(40, 2)]
    space = opened(gans, name, richest_space(gans[name]))
    found = run(space, images, 20)
    values = record["results"]
    assert values["ivom2"] == pytest.approx(mean_squared(to_float(found.img))(to_float(images)).mean().item(), rel=0.02)
    assert 0 < values["ivom2"] < values["ivom2_start"]
    assert values["ivom2_fid"] > 0
    assert any(f"20 steps of Adam (0.1) in {space.name} from" in note for note in record["notes"])


@pytest.mark.parametrize(("metric", "side", "words"), [
    ("ivom2", 0, "--heldout"), ("ivom41", 32, "holds 40 images only"), ("ivom2", 24, "makes 32x32 images"),
    ("ivom1", 32, "count of 2 or more")], ids=str)
@pytest.mark.usefixtures("quick_detector")
def test_ivom_says_what_is_missing(metric: str, side: int, words: str, networks: dict[str, Path], tiny_set: Path,
                                   tmp_path: Path) -> None:
    heldout = tiny_set if side == 32 else make_pictures(tmp_path / "odd", 3, side) if side else None
    assert words in the_error(measure(networks["fastgan"], heldout, tmp_path, metric))


@pytest.mark.usefixtures("quick_detector")
def test_ivom_needs_a_network(tiny_set: Path) -> None:
    done = CliRunner().invoke(calc_metrics.main, ["compare", str(tiny_set), str(tiny_set), "--metrics", "ivom2",
                                                  "--no-cache", "--device", "cpu", "--heldout", str(tiny_set)])
    assert "give --network" in the_error(done)
