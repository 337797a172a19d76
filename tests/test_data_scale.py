"""Sets of every packing are one set; archives by their format; cached images, workers, and images that fail."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import make_pictures
from fuzz.samples import tar_of
from PIL import Image
from runs import CPU, assert_equal, new_trainer, open_set, tiny_config

import dataset_tool
from dnnlib import UserError
from dnnlib.images import open_source
from training import decoded_cache, loader
from training.dataset import ImageDataset
from training.loader import batches, default_workers
from training.run_state import list_snapshots, load_state
from training.skipping import Substitutes

KINDS = ("zip", "folder", "lmdb", "shards")


def png(value: int, side: int = 32) -> bytes:
    """A picture of one grey value, in colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def convert(*args: Any) -> tuple[int, str]:
    """Exit code and output of dataset_tool.py."""
    result = CliRunner().invoke(dataset_tool.main, [*map(str, args), "--workers=1"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One labelled set of 12 images in every packing."""
    folder = tmp_path_factory.mktemp("sets")
    raw = make_pictures(folder / "raw", 12, 32, classes=3)
    paths = {"zip": folder / "set.zip", "folder": folder / "set", "lmdb": folder / "set.lmdb",
             "shards": folder / "shards"}
    for kind, path in paths.items():
        flags = ["--shards"] if kind == "shards" else []
        code, output = convert("--source", raw, "--dest", path, "--labels=folders", *flags)
        assert code == 0, output
    return paths


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_packing_is_the_same_set(sets: dict[str, Path], kind: str) -> None:
    for options in ({}, {"max_images": 5}, {"holdout": 0.25, "part": "heldout"}):
        one, two = (ImageDataset(sets[k], use_labels=True, **options) for k in ("zip", kind))  # type: ignore[arg-type]
        assert one.names == two.names
        assert one.fingerprint == two.fingerprint
        assert one.labels is not None
        assert two.labels is not None
        assert (one.labels.tolist(), one.label_dim) == (two.labels.tolist(), two.label_dim)
        for index in range(one.num_images):
            np.testing.assert_array_equal(one.image(index), two.image(index))


@pytest.mark.parametrize("kind", ["lmdb", "shards"])
def test_forked_workers_and_copies_open_it_for_themselves(sets: dict[str, Path], kind: str) -> None:
    dataset, again = (ImageDataset(sets[kind], cache="off") for _ in range(2))
    expected = torch.stack([dataset[index][0] for index in range(12)])
    stream = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch[0] for batch in stream]), expected)
    for copy in (again, pickle.loads(pickle.dumps(dataset))):  # a copy is what spawned workers get
        assert torch.equal(copy[5][0], expected[5])


def test_shards_are_as_webdataset_reads_them(sets: dict[str, Path], tmp_path: Path) -> None:
    assert sorted(os.listdir(sets["shards"])) == ["00000.tar", "dataset.json"]
    with tarfile.open(sets["shards"] / "00000.tar") as shard:
        assert shard.getnames()[:2] == ["img00000000.png", "img00000000.cls"]
        assert [shard.extractfile(f"img{i:08d}.cls").read() for i in (0, 11)] == [b"0", b"2"]  # type: ignore[union-attr]
    (tmp_path / "a").mkdir()  # without dataset.json the files beside the pictures count
    (tmp_path / "a" / "00000.tar").write_bytes((sets["shards"] / "00000.tar").read_bytes())
    bare, whole = ImageDataset(tmp_path / "a", use_labels=True), ImageDataset(sets["zip"], use_labels=True)
    assert (bare.labels.tolist(), bare.fingerprint) == (whole.labels.tolist(), whole.fingerprint)  # type: ignore


def test_new_packings_replace_old_sets_only(sets: dict[str, Path], tmp_path: Path) -> None:
    for dest, flags in (("a", ["--shards"]), ("b.lmdb", [])):
        assert convert("--source", sets["zip"], "--dest", tmp_path / dest, *flags)[0] == 0
        assert "is not empty" in convert("--source", sets["zip"], "--dest", tmp_path / dest, *flags)[1]
        assert convert("--source", sets["zip"], "--dest", tmp_path / dest, "--force", *flags)[0] == 0
        (tmp_path / dest / "diary.txt").write_text("mine")
        assert "won't delete" in convert("--source", sets["zip"], "--dest", tmp_path / dest, "--force", *flags)[1]
    for name in ("x.zip", "x.lmdb"):
        assert "must be a folder" in convert("--source", sets["zip"], "--dest", tmp_path / name, "--shards")[1]
    assert sorted(os.listdir(tmp_path)) == ["a", "b.lmdb"]


# Tars of others.


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_one_tar_with_labels_beside_pictures(tmp_path: Path, kind: int) -> None:
    long = "x" * 90 + "/" + "y" * 50 + ("" if kind == tarfile.USTAR_FORMAT else "é" * 99)
    times = {"mtime": 1.5}  # of a fraction, which needs an extended header
    path = tmp_path / "set.tar"
    path.write_bytes(tar_of([
        ("./", b"", {"type": tarfile.DIRTYPE}), ("./b.png", png(2), times), ("./b.cls", b" 1\n", times),
        (f"{long}.jpg.png", png(3), times), (f"{long}.json", b'{"label": 2, "text": "x"}', {}),
        ("a.png", png(1), {}), ("a.json", b"0", {}), ("a.txt", b"not looked at", {})], kind))
    dataset = ImageDataset(path, use_labels=True)
    assert dataset.names == ["a.png", "b.png", f"{long}.jpg.png"]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2]
    assert [int(dataset.image(index)[0, 0, 0]) for index in range(3)] == [1, 2, 3]
    assert dataset.name == "set"


@pytest.mark.parametrize(("entries", "said"), [
    ([("../a.png", {})], "leads outside"), ([("/a.png", {})], "leads outside"), ([("a/", {"type": b"5"})], "no images"),
    ([("a.png", {}), ("./a.png", {})], "occurs twice"),
    ([("a.png", {"type": tarfile.SYMTYPE, "linkname": "b"})], "is a link"),
    ([("a.png", {"type": tarfile.LNKTYPE, "linkname": "b"})], "is a link"),
    ([("a.png", {"type": tarfile.FIFOTYPE})], "is a link or device"),
])
def test_odd_entries_of_tars_are_refused(tmp_path: Path, entries: list, said: str) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([(name, b"" if "type" in fields else png(0), fields)
                                             for name, fields in entries]))
    with pytest.raises(UserError, match=said):
        open_source(tmp_path / "x.tar")


def test_damaged_tars_and_labels_are_refused(tmp_path: Path) -> None:
    path, sound = tmp_path / "x.tar", tar_of([("a.png", png(0), {}), ("b.png", png(1), {})])
    first = len(png(0)) // 512 * 512 + 1024
    cases = [(sound[:first], "cut off"), (sound[:first + 600], "cut off"), (b"x" * 2048, "not a readable tar"),
             (sound[:150] + b"7" + sound[151:], "check sum"), (b"\x1f\x8b" + sound, "must be unpacked first")]
    for data, said in cases:
        path.write_bytes(data)
        with pytest.raises(UserError, match=said):
            open_source(path)
    for name, text, said in (("b.cls", b"cat", r"b\.cls holds no label"), ("b.json", b"{", r"b\.json holds no label"),
                             ("c.cls", b"1", r"no label for b\.png"), ("b.json", b'{"label": "x"}', "not an integer")):
        path.write_bytes(tar_of([("a.png", png(0), {}), ("a.cls", b"0", {}), ("b.png", png(1), {}), (name, text, {})]))
        with pytest.raises(UserError, match=said):
            ImageDataset(path, use_labels=True)


# Zips and lmdb folders.


def test_zips_of_all_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)  # so that sizes and places are written as those of large zips
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    names = ["z.png", "a.png", "é.png", ".hidden.png", "b/", "b/c.png", "note.txt"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for index, name in enumerate(names):
            data = b"" if name == "b/" else png(index)
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if index % 2 else zipfile.ZIP_STORED)
        archive.comment = b"a comment"
    packed = (tmp_path / "x.zip").read_bytes()
    assert b"PK\6\6" in packed
    (tmp_path / "x.zip").write_bytes(b"#!/bin/sh\n" + packed)
    with open_source(tmp_path / "x.zip") as source:
        assert source.names == ["a.png", "b/c.png", "z.png", "é.png"]
        assert [source.read(name) for name in source.names] == [png(1), png(5), png(0), png(2)]
        assert source.read("a.png", 26) == png(1)[:26]
        assert source.read("a.png", 0) == b""
    at = packed.index(png(0)) + 60
    (tmp_path / "x.zip").write_bytes(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1:])
    with open_source(tmp_path / "x.zip") as source, pytest.raises(UserError, match=r"z\.png: its check sum is wrong"):
        source.read("z.png")
    (tmp_path / "x.zip").write_bytes(packed[:-40])
    with pytest.raises(UserError, match="not a readable zip"):
        open_source(tmp_path / "x.zip")


def test_lmdb_folder_that_shrinks_is_an_error_not_a_crash(sets: dict[str, Path], tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    data = (sets["lmdb"] / "data.mdb").read_bytes()
    (tmp_path / "x" / "data.mdb").write_bytes(data)
    dataset = ImageDataset(tmp_path / "x", cache="off")
    os.truncate(tmp_path / "x" / "data.mdb", len(data) // 2)
    with pytest.raises(UserError, match="has been cut off"):
        dataset.image(0)
    with pytest.raises(UserError, match="has been cut off"):
        ImageDataset(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match="pip install lmdb"):
        ImageDataset(sets["lmdb"])


def test_jpeg_and_webp_of_the_right_size_train_as_they_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), (9, 9, 9)).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0"
                                               b"\0\0\x06\0\0\0\0\0\0\0")  # turned upright: 32x64
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    Image.new("RGB", (32, 64), (9, 9, 9)).save(tmp_path / "b.webp", lossless=True)
    dataset = ImageDataset(tmp_path)
    assert dataset.shape == (3, 64, 32)
    assert [int(dataset.image(index).mean()) for index in range(2)] == [9, 9]


def test_pictures_that_opening_did_not_look_at_are_checked_when_read(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.dataset.CHECKED", 2)
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(png(index, 64 if index == 3 else 32))
    dataset = ImageDataset(tmp_path)
    assert dataset.image(2).shape == (3, 32, 32)
    with pytest.raises(UserError, match=r"3\.png does not decode to its size"):
        dataset.image(3)


# Decoded images, workers.


def test_cache_modes(sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    size = 12 * 3 * 32 * 32
    monkeypatch.setattr(decoded_cache, "available_bytes", lambda: 2 * size)
    assert not ImageDataset(sets["zip"]).cached  # more than a quarter
    dataset = ImageDataset(sets["zip"], cache="on")
    image = dataset.image(3)
    assert np.shares_memory(dataset.image(3), dataset.image(3))  # kept, not decoded anew
    assert np.array_equal(dataset.image(3), image)
    assert not ImageDataset(sets["zip"], cache="off").cached
    monkeypatch.setattr(decoded_cache, "available_bytes", lambda: size - 1)
    with pytest.raises(UserError, match=r"--cache-images on: the decoded images take 36\.0 KiB"):
        ImageDataset(sets["zip"], cache="on")
    with pytest.raises(ValueError, match="none of auto, on, off"):
        ImageDataset(sets["zip"], cache="maybe")


def test_available_memory_heeds_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_cache, "_LIMIT_FILE", tmp_path / "memory.max")
    free = decoded_cache.available_bytes()
    for text, most in (("4096\n", 4096), ("max\n", None)):
        (tmp_path / "memory.max").write_text(text)
        assert decoded_cache.available_bytes() == most or (most is None and free > 1 << 20)


@pytest.mark.parametrize(("cores", "cached", "device", "workers"), [
    (1, False, "cuda", 0), (2, False, "cpu", 1), (16, False, "cpu", 1), (16, True, "cuda", 0), (4, False, "cuda", 3),
    (64, False, "cuda", 8),
])
def test_default_workers(cores: int, cached: bool, device: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_cores", lambda: cores)
    assert default_workers(cached, torch.device(device)) == workers


# Images that fail while training goes on.


@pytest.fixture
def sound(tiny_set: Path, tmp_path: Path) -> Path:
    """The 40 images of `tiny_set` as a folder."""
    with zipfile.ZipFile(tiny_set) as archive:
        archive.extractall(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def breaking(sound: Path) -> Path:
    """The same, one image cut short."""
    damage(sound, 7)
    return sound


def damage(folder: Path, number: int) -> None:
    victim = sorted(folder.rglob("*.png"))[number]
    victim.write_bytes(victim.read_bytes()[:200])


@pytest.mark.parametrize("pair", [None, lambda indices, draws: [(index + 1) % 40 for index in indices]])
def test_a_broken_image_is_replaced_named_once_and_counted(breaking: Path, capsys: pytest.CaptureFixture[str],
                                                           pair: Any) -> None:
    def drawn(workers: int) -> tuple[list, float]:
        dataset, replaced = ImageDataset(breaking, use_labels=True), 0.0
        substitutes = Substitutes(dataset, 0, pair)
        got = []
        stream = batches(dataset, 8, 0, 0, CPU, workers, pair, substitutes=substitutes)
        for batch in itertools.islice(stream, 10):  # two epochs
            got.append(batch)
            replaced += substitutes.replaced.sum().item()
        for batch in got:
            for img, label, index in zip(batch.img, batch.labels, batch.indices, strict=True):
                real = int(index) if pair is None else (int(index) + 1) % 40
                assert real != 7
                assert torch.equal(img, loader.to_float(torch.from_numpy(dataset.image(real))))
                assert int(label) == dataset.labels[real]  # type: ignore[index]
        return got, replaced

    (one, count), (two, same) = drawn(0), drawn(2)
    assert count == same == 2
    assert_equal([vars(batch) for batch in one], [vars(batch) for batch in two])
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == 2
    assert all("Warning: image skipped" in line and "img00000007.png is not a readable image" in line for line in lines)


def test_too_many_broken_images_end_training(breaking: Path) -> None:
    for number in (9, 30):
        damage(breaking, number)
    with pytest.raises(UserError, match=r"set: 3 of its 40 images can't be read") as caught:
        list(itertools.islice(batches(ImageDataset(breaking), 8, 0, 0, CPU, 0), 6))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["zip", "shards", "folder"])
def test_a_set_that_is_lost_ends_training(sets: dict[str, Path], tmp_path: Path, kind: str, workers: int) -> None:
    path = tmp_path / sets[kind].name
    assert convert("--source", sets["zip"], "--dest", path, *(["--shards"] if kind == "shards" else []))[0] == 0
    stream = batches(ImageDataset(path, cache="off"), 4, 0, 0, CPU, workers)
    next(stream)
    for file in [path] if path.is_file() else path.rglob("*.*"):
        os.truncate(file, 100)
    with pytest.raises(UserError, match=r"can't be read, the last one because: .*img000000\d\d\.png"):
        list(itertools.islice(stream, 20))


def test_stats_count_skipped_images_and_resume_bit_for_bit(sound: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*args: Any, **options: Any) -> Iterator[Any]:
        damage(sound, 7)
        return batches(*args, **options)

    monkeypatch.setattr("training.training_loop.batches", begin)
    dataset = open_set(sound, "fastgan_demo", cache_images="off")
    config = tiny_config("fastgan_demo", dataset, kimg=0.04, tick=0.008, snap=2, keep=0, mirror=False,
                         cache_images="off", workers=0)

    def stats(run_dir: Path) -> list[dict]:
        lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key.startswith(("Loss/", "Data/"))} for line in lines]

    (tmp_path / "run").mkdir()
    trainer = new_trainer(config, dataset, tmp_path / "run")
    assert trainer.train()
    whole = stats(tmp_path / "run")
    skipped = [line["Data/skipped"] for line in whole]
    assert [entry["num"] for entry in skipped] == [8] * 5
    assert round(sum(entry["num"] * entry["mean"] for entry in skipped)) == 1  # of one epoch
    state = load_state(list_snapshots(tmp_path / "run")[0])
    again = new_trainer(state["config"], open_set(sound, "fastgan_demo", cache_images="off"), tmp_path / "run", state)
    assert again.train()
    assert stats(tmp_path / "run") == whole
    assert_equal(again.run.G.state_dict(), trainer.run.G.state_dict())
