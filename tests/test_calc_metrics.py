"""calc_metrics.py: networks, two image sets, stored results, and what it says about bad input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import make_pictures, run_script
from PIL import Image
from test_gen_images import make_network, the_error

import calc_metrics
import metrics.detectors
from metrics.detectors import Detector
from torch_utils import checkpoint
from training.dataset import ImageDataset
from training.sampling import load_gan
from training.source_options import SourceFlags

DIM = 6


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test reads or fills the cache of the person who runs it."""
    monkeypatch.setenv("DICGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def quick_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for EfficientNet-Lite2 where the network isn't what is tested."""
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(3 * 8 * 8, DIM))).float() / 200

    def load(name: str, file: str | None, device: torch.device) -> Detector:
        return Detector(name, "projection", "0" * 64, DIM, 8, device, lambda x: (x.flatten(1) / 10) @ weights)

    monkeypatch.setattr(metrics.detectors, "load_detector", load)


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(calc_metrics.main, [*map(str, args)])


def zip_of(folder: Path) -> Path:
    """The zip of a folder, beside it."""
    return Path(shutil.make_archive(str(folder), "zip", folder))


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """Two small zips of images of different sizes."""
    make_pictures(tmp_path / "a", 6, 24)
    make_pictures(tmp_path / "b" / "in", 5, 40)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (30, 50, 4), dtype=np.uint8)).save(tmp_path / "b" / "alpha.png")
    return zip_of(tmp_path / "a"), zip_of(tmp_path / "b")


# Two sets.


