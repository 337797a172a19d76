"""One filter for every source, one cache entry for every content, and no more memory than is needed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pictures

from dnnlib import UserError
from dnnlib.fingerprint import set_fingerprint
from dnnlib.images import open_source
from metrics.detectors import Detector
from metrics.features import FeatureCache, collect, set_features
from metrics.image_sets import from_dataset, from_images, from_source, from_tensor
from metrics.registry import evaluate
from torch_utils import checkpoint
from training.dataset import ImageDataset

DIM = 12


def make_detector() -> Detector:
    """A random projection of 8 px images."""
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(3 * 8 * 8, DIM))).float() / 200
    return Detector("efficientnet_lite2", "projection", "0" * 64, DIM, 8, torch.device("cpu"),
                    lambda x: (x.flatten(1) / 10) @ weights)


def test_folder_zip_tensor_and_data_set_give_the_same_features(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 9, 64)
    shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    sets = {"folder": from_source(open_source(folder)), "zip": from_source(open_source(tmp_path / "set.zip")),
            "data set": from_dataset(ImageDataset(tmp_path / "set.zip"), False),
            "mirrored data set": from_dataset(ImageDataset(folder, mirror=True), True)}
    sets["tensor"] = from_tensor(torch.cat(list(sets["folder"].batches(range(9)))), "tensor")
    off, detector = FeatureCache(None, pytest.fail), make_detector()
    found = {name: set_features(images, detector, off, batch_size=4).features for name, images in sets.items()}
    found["stream"] = collect(sets["tensor"].batches(range(9), batch_size=2), detector, [9]).features
    for name, features in found.items():
        torch.testing.assert_close(features, found["folder"], rtol=1e-6, atol=1e-6, msg=name)
    # The 64 px images are really shrunk.
    assert sets["folder"].read(0).shape == (3, 64, 64)


def test_a_converted_set_has_one_fingerprint(tiny_set: Path, tmp_path: Path) -> None:
    """Read as a training set or as any zip: features are cached once."""
    as_images, as_dataset = from_source(open_source(tiny_set)), from_dataset(ImageDataset(tiny_set), False)
    assert as_images.fingerprint == as_dataset.fingerprint
    cache = FeatureCache(tmp_path, pytest.fail)
    expected = set_features(as_dataset, make_detector(), cache).features
    torch.testing.assert_close(set_features(as_images, make_detector(), cache).features, expected, rtol=0, atol=0)
    assert len(list((tmp_path / "features").iterdir())) == 1
    shutil.unpack_archive(tiny_set, tmp_path / "set")
    (tmp_path / "set" / "dataset.json").write_text("{}")
    assert from_source(open_source(tmp_path / "set")).fingerprint != as_images.fingerprint  # labels count
    (tmp_path / "set" / "dataset.json").write_text("no JSON")  # not ours, so no reason to stop
    assert from_source(open_source(tmp_path / "set")).num_images == 40


def test_fingerprints_in_checkpoints_stay_valid(tmp_path: Path) -> None:
    """The formula itself: a change of it would make every trained network's data set a changed one."""
    for name, data in (("b.png", b"two"), ("a.png", b"one"), ("note.txt", b"no image")):
        (tmp_path / name).write_bytes(data)
    source = open_source(tmp_path)

    def expected(lines: list[str]) -> str:
        parts = [json.dumps([name, hashlib.sha256(data).hexdigest()])
                 for name, data in (("a.png", b"one"), ("b.png", b"two"))]
        return hashlib.sha256("".join([*parts, json.dumps(lines)]).encode()).hexdigest()

    assert set_fingerprint(source, source.names, None) == set_fingerprint(source, source.names, {}) == expected([])
    labelled = {"labels": [["b.png", 1], ["a.png", 0]]}
    assert set_fingerprint(source, source.names, labelled) == expected(['["a.png", 0]', '["b.png", 1]'])
    assert set_fingerprint(source, ["a.png"], None) not in (expected([]), set_fingerprint(source, ["b.png"], None))


KEY = {"version": 1, "images": "f"}


