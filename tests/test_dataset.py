"""training.dataset: what an image set yields, caching, fingerprint, and the command printed for raw sets."""

import json
import pickle
import shlex
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import dataset_tool
from dnnlib import UserError
from training.dataset import ImageDataset


def pixels(seed, side=32):
    return np.random.RandomState(seed).randint(0, 256, (side, side, 3), np.uint8)


def convert(*args):
    result = CliRunner().invoke(dataset_tool.main, [*map(str, args), "--workers=1"])
    assert result.exit_code == 0, result.output


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    for index in range(6):
        (folder / "abc"[index // 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(index)).save(folder / "abc"[index // 2] / f"{index}.png")
    return folder


@pytest.fixture
def converted(tmp_path, raw):
    convert("--source", raw, "--dest", tmp_path / "set.zip", "--labels=folders")
    return tmp_path / "set.zip"


def rewrite(path, change):
    """Passes a zip's {name: bytes} through `change` and writes it back."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("cache", [True, False])
def test_items_labels_and_flips(converted, cache):
    dataset = ImageDataset(converted, use_labels=True, mirror=True, cache=cache)
    assert (dataset.name, dataset.resolution, dataset.num_images, dataset.label_dim) == ("set", 32, 6, 3)
    assert len(dataset) == 12
    for _ in range(2):  # the second time from the cache
        for index in range(6):
            img, label, position = dataset[index]
            flipped, flipped_label, flipped_position = dataset[index + 6]
            assert img.dtype == torch.uint8
            np.testing.assert_array_equal(img.permute(1, 2, 0).numpy(), pixels(index))
            assert torch.equal(flipped, img.flip(2))
            assert label == flipped_label == index // 2
            assert (position, flipped_position) == (index, index + 6)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for outside in (-1, 12):
        with pytest.raises(IndexError):
            dataset[outside]


def test_unlabelled_use(converted):
    dataset = ImageDataset(converted)
    assert (dataset.labels, dataset.label_dim, len(dataset)) == (None, 0, 6)
    assert dataset[0][1] == -1


def test_returned_images_are_copies(converted):
    dataset = ImageDataset(converted)
    dataset[0][0].zero_()
    assert dataset[0][0].max() > 0


@pytest.mark.parametrize(("context", "cache"), [("fork", True), ("fork", False), ("spawn", True)])
def test_loader_workers(converted, cache, context):
    dataset = ImageDataset(converted, use_labels=True, mirror=True, cache=cache)
    dataset[3]  # the parent has the zip open and part of the cache filled
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context=context)
    batches = list(loader)
    assert torch.cat([b[2] for b in batches]).tolist() == list(range(12))
    images = torch.cat([b[0] for b in batches])
    for index in range(6):
        np.testing.assert_array_equal(images[index].permute(1, 2, 0).numpy(), pixels(index))
    assert torch.equal(images[6:], images[:6].flip(3))


def test_forked_workers_fill_one_shared_cache(converted):
    dataset = ImageDataset(converted)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork")
    images = torch.cat([batch[0] for batch in loader])
    converted.unlink()  # from here on only the cache can answer
    dataset._source.close()
    assert torch.equal(torch.stack([dataset[i][0] for i in range(6)]), images)


def test_pickles(converted):
    dataset = pickle.loads(pickle.dumps(ImageDataset(converted)))
    np.testing.assert_array_equal(dataset[2][0].permute(1, 2, 0).numpy(), pixels(2))


def test_fingerprint_is_of_the_content(tmp_path, raw, converted):
    first = ImageDataset(converted)
    assert len(first.fingerprint) == 64
    convert("--source", raw, "--dest", tmp_path / "folder", "--labels=folders")
    folder = ImageDataset(tmp_path / "folder", use_labels=True, mirror=True)
    assert folder.fingerprint == first.fingerprint
    prints = {first.fingerprint, ImageDataset(converted, max_images=3).fingerprint}
    convert("--source", raw, "--dest", tmp_path / "unlabelled.zip")
    prints.add(ImageDataset(tmp_path / "unlabelled.zip").fingerprint)

    def swap(files):
        one, two = "00000/img00000000.png", "00000/img00000001.png"
        files[one], files[two] = files[two], files[one]

    rewrite(converted, swap)
    prints.add(ImageDataset(converted).fingerprint)
    assert len(prints) == 4


def test_max_images_is_a_nested_subset(converted):
    small, large = ImageDataset(converted, max_images=2), ImageDataset(converted, max_images=4, use_labels=True)
    assert set(small.names) < set(large.names)
    assert (len(small), len(large), ImageDataset(converted, max_images=99).num_images) == (2, 4, 6)
    assert large.label_dim == 3
    assert large.labels is not None
    assert large.labels.tolist() == [int(name[-5]) // 2 for name in large.names]
    with pytest.raises(UserError, match="at least 1"):
        ImageDataset(converted, max_images=0)


def test_class_count_comes_from_the_whole_set(tmp_path, converted):
    (tmp_path / "s.json").write_text(json.dumps({"part": ["0.png", "2.png"]}))
    convert("--source", converted, "--dest", tmp_path / "part.zip", "--include", f"{tmp_path / 's.json'}:part")
    dataset = ImageDataset(tmp_path / "part.zip", use_labels=True)
    assert (dataset.num_images, dataset.label_dim) == (2, 3)


def _raw_sets():
    yield "mixed", [(64, 64), (128, 128), (128, 128)], "RGB", "png", 128, False
    yield "oblong", [(300, 200), (310, 210), (320, 190)], "RGB", "jpg", 128, True
    yield "not a power of two", [(100, 100)], "RGB", "png", 64, False
    yield "tiny", [(8, 8)], "RGB", "png", 32, False
    yield "huge", [(2048, 2048)], "RGB", "png", 1024, False
    yield "grey", [(64, 64)], "L", "png", 64, False
    yield "rgba", [(64, 64)], "RGBA", "png", 64, False
    yield "jpeg", [(64, 64)], "RGB", "jpg", 64, False


@pytest.mark.parametrize(
    ("sizes", "mode", "kind", "resolution", "crop"), [pytest.param(*c[1:], id=c[0]) for c in _raw_sets()]
)
def test_raw_sets_print_the_command_that_converts_them(tmp_path, sizes, mode, kind, resolution, crop):
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for index, size in enumerate(sizes):
        Image.new(mode, size).save(folder / f"{index}.{kind}")
    with pytest.raises(UserError) as caught:
        ImageDataset(folder)
    message = caught.value.message
    assert "\n" not in message
    command = shlex.split(message[message.index("python dataset_tool.py") :])
    assert f"--resolution={resolution}" in command
    assert ("--transform=center-crop" in command) == crop
    convert(*command[2:])  # the printed command works as it stands
    dest = next(word for word in command if word.startswith("--dest=")).removeprefix("--dest=")
    dataset = ImageDataset(dest)
    assert (dataset.num_images, dataset.resolution) == (len(sizes), resolution)
    with pytest.raises(UserError, match=r"-2\.zip"):  # and never names a file that exists
        ImageDataset(folder)


def test_packed_sets_print_their_command(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"python dataset_tool.py --source=\S+tar.gz --dest=\S+cifar-10-python-conv"):
        ImageDataset(tmp_path / "cifar-10-python.tar.gz")


def test_missing_and_empty_sets(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ImageDataset(tmp_path / "absent.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        ImageDataset(tmp_path / "empty")
    (tmp_path / "junk.zip").write_bytes(b"junk")
    with pytest.raises(UserError, match="not a readable zip"):
        ImageDataset(tmp_path / "junk.zip")
    (tmp_path / "empty" / "a.png").write_bytes(b"junk")
    with pytest.raises(UserError, match="no readable image"):
        ImageDataset(tmp_path / "empty")


def test_label_mismatches(tmp_path, raw, converted):
    convert("--source", raw, "--dest", tmp_path / "plain.zip")
    with pytest.raises(UserError, match=r"has no class labels: .*--labels=folders"):
        ImageDataset(tmp_path / "plain.zip", use_labels=True)

    def drop(files):
        del files["00000/img00000004.png"]

    rewrite(converted, drop)
    with pytest.raises(UserError, match=r"label for 00000/img00000004\.png, which is not in the set"):
        ImageDataset(converted, use_labels=True)
    assert ImageDataset(converted).num_images == 5  # of no matter without labels


def test_a_damaged_image_is_named(converted):
    def cut(files):
        files["00000/img00000002.png"] = files["00000/img00000002.png"][:500]

    rewrite(converted, cut)
    dataset = ImageDataset(converted)
    with pytest.raises(UserError, match=r"set\.zip: 00000/img00000002\.png is not a readable image"):
        dataset[2]
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(UserError, match=r"img00000002\.png"):
        list(loader)