def test_compare_with_the_real_detector(sets: tuple[Path, Path], tmp_path: Path) -> None:
    done = run_script("calc_metrics.py", "compare", *sets, "--metrics", "fid_full,kid_full", "--outdir",
                      tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "not comparable with FID or KID in Inception-v3" in done.stdout
    record = json.loads((tmp_path / "out" / "metric-fid_full.jsonl").read_text())
    assert record["results"]["fid_full"] > 1
    assert record["detector"]["network"] == "tf_efficientnet_lite2"
    assert len(record["detector"]["weights_hash"]) == 64
    assert "192 x 192" in record["resize"]
    assert (record["num_fake"], record["num_real"], record["dataset"]["num_images"]) == (6, 6, 6)
    assert any("biased upwards" in note for note in record["notes"])
    assert (tmp_path / "out" / "metric-kid_full.jsonl").is_file()


def test_compare(sets: tuple[Path, Path], own_cache: Path, quick_detector: None) -> None:
    a, b = sets
    here = call("compare", a, b, "--metrics", "fid_full,kid4_full,fid4", "--heldout", a)
    assert here.exit_code == 0, here.output
    assert "Copying" in here.output
    assert len(list(own_cache.iterdir())) == 2  # B and the held-out set
    folder = call("compare", a.with_suffix(""), b.with_suffix(""), "--metrics", "fid_full", "--no-cache")
    value = [line.split()[1] for done in (here, folder) for line in done.output.splitlines() if "fid_full" in line]
    assert value[0] == value[1]
    same = call("compare", a, a, "--metrics", "fid_full", "--no-cache")
    (line,) = [line for line in same.output.splitlines() if line.startswith("fid_full")]
    assert float(line.split()[1]) < 1e-6


def test_one_data_set_is_cached_once_and_pairs_are_drawn(networks: dict[str, Path], tiny_set: Path, own_cache: Path,
                                                         tmp_path: Path, quick_detector: None) -> None:
    """Read by the network's form and by the other: the same features, and the same numbers for copies."""
    asked = ("--metrics", "fid_full", "--outdir", tmp_path, "--device", "cpu", "--pairs", tmp_path / "pairs.png")
    done = call("--network", networks["plain"], "--mirror", "0", *asked)
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(list(own_cache.iterdir())) == 1
    (made,) = records(tmp_path, "fid_full")
    assert "10 closest pairs" in done.output
    with Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.width > 1280
    done = call("compare", tiny_set, tiny_set, *asked)
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(list(own_cache.iterdir())) == 1
    copied = records(tmp_path, "fid_full")[1]
    assert copied["dataset"]["fingerprint"] == made["dataset"]["fingerprint"]
    assert [pair["generated"] for pair in copied["copying"]["closest"]] == [
        pair["image"] for pair in copied["copying"]["closest"]]
    with Image.open(tmp_path / "pairs.png") as sheet:
        pixels = np.array(sheet)
    assert np.array_equal(pixels[4:132], pixels[136:264])


def test_diversity_within_conditions(networks: dict[str, Path], tiny_set: Path, tmp_path: Path,
                                     quick_detector: None) -> None:
    shared = ("--outdir", tmp_path, "--device", "cpu", "--metrics", "diversity90")
    cases = (("dicgan", ["--ref", tiny_set], 40), ("dicgan", ["--instances", "5"], 5), ("cond", ["--class", "1"], 1),
             ("cond", [], 2), ("clusters", [], 3), ("plain", [], None))
    for name, args, _ in cases:
        done = call("--network", networks[name], *args, *shared)
        assert done.exit_code == 0, (done.output, done.exception)
    found = records(tmp_path, "diversity90")
    for (_, _, groups), record in zip(cases, found, strict=True):
        words = [note for note in record["notes"] if "diversity90_within: the mean over" in note]
        assert ("diversity90_within" in record["results"]) == bool(words) == (groups is not None)
        assert groups is None or f"over {groups} condition" in words[0]
    by_ref, _, by_class, *_ = (record["results"] for record in found)
    assert by_ref["diversity90_within"] < by_ref["diversity90"]
    assert by_class["diversity90_within"] == by_class["diversity90"]
    assert by_ref["diversity90_real"] > 0


@pytest.mark.parametrize(("name", "flags"), [("cond", {}), ("cond", {"class_idx": 1}), ("clusters", {}),
                                             ("icgan", {"prior": "train"})], ids=str)
def test_groups_are_of_what_samples_are_told(name: str, flags: dict[str, Any], networks: dict[str, Path],
                                             tiny_set: Path) -> None:
    gan = load_gan(networks[name], torch.device("cpu"))
    sampler, _ = calc_metrics.open_conditions(gan, ImageDataset(tiny_set, use_labels=True), SourceFlags(**flags))
    group = calc_metrics.groups_of(sampler, 3)
    assert group is not None
    seeds = range(3 * calc_metrics.SEEDS_PER_RUN, 3 * calc_metrics.SEEDS_PER_RUN + 60)
    f, labels = sampler.condition_latents(seeds), sampler._labels(seeds)
    assert labels is not None
    told = [(int(labels[k]), None if f is None else f[k].numpy().tobytes()) for k in range(60)]
    numbers = [group(k) for k in range(60)]
    assert len(set(numbers)) == len(set(told)) == len(set(zip(numbers, told, strict=True)))


@pytest.mark.parametrize(("args", "words"), [
    (["A", "nowhere.zip"], "nowhere.zip does not exist"),
    (["A", "TEXT"], "neither a folder of images nor a zip"),
    (["A", "EMPTY"], "contains no images"),
    (["A", "BROKEN"], "picture000.png"),
    (["A", "ONE"], "one image"),
    (["A", "B", "--metrics", "fid1k_full"], "holds 6 images only"),
    (["A", "B", "--metrics", "ppl2_wend"], "this version doesn't measure it"),
    (["A", "B", "--metrics", "is10"], "--metrics is10: efficientnet_lite2 has no classifier"),
    (["A", "B", "--pairs", "pairs.jpg"], "--pairs pairs.jpg: name a .png file"),
    (["A", "B", "--metrics", "fid50"], None),
    (["A", "B", "--metrics", "fud_full"], "--metrics 'fud_full' is unknown"),
    (["A", "B", "--metrics", "retrieval"], "--ref"),
    (["A", "B", "--heldout", "nowhere"], "nowhere does not exist"),
    (["A", "B", "--device", "abacus"], "--device abacus"),
    (["A", ""], "name of an image set is empty"),
    (["A", "B", "--heldout", ""], "--heldout is empty"),
])
def test_compare_bad_input(args: list[str], words: str | None, sets: tuple[Path, Path], tmp_path: Path,
                           quick_detector: None) -> None:
    (tmp_path / "text.zip.txt").write_text("no archive")
    (tmp_path / "empty").mkdir()
    make_pictures(tmp_path / "broken", 2, 24)
    (tmp_path / "broken" / "picture000.png").write_bytes(b"\x89PNG not really")
    make_pictures(tmp_path / "one", 1, 24)
    paths = {"A": sets[0], "B": sets[1], "TEXT": tmp_path / "text.zip.txt", "EMPTY": tmp_path / "empty",
             "BROKEN": tmp_path / "broken", "ONE": tmp_path / "one"}
    metrics_default = [] if "--metrics" in args else ["--metrics", "fid_full"]
    done = call("compare", *(paths.get(a, a) for a in args), *metrics_default, "--outdir", tmp_path / "out")
    line = the_error(done)
    assert words is None or words in line
    assert not (tmp_path / "out").exists()


KINDS: dict[str, tuple[str, str | None]] = {"grey": ("L", None), "two colours": ("1", None), "alpha": ("RGBA", None),
                                            "palette": ("P", None), "16 bits": ("I;16", None), "cmyk": ("CMYK", "jpg")}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_kind_and_size(kind: str, sets: tuple[Path, Path], tmp_path: Path,
                                       quick_detector: None) -> None:
    mode, ending = KINDS[kind]
    generator = np.random.default_rng(1)
    folder = make_pictures(tmp_path / "odd", 2, 16)
    for width, height in ((50, 30), (1, 1), (1, 3000)):
        grey = Image.fromarray(generator.integers(0, 256, (height, width), dtype=np.uint8))
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
        picture.save(folder / f"{width}x{height}.{ending or 'png'}")
    done = call("compare", folder, sets[1], "--metrics", "fid_full,pr3_full")
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.output.count("  5  ") >= 2  # all five count


def test_paths_that_are_no_text(sets: tuple[Path, Path], tmp_path: Path, quick_detector: None) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(sets[0].with_suffix(""), folder)
    done = call("compare", folder, folder, "--metrics", "fid_full", "--outdir", folder, "--pairs", folder / "p.png")
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.output.count("caf?") == 3


@pytest.mark.parametrize(("args", "words"), [
    (["--detector", "vgg"], "--detector vgg"),
    (["--detector", "inception"], "pt_inception-2015-12-05"),
    (["--detector", "inception", "--weights", "nowhere.pth"], "nowhere.pth does not exist"),
    (["--weights", "file.pth"], "brings its own"),
])
def test_detector_errors(args: list[str], words: str, sets: tuple[Path, Path]) -> None:
    assert words in the_error(call("compare", *sets, "--metrics", "fid_full", *args))


# A network.


@pytest.fixture(scope="module")
def networks(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {"dicgan": make_network(tiny_set, folder / "dicgan.pkl", "dicgan_demo"),
            "icgan": make_network(tiny_set, folder / "icgan.pkl", "icgan_demo", cond=True),
            "disp": make_network(tiny_set, folder / "disp.pkl", "disp_demo", generator="stylegan2"),
            "clusters": make_network(tiny_set, folder / "clusters.pkl", "logogan_demo"),
            "plain": make_network(tiny_set, folder / "plain.pkl", "fastgan_demo"),
            "cond": make_network(tiny_set, folder / "cond.pkl", "fastgan_demo", cond=True)}


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"metric-{name}.jsonl").read_text().splitlines()]