def write_and_read(folder: str, number: int, rounds: int, failed: multiprocessing.Queue) -> None:
    """One of several processes that fill one cache; reports what a reader should never meet."""
    lines: list[str] = []
    cache = FeatureCache(folder, lines.append)
    for _ in range(rounds):
        cache.put(KEY, {"features": torch.full((500, DIM), float(number))})
        state = cache.get(KEY)
        values = None if state is None else state["features"].unique().tolist()
        if values is None or len(values) != 1:
            lines.append(f"read {values}")
    failed.put(lines)


def test_concurrent_writers_and_readers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failed: multiprocessing.Queue = context.Queue()
    workers = [context.Process(target=write_and_read, args=(str(tmp_path), k, 25, failed)) for k in range(3)]
    for worker in workers:
        worker.start()
    lines = [line for _ in workers for line in failed.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert lines == []
    assert len(list((tmp_path / "features").iterdir())) == 1  # no temporary files left


@pytest.mark.parametrize("keep", [10, 20])
def test_entries_that_are_not_what_they_say(keep: int, tmp_path: Path) -> None:
    """Whole files under the right name with the right key, as anyone with a shared folder can write them."""
    images = from_tensor(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8)), "some")
    lines: list[str] = []
    cache, detector = FeatureCache(tmp_path, lines.append), make_detector()
    good = set_features(images, detector, cache, keep=keep)
    (file,) = (tmp_path / "features").iterdir()
    state = checkpoint.load(file, "stats")
    bad: list[dict[str, object]] = [{"features": None}, {"features": [1, 2]}, {"features": torch.zeros(keep, DIM - 1)},
                                    {"features": torch.zeros(keep, DIM, dtype=torch.float64)}]
    if keep < 20:
        bad += [{"mean": torch.zeros(DIM)}, {"cov": torch.zeros(DIM, dtype=torch.float64)}]
    for number, change in enumerate(bad):
        checkpoint.save(file, "stats", {**state, **change})
        found = set_features(images, detector, cache, keep=keep)
        torch.testing.assert_close(found.features, good.features)
        torch.testing.assert_close(found.gaussian().covariance(), good.gaussian().covariance())
        assert len(lines) == number + 1
        assert "some are not what they say" in lines[-1]


def test_any_iterable_of_images(tmp_path: Path) -> None:
    shapes = ((3, 8, 8), (1, 20, 10), (3, 5, 9), (3, 5, 9))
    images = [torch.full(shape, 40 * k, dtype=torch.uint8) for k, shape in enumerate(shapes)]
    single = from_images(iter(images), "single")
    mixed = from_images((item for item in (images[0], images[1], torch.stack(images[2:]))), "batches too")
    assert (single.fingerprint, single.num_images) == (mixed.fingerprint, 4)
    assert all(torch.equal(mixed.read(k), image) for k, image in enumerate(images))
    assert from_images(images[:3], "fewer").fingerprint != single.fingerprint
    for wrong in (images[0].float(), images[0][:2], images[0][0]):
        with pytest.raises(ValueError, match="images are uint8"):
            from_images([wrong], "wrong")
    (record,) = evaluate("kid_full", mixed, single, detector=make_detector())
    assert record["num_fake"] == record["num_real"] == 4
    with pytest.raises(UserError, match="nothing holds no images"):
        evaluate("kid_full", from_images([], "nothing"), single, detector=make_detector())


def test_images_are_let_go_as_they_are_measured() -> None:
    """Memory holds a batch or two of images and the features that are asked for, however long the stream."""
    alive: list[weakref.ref] = []
    most = 0

    def stream() -> Iterator[torch.Tensor]:
        nonlocal most
        for _ in range(50):
            batch = torch.zeros(20, 3, 16, 16, dtype=torch.uint8)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            most = max(most, sum(ref() is not None for ref in alive))

    found = collect(stream(), make_detector(), [1000], keep=100)
    assert most <= 2
    assert found.features.shape == (100, DIM)
    assert found.features.untyped_storage().nbytes() == 100 * DIM * 4
    assert found.gaussian(1000).count == 1000
