"""One filter for every source, one cache entry for every content, and no more memory than is needed."""

from __future__ import annotations

import multiprocessing
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pictures

from dnnlib.images import open_source
from metrics.detectors import Detector
from metrics.features import FeatureCache, collect, set_features
from metrics.image_sets import from_dataset, from_source, from_tensor
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