def test_network(networks: dict[str, Path], tiny_set: Path, tmp_path: Path, quick_detector: None) -> None:
    asked = ("--metrics", "fid100_full,kid50_full,fid_full,fid60,retrieval", "--network", networks["dicgan"], "--ref",
             tiny_set, "--device", "cpu", "--heldout", tiny_set)
    for extra in ((), ("--batch", "7"), ("--seed", "1"), ("--sigma", "0")):
        done = call(*asked, "--outdir", tmp_path, *extra)
        assert done.exit_code == 0, (done.output, done.exception)
    first, same, other, still = records(tmp_path, "fid100_full")
    assert (first["num_fake"], first["num_real"], first["seed"]) == (100, 40, 0)
    assert first["results"] == pytest.approx(same["results"], rel=1e-3)
    assert first["results"] != pytest.approx(other["results"], rel=1e-3)
    state = checkpoint.load(networks["dicgan"], "gan")
    assert first["network_hash"] == checkpoint.weights_hash(state["G_ema"])
    assert first["dataset"]["fingerprint"] == state["config"]["data"]["fingerprint"]
    assert (first["snapshot_pkl"], first["cur_nimg"]) == ("dicgan.pkl", state["progress"]["cur_nimg"])
    assert (first["conditions"]["mode"], first["conditions"]["sigma"], still["conditions"]["sigma"]) == ("ref", 0.5, 0)
    assert len(first["conditions"]["ref_fingerprint"]) == 64
    assert first["copying"]["num_train"] == 80  # with the flips that training used
    assert records(tmp_path, "fid_full")[0]["num_fake"] == 40
    flipped = records(tmp_path, "fid60")[0]
    assert (flipped["num_real"], flipped["xflip"]) == (60, True)
    ranks = records(tmp_path, "retrieval")[0]
    assert (ranks["num_fake"], ranks["results"]["retrieval_chance"]) == (40, 20.5)
    assert first["detector"]["name"] == "efficientnet_lite2"


