"""gen_images.py: seeds, sources of conditions, pictures, and what it says when something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import make_pictures, run_script
from PIL import Image
from runs import CPU, open_set, tiny_config

import gen_images
from dnnlib import UserError
from ldm.latents import open_latents
from torch_utils import checkpoint
from training.dataset import ImageDataset
from training.preparation import prepare
from training.prior_files import open_prior, save_prior
from training.reference_grid import LINE, nearest_images
from training.run_state import RunState
from training.sampling import Gan, Sampler, load_gan
from training.source_options import SourceFlags
from training.sources import at_reference, encode_images, open_sampler, read_references, training_set


def make_network(data: Path, path: Path, cfg: str, *, modulated: bool = False, **changes: Any) -> Path:
    """A checkpoint of an untrained network that is ready to train; modulated: G_mod, which starts at zero, acts."""
    dataset = open_set(data, cfg, mirror=True, **changes)
    run = RunState(tiny_config(cfg, dataset, mirror=True, **changes), CPU)
    prepare(run, dataset, path.parent, fit=True, resumed=False)
    if modulated and run.G_ema.modulation is not None:
        torch.nn.init.normal_(run.G_ema.modulation.leave.weight, std=0.1)
    run.save(path)
    return path


@pytest.fixture(scope="module")
def networks(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        "dicgan": make_network(tiny_set, folder / "dicgan.pkl", "dicgan_demo"),
        "joint": make_network(tiny_set, folder / "joint.pkl", "dicgan_demo", encoder="joint"),
        "disp": make_network(tiny_set, folder / "disp.pkl", "disp_demo", generator="stylegan2"),
        "icgan": make_network(tiny_set, folder / "icgan.pkl", "icgan_demo", cond=True),
        "clusters": make_network(tiny_set, folder / "clusters.pkl", "logogan_demo"),
        "full": make_network(tiny_set, folder / "full.pkl", "fastgan"),
        "cond": make_network(tiny_set, folder / "cond.pkl", "fastgan_demo", cond=True),
    }


def generate(*args: str | Path) -> Result:
    """The script in this process."""
    return CliRunner().invoke(gen_images.main, [*map(str, args), "--device", "cpu"])


def the_error(done: Result) -> str:
    """The one line of an error with exit code 2."""
    assert done.exit_code == 2, (done.output, done.exception)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    return line


def sampler_of(gan: Gan, noise_mode: str = "random", data: Path | None = None, alter: str | None = None,
               **flags: Any) -> Sampler:
    """`open_sampler` with the training set from `data` or the checkpoint."""
    return open_sampler(gan, SourceFlags(**flags), open_latents=open_latents, noise_mode=noise_mode, alterations=alter,
                        images=lambda flag: training_set(gan, data and str(data), flag))


# Files, seeds, references.


def test_files_and_grid(networks: dict[str, Path], tiny_set: Path, tmp_path: Path) -> None:
    done = run_script("gen_images.py", "--network", networks["dicgan"], "--ref", tiny_set, "--seeds", "0-2,10",
                      "--outdir", tmp_path / "o", "--grid", tmp_path / "grid.png", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "seed0000.png", "seed0001.png", "seed0002.png", "seed0010.png"]
    assert Image.open(tmp_path / "o" / "seed0010.png").size == (32, 32)
    assert Image.open(tmp_path / "grid.png").size == (128, 32)


SOURCES = [("full", {}), ("clusters", {}), ("cond", {"class_idx": 1}),
           *[(name, {"prior": prior}) for name in ("dicgan", "disp")
             for prior in ("train", "vicinal", "gmm:3", "kmeans")],
           *[(name, {"instances": "5"}) for name in ("joint", "disp", "icgan")],
           *[(name, {"ref": "SET"}) for name in ("dicgan", "icgan")], ("icgan", {"prior": "gmm:3", "class_idx": 1})]


@pytest.mark.parametrize(("name", "flags"), SOURCES, ids=str)
def test_seed_is_the_same_in_any_batch(name: str, flags: dict[str, Any], networks: dict[str, Path],
                                       tiny_set: Path) -> None:
    gan = load_gan(networks[name], CPU)
    if name == "full":  # noise strengths start at zero; make them matter
        for key, value in gan.G.state_dict().items():
            if "noise" in key:
                value.fill_(0.5)
    sampler = sampler_of(gan, **{key: tiny_set if value == "SET" else value for key, value in flags.items()})
    seeds = list(range(12))
    together = torch.cat(list(sampler.images(seeds, 12))).int()
    alone = torch.cat(list(sampler.images(seeds, 1))).int()
    assert (together - alone).abs().max() <= 1
    assert (together[0] - together[1]).abs().max() > 1


def test_reference_and_sigma_change_the_image(networks: dict[str, Path], tiny_set: Path) -> None:
    gan = load_gan(networks["dicgan"], CPU)
    f = encode_images(gan, ImageDataset(tiny_set, mirror=True))
    assert f.shape == (80, 4, 1, 1)
    sampler = sampler_of(gan, ref=tiny_set)
    torch.testing.assert_close(sampler.references, f[:40])
    still = sampler_of(gan, ref=tiny_set, sigma=0.0)
    assert sampler.provenance["sigma"] == 0.5
    assert not torch.equal(sampler.batch([0]), still.batch([0]))
    # Seeds 0 and 40 share the reference but not z.
    assert torch.equal(still.condition_latents([0]), still.condition_latents([40]))
    assert not torch.equal(still.batch([0]), still.batch([40]))


def test_references_of_any_kind_transfer(networks: dict[str, Path], tmp_path: Path) -> None:
    """Other sizes, grey, transparent: what IC-GAN calls transfer to another data set."""
    folder = make_pictures(tmp_path / "refs", 2, 50)
    with Image.open(folder / "picture000.png") as picture:
        picture.convert("L").resize((70, 33)).save(folder / "grey.png")
        picture.convert("RGBA").save(folder / "soft.png")
    gan = load_gan(networks["disp"], CPU)
    for ref, count in ((folder, 4), (folder / "grey.png", 1)):
        f = sampler_of(gan, ref=ref).references
        assert isinstance(f, torch.Tensor)
        assert f.shape == (count, 1280, 1, 1)
        torch.testing.assert_close(f.flatten(1).norm(dim=1), torch.ones(count))
    done = generate("--network", networks["disp"], "--ref", folder, "--seeds", "0-3", "--outdir", tmp_path / "o")
    assert done.exit_code == 0, done.output
    altered = sampler_of(gan, ref=folder, alter="sketch,cutout")
    assert altered.provenance["alter"] == "sketch,cutout"
    assert (altered.references - sampler_of(gan, ref=folder).references).norm(dim=1).min() > 0.1


def test_studies_are_refused_with_several_processes(networks: dict[str, Path], tiny_set: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_utils.distributed.world", lambda: 2)
    done = generate("--network", networks["dicgan"], "--ref", tiny_set, "--vary", "sigma", "--seeds", "0", "--outdir",
                    tmp_path)
    assert "--vary sigma is drawn in one process" in the_error(done)


def test_classes(networks: dict[str, Path], tiny_set: Path, tmp_path: Path) -> None:
    images = []
    for label in ("0", "1"):
        done = generate("--network", networks["cond"], "--class", label, "--seeds", "0", "--outdir", tmp_path / label)
        assert done.exit_code == 0, done.output
        images.append(np.array(Image.open(tmp_path / label / "seed0000.png")))
    assert not np.array_equal(*images)
    # Classes come with the images that the instances are of, unless --class says otherwise.
    gan = load_gan(networks["icgan"], CPU)
    dataset = ImageDataset(tiny_set, use_labels=True)
    own = encode_images(gan, dataset).flatten(1)
    for flags in ({"instances": "9"}, {"prior": "train"}, {"ref": str(tiny_set)}):
        sampler = sampler_of(gan, **flags)
        f, labels = sampler.condition_latents(range(40)), sampler._labels(range(40))
        assert f is not None
        assert labels is not None
        distance, numbers = torch.cdist(f.flatten(1), own).min(1)
        assert distance.max() < 1e-3
        assert labels.tolist() == dataset.labels[numbers].tolist()
        assert set(labels.tolist()) == {0, 1}
        assert sampler_of(gan, class_idx=1, **flags)._labels(range(3)).tolist() == [1, 1, 1]
    assert set(sampler_of(load_gan(networks["clusters"], CPU))._labels(range(40)).tolist()) == {0, 1, 2}


def test_references_of_unknown_classes(networks: dict[str, Path], tmp_path: Path) -> None:
    make_pictures(tmp_path / "refs", 2, 40)
    labels = '{"labels": [["picture000.png", 1], ["picture001.png", 5]]}'
    (tmp_path / "refs" / "dataset.json").write_text(labels)
    gan = load_gan(networks["icgan"], CPU)
    with pytest.raises(UserError, match=r"Class 5 of .*refs: .* knows classes 0 .. 1; give --class"):
        sampler_of(gan, ref=tmp_path / "refs")
    (tmp_path / "refs" / "dataset.json").write_text(labels.replace("5", "0"))
    assert sampler_of(gan, ref=tmp_path / "refs")._labels([0, 1, 2]).tolist() == [1, 0, 1]


# Priors as files.


@pytest.mark.parametrize(("name", "flag", "value"), [
    ("icgan", "--instances", "7"), ("disp", "--prior", "gmm:3"), ("dicgan", "--prior", "vicinal"),
    ("dicgan", "--prior", "kmeans:4")])
def test_stored_prior_needs_no_data(name: str, flag: str, value: str, networks: dict[str, Path], tiny_set: Path,
                                    tmp_path: Path) -> None:
    state = checkpoint.load(networks[name], "gan")
    state["config"]["data"]["path"] = "/gone/set.zip"
    checkpoint.save(tmp_path / "net.pkl", "gan", state)
    label = ["--class", "1"] if name == "icgan" else []
    asked = ["--network", tmp_path / "net.pkl", "--seeds", "0-3", *label]
    assert "/gone/set.zip, which is not there any more" in the_error(
        generate(*asked, flag, value, "--outdir", tmp_path / "a"))
    done = generate(*asked, flag, value, "--outdir", tmp_path / "a", "--data", tiny_set, "--save-source",
                    tmp_path / "s.pkl")
    assert done.exit_code == 0, done.output
    done = generate(*asked, flag, tmp_path / "s.pkl", "--outdir", tmp_path / "b")
    assert done.exit_code == 0, done.output
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    other = networks["joint"]
    line = the_error(generate("--network", other, "--seeds", "0", "--outdir", tmp_path / "c", flag, tmp_path / "s.pkl"))
    assert f"{flag} {tmp_path / 's.pkl'} belongs to another GAN" in line
    wrong = "--prior" if flag == "--instances" else "--instances"
    assert f"give it to {flag}" in the_error(generate(*asked, wrong, tmp_path / "s.pkl", "--outdir", tmp_path / "c"))


def test_damaged_and_foreign_prior_files(networks: dict[str, Path], tmp_path: Path) -> None:
    gan = load_gan(networks["disp"], CPU)
    prior = sampler_of(gan, instances="3").latents
    save_prior(tmp_path / "s.pkl", gan, prior)  # type: ignore[arg-type]
    for key, value, words in (("form", "Rouse", "damaged"), ("prior", {"rows": torch.ones(2, 3)}, "damaged"),
                              ("encoder", {"weights_hash": "0"}, "other weights"), ("provenance", {}, "damaged")):
        state = checkpoint.load(tmp_path / "s.pkl", "prior")
        checkpoint.save(tmp_path / "odd.pkl", "prior", {**state, key: value})
        with pytest.raises(UserError, match=words):
            open_prior(tmp_path / "odd.pkl", gan, "--instances")
    assert open_prior(tmp_path / "s.pkl", gan, "--instances").provenance["prior"] == "instances:3"


def test_priors_refuse_other_images(networks: dict[str, Path], tmp_path: Path) -> None:
    gan = load_gan(networks["disp"], CPU)
    with pytest.raises(UserError, match=r"--prior gmm:3 needs the training images, but --data .*32 is not what"):
        sampler_of(gan, prior="gmm:3", data=make_pictures(tmp_path / "set32", 4, 32))
    gan.dataset["fingerprint"] = "0" * 64
    with pytest.raises(UserError, match=r"--instances 4 needs .*has changed since"):
        sampler_of(gan, instances="4")


# Pictures of references.


def test_reference_grid(networks: dict[str, Path], tiny_set: Path, tmp_path: Path) -> None:
    refs = make_pictures(tmp_path / "refs", 3, 40)
    done = generate("--network", networks["dicgan"], "--ref", refs, "--alter", "gray", "--seeds", "0-5", "--outdir",
                    tmp_path / "o", "--ref-grid", tmp_path / "g.png", "--per-ref", "2", "--sigma", "0")
    assert done.exit_code == 0, done.output
    picture = np.array(Image.open(tmp_path / "g.png"))
    assert picture.shape == (3 * 64 + 2 * LINE, 3 * 32, 3)
    assert (picture[64:64 + LINE] == 255).all()
    gan = load_gan(networks["dicgan"], CPU)
    sampler = sampler_of(gan, ref=refs, alter="gray", sigma=0.0)
    dataset = ImageDataset(tiny_set)
    train = np.stack([dataset.image(i).transpose(1, 2, 0) for i in range(40)])
    for r in range(3):
        top = r * (64 + LINE)
        cells = [picture[top:top + 32, 32 * c:32 * (c + 1)] for c in range(3)]
        assert (cells[0] == cells[0][:, :, :1]).all()
        drawn = at_reference(sampler, r).batch([2 * r, 2 * r + 1]).permute(0, 2, 3, 1).numpy()
        for j in range(2):
            assert np.abs(cells[1 + j].astype(int) - drawn[j]).max() <= 1
        below = picture[top + 32:top + 64, :32]
        assert (below == train).all(axis=(1, 2, 3)).any()
    # Seeds of the single images don't change: seed 4 is of reference 4 mod 3.
    single = np.array(Image.open(tmp_path / "o" / "seed0004.png")).astype(int)
    assert np.abs(single - sampler.batch([4])[0].permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("name", ["dicgan", "joint"])
def test_nearest_image_of_a_training_image_is_itself(name: str, networks: dict[str, Path], tiny_set: Path) -> None:
    gan, dataset = load_gan(networks[name], CPU), ImageDataset(tiny_set)
    cells = torch.stack([dataset[i][0] for i in (5, 17, 3)])
    assert torch.equal(nearest_images(gan, cells, dataset), cells)


def test_few_seeds_start_again_in_the_grid(networks: dict[str, Path], tmp_path: Path) -> None:
    refs = make_pictures(tmp_path / "refs", 2, 40)
    done = generate("--network", networks["joint"], "--ref", refs, "--seeds", "7", "--outdir", tmp_path / "o",
                    "--ref-grid", tmp_path / "g.png")
    assert done.exit_code == 0, done.output
    picture = np.array(Image.open(tmp_path / "g.png"))
    assert picture.shape == (2 * 64 + LINE, 5 * 32, 3)
    assert np.array_equal(picture[:32, 32:64], picture[:32, 64:96])


def test_grey_and_wide(tmp_path: Path) -> None:
    """Pictures have one channel, and the sides of the network."""
    make_pictures(tmp_path / "raw", 12, 64)
    done = run_script("dataset_tool.py", "--source", tmp_path / "raw", "--dest", tmp_path / "set.zip", "--resolution",
                      "64x32", "--transform", "center-crop", "--color", "grey")
    assert done.returncode == 0, done.stderr
    network = make_network(tmp_path / "set.zip", tmp_path / "net.pkl", "icgan_demo", neighbors=3)
    assert read_references(tmp_path / "raw", load_gan(network, CPU).img_shape).shape == (12, 1, 32, 64)
    made = generate("--network", network, "--ref", tmp_path / "raw" / "picture000.png", "--seeds", "0-1", "--outdir",
                    tmp_path / "o", "--grid", tmp_path / "all.png", "--ref-grid", tmp_path / "refs.png")
    assert made.exit_code == 0, made.output
    for name, size in (("o/seed0001.png", (64, 32)), ("all.png", (128, 32)), ("refs.png", (5 * 64, 64))):
        with Image.open(tmp_path / name) as picture:
            assert (picture.mode, picture.size) == ("L", size)


# StyleGAN2's flags.


def test_truncation_and_noise_mode(networks: dict[str, Path], tmp_path: Path) -> None:
    gan = load_gan(networks["disp"], CPU)
    gan.G.mapping.w_avg.normal_()
    for key, value in gan.G.state_dict().items():
        if key.endswith("noise.strength") or key.endswith("noise.weight"):
            value.fill_(1.0)
    batches = {psi: sampler_of(gan, "const", prior="train", trunc=psi).batch([0, 1]).float() for psi in (0.0, 0.5, 1.0)}
    assert torch.equal(batches[1.0], sampler_of(gan, "const", prior="train").batch([0, 1]).float())
    assert torch.equal(batches[0.0][0], batches[0.0][1])
    assert not torch.equal(batches[0.5], batches[1.0])
    assert not torch.equal(batches[1.0], sampler_of(gan, "random", prior="train").batch([0, 1]).float())
    # const is what the script takes by itself, as the official one does.
    asked = ["--network", networks["disp"], "--prior", "train", "--seeds", "0"]
    for folder, flags in (("own", []), ("const", ["--noise-mode", "const", "--trunc", "1"])):
        assert generate(*asked, "--outdir", tmp_path / folder, *flags).exit_code == 0
    assert (tmp_path / "own" / "seed0000.png").read_bytes() == (tmp_path / "const" / "seed0000.png").read_bytes()


# Bad input.


@pytest.mark.parametrize(("name", "args", "words"), [
    ("dicgan", [], ["--ldm", "--ref", "--instances", "--prior"]),
    ("dicgan", ["--ref", "nowhere"], ["nowhere"]),
    ("dicgan", ["--ref", "SET", "--sigma", "1"], ["--sigma 1"]),
    ("dicgan", ["--ref", "SET", "--class", "1"], ["--class 1"]),
    ("dicgan", ["--ref", "SET", "--ldm-steps", "5"], ["--ldm-steps"]),
    ("dicgan", ["--ref", "SET", "--trunc", "0.7"], ["--trunc"]),
    ("dicgan", ["--ref", "SET", "--noise-mode", "const"], ["--noise-mode const"]),
    ("dicgan", ["--ref", "SET", "--rotate", "5"], ["--rotate"]),
    ("dicgan", ["--ldm", "SELF"], ["latent"]),
    ("dicgan", ["--ref", "SET", "--prior", "gmm"], ["--ref, --prior all say"]),
    ("dicgan", ["--instances", "41"], ["--instances 41", "40"]),
    ("dicgan", ["--instances", "0"], ["--instances 0"]),
    ("dicgan", ["--instances", "nowhere.pkl"], ["nowhere.pkl does not exist"]),
    ("dicgan", ["--prior", "gnn"], ["--prior gnn: choose train, vicinal"]),
    ("dicgan", ["--prior", "SELF"], ["is a generator checkpoint"]),
    ("dicgan", ["--prior", "gmm", "--alter", "gray"], ["--alter", "--ref"]),
    ("dicgan", ["--prior", "gmm", "--ref-grid", "g.png"], ["--ref-grid", "--ref"]),
    ("dicgan", ["--ref", "SET", "--per-ref", "3"], ["--per-ref", "--ref-grid"]),
    ("dicgan", ["--ref", "SET", "--alter", "blur"], ["--alter blur"]),
    ("dicgan", ["--ref", "SET", "--save-source", "s.pkl"], ["--save-source"]),
    ("dicgan", ["--instances", "nowhere.pkl", "--save-source", "s.pkl"], ["--save-source s.pkl", "already"]),
    ("dicgan", ["--ref", "SET", "--data", "SET"], ["--data"]),
    ("disp", ["--prior", "train", "--sigma", "0.5"], ["--sigma"]),
    ("icgan", ["--prior", "gmm:3"], ["--prior gmm:3 draws no classes", "--class 0 .. 1"]),
    ("icgan", ["--ref", "RAW"], ["no class labels", "--class"]),
    ("icgan", ["--instances", "3", "--class", "2"], ["--class 2"]),
    ("full", ["--ref", "SET"], ["leave out --ref"]),
    ("full", ["--prior", "train"], ["leave out --prior"]),
    ("full", ["--sigma", "0.5"], ["--sigma"]),
    ("cond", [], ["--class 0 .. 1"]),
    ("cond", ["--class", "2"], ["--class 2"]),
])
def test_bad_input_is_one_line(name: str, args: list[str], words: list[str], networks: dict[str, Path],
                               tiny_set: Path, tmp_path: Path) -> None:
    make_pictures(tmp_path / "raw", 1, 40)
    places = {"SET": tiny_set, "SELF": networks[name], "RAW": tmp_path / "raw"}
    line = the_error(generate("--network", networks[name], "--seeds", "0", "--outdir", tmp_path / "o",
                              *(places.get(a, a) for a in args)))
    assert all(word in line for word in words), line
    assert not list((tmp_path / "o").glob("*.png"))


def test_damaged_configuration(networks: dict[str, Path], tmp_path: Path) -> None:
    state = checkpoint.load(networks["full"], "gan")
    state["config"]["G"]["ngf"] = 3
    checkpoint.save(tmp_path / "odd.pkl", "gan", state)
    with pytest.raises(UserError, match=r"odd\.pkl is damaged"):
        load_gan(tmp_path / "odd.pkl", CPU)