def test_default_place_of_results(networks: dict[str, Path], tmp_path: Path, quick_detector: None) -> None:
    network = shutil.copy(networks["cond"], tmp_path / "cond.pkl")
    done = call("--metrics", "kid20_full", "--network", network, "--device", "cpu", "--class", "1", "--mirror", "0")
    assert done.exit_code == 0, done.output
    (record,) = records(tmp_path, "kid20_full")
    assert record["copying"]["num_train"] == 40
    assert any("class 1 only" in note for note in record["notes"])
    # Without --class, classes are drawn as in the data.
    assert call("--metrics", "kid20_full", "--network", network, "--device", "cpu").exit_code == 0
    assert records(tmp_path, "kid20_full")[1]["results"] != record["results"]


def rewritten(network: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The checkpoint with its configuration changed."""
    state = checkpoint.load(network, "gan")
    change(state["config"])
    checkpoint.save(path, "gan", state)
    return path


def test_the_data_set_of_the_checkpoint(networks: dict[str, Path], tiny_set: Path, tmp_path: Path,
                                        quick_detector: None) -> None:
    moved = rewritten(networks["plain"], tmp_path / "moved.pkl", lambda c: c["data"].update(path="/gone/set.zip"))
    asked = ("--metrics", "fid20_full", "--device", "cpu", "--network")
    assert "/gone/set.zip, which is not there any more" in the_error(call(*asked, moved))
    done = call(*asked, moved, "--data", tiny_set)
    assert done.exit_code == 0, done.output
    assert "is not what the network was trained on" not in done.output
    changed = rewritten(networks["plain"], tmp_path / "changed.pkl", lambda c: c["data"].update(fingerprint="0" * 64))
    assert "has changed since" in the_error(call(*asked, changed))
    done = call(*asked, changed, "--data", tiny_set)
    assert done.exit_code == 0, done.output
    assert "is not what the network was trained on" in done.output
    (tmp_path / "raw").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "raw" / "x.png")
    assert "python dataset_tool.py --source" in the_error(call(*asked, moved, "--data", tmp_path / "raw"))


@pytest.mark.parametrize(("name", "place"), [("plain", ("D",)), ("disp", ("G", "encoder")),
                                             ("clusters", ("conditioning", "encoder"))])
def test_networks_own_features_are_refused(name: str, place: tuple[str, ...], networks: dict[str, Path],
                                           tmp_path: Path) -> None:
    """Of the discriminator, of the instances, of the clusters."""

    def change(config: dict[str, Any]) -> None:
        for key in place:
            config = config[key]
        config["backbone"] = "tf_efficientnet_lite2"

    # The width of the features is the same, so that the network itself can still be built.
    own = rewritten(networks[name], tmp_path / "own.pkl", change)
    line = the_error(call("--network", own, "--metrics", "fid20_full", "--device", "cpu"))
    assert "trained on tf_efficientnet_lite2 itself" in line


SOURCES = [("dicgan", ["--prior", "vicinal"], "prior"), ("icgan", ["--instances", "5"], "instances"),
           ("disp", ["--prior", "gmm:2", "--trunc", "0.5"], "prior"), ("icgan", ["--ref", "SET"], "ref"),
           ("clusters", [], "unconditional")]


@pytest.mark.parametrize(("name", "args", "mode"), SOURCES, ids=str)
def test_sources_of_conditions(name: str, args: list[str], mode: str, networks: dict[str, Path], tiny_set: Path,
                               tmp_path: Path, quick_detector: None) -> None:
    args = [str(tiny_set) if a == "SET" else a for a in args]
    ranks = ["retrieval"] if mode == "ref" else []
    done = call("--network", networks[name], "--metrics", ",".join(["fid20_full", *ranks]), *args, "--outdir", tmp_path,
                "--device", "cpu")
    assert done.exit_code == 0, (done.output, done.exception)
    (record,) = records(tmp_path, "fid20_full")
    assert record["conditions"]["mode"] == mode
    if mode in ("prior", "instances"):
        assert record["conditions"]["prior_set"]["fingerprint"] == record["dataset"]["fingerprint"]
    if "--trunc" in args:
        assert record["conditions"]["truncation"] == 0.5
    if ranks:
        (found,) = records(tmp_path, "retrieval")
        assert {"retrieval_median_rank", "retrieval_similarity", "retrieval_shuffled"} <= set(found["results"])


def test_priors_are_of_the_training_set_whatever_is_measured_against(
        networks: dict[str, Path], tiny_set: Path, tmp_path: Path, quick_detector: None) -> None:
    make_pictures(tmp_path / "raw", 5, 32)
    done = run_script("dataset_tool.py", "--source", tmp_path / "raw", "--dest", tmp_path / "other.zip",
                      "--resolution", "32")
    assert done.returncode == 0, done.stderr
    asked = ("--metrics", "fid20_full", "--device", "cpu", "--prior", "train", "--outdir", tmp_path, "--data",
             tmp_path / "other.zip", "--network")
    assert call(*asked, networks["dicgan"]).exit_code == 0
    (record,) = records(tmp_path, "fid20_full")
    trained = checkpoint.load(networks["dicgan"], "gan")["config"]["data"]["fingerprint"]
    assert record["conditions"]["prior_set"]["fingerprint"] == trained != record["dataset"]["fingerprint"]
    moved = rewritten(networks["dicgan"], tmp_path / "moved.pkl", lambda c: c["data"].update(path="/gone/set.zip"))
    assert "/gone/set.zip, which is not there any more" in the_error(call(*asked, moved))


@pytest.mark.parametrize(("args", "words"), [
    ([], "--network is missing"),
    (["--network", "nowhere.pkl"], "nowhere.pkl does not exist"),
    (["--network", "SET"], "a checkpoint"),
    (["--network", "dicgan"], "--ldm"),
    (["--network", "dicgan", "--ref", "nowhere"], "nowhere does not exist"),
    (["--network", "dicgan", "--ldm", "dicgan"], "is a generator checkpoint"),
    (["--network", "dicgan", "--ref", "SET", "--ldm", "dicgan"], "--ldm, --ref all say"),
    (["--network", "dicgan", "--prior", "gnn"], "--prior gnn: choose train"),
    (["--network", "icgan", "--prior", "gmm:2"], "--prior gmm:2 draws no classes"),
    (["--network", "dicgan", "--ref", "SET", "--trunc", "0.5"], "--trunc 0.5"),
    (["--network", "dicgan", "--ref", "SET", "--eta", "1"], "--eta belong to --ldm"),
    (["--network", "plain", "--ref", "SET"], "takes no instance latents"),
    (["--network", "plain", "--metrics", "retrieval"], "--ref IMAGES"),
    (["--network", "plain", "--metrics", "eqr50k"], "doesn't measure it"),
    (["--network", "plain", "--class", "0"], "--class 0"),
    (["--network", "plain", "compare", "SET", "SET"], "--network stands before compare"),
    (["--network", "plain", "--data", "nowhere.zip"], "nowhere.zip does not exist"),
    (["--network", "plain", "--data", ""], "--data is empty"),
])
def test_bad_input(args: list[str], words: str, networks: dict[str, Path], tiny_set: Path,
                   quick_detector: None) -> None:
    places: dict[str, Path] = {"SET": tiny_set, **networks}
    line = the_error(call(*(places.get(a, a) for a in args)))
    assert words in line
    assert not list(networks["plain"].parent.glob("metric-*"))
