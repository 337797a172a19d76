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
from dnnlib.sizes import is_valid_size, suggest_size
from training.dataset import ImageDataset
from training.decoded_cache import PART


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


@pytest.mark.parametrize("cache", ["on", "off"])
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


@pytest.mark.parametrize(("context", "cache"), [("fork", "on"), ("fork", "off"), ("spawn", "on")])
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


@pytest.mark.parametrize("cache", ["on", "off"])
@pytest.mark.parametrize(("width", "height", "aspect"), [(64, 32, (1, 2)), (32, 64, (2, 1)), (32, 32, (1, 1))])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_two_to_one_sets(tmp_path, width, height, aspect, channels, cache):
    images = np.random.RandomState(0).randint(0, 256, (3, height, width, channels), np.uint8)
    (tmp_path / "set").mkdir()
    for index, img in enumerate(images):
        Image.fromarray(img.squeeze()).save(tmp_path / "set" / f"{index}.png")
    dataset = ImageDataset(tmp_path / "set", mirror=True, cache=cache)
    assert (dataset.resolution, dataset.aspect, dataset.channels) == (32, aspect, channels)
    assert dataset.shape == (channels, height, width)
    for _ in range(2):  # the second time from the cache
        for index, img in enumerate(images.transpose(0, 3, 1, 2)):
            assert dataset.image(index).shape == dataset.shape
            np.testing.assert_array_equal(dataset.image(index), img)
            np.testing.assert_array_equal(dataset[index][0], img)
            np.testing.assert_array_equal(dataset[index + 3][0], img[:, :, ::-1])
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[2][0], images[2].transpose(2, 0, 1))


def test_every_grey_value_survives_the_conversion(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(8, 32).repeat(4, axis=0)
    (tmp_path / "raw").mkdir()
    Image.fromarray(values).save(tmp_path / "raw" / "a.png")
    convert("--source", tmp_path / "raw", "--dest", tmp_path / "set.zip", "--color=grey")
    dataset = ImageDataset(tmp_path / "set.zip")
    np.testing.assert_array_equal(dataset.image(0), values[None])
    assert dataset.cached


def test_cache_counts_the_bytes_of_its_images(tmp_path, monkeypatch):
    for mode in ("L", "RGB"):
        (tmp_path / mode).mkdir()
        Image.new(mode, (64, 32)).save(tmp_path / mode / "a.png")
    monkeypatch.setattr("training.decoded_cache.available_bytes", lambda: PART * 64 * 32)
    assert ImageDataset(tmp_path / "L").cached
    assert not ImageDataset(tmp_path / "RGB").cached


@pytest.mark.parametrize(("mode", "size", "why"), [
    ("L", (64, 32), "1.png is 64x32 grey, but 0.png is 64x32 RGB"),
    ("RGB", (32, 64), "1.png is 32x64 RGB, but 0.png is 64x32 RGB"),
])
def test_sets_of_two_kinds_are_refused(tmp_path, mode, size, why):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (64, 32)).save(tmp_path / "set" / "0.png")
    Image.new(mode, size).save(tmp_path / "set" / "1.png")
    with pytest.raises(UserError, match=f"converted first .{why}.: python dataset_tool.py --source"):
        ImageDataset(tmp_path / "set")


@pytest.mark.parametrize(("asked", "nearest"), [
    ((64, 64), (64, 64)), ((65, 64), (64, 64)), ((200, 300), (128, 256)), ((300, 220), (128, 128)),
    ((5000, 100), (128, 64)), ((5, 5), (32, 32)), ((9000, 5000), (2048, 1024)), ((0, 64), (32, 64)),
])
def test_suggested_sizes_are_valid_and_near(asked, nearest):
    assert suggest_size(*asked) == nearest
    assert is_valid_size(*nearest)


def _raw_sets():
    yield "mixed sizes", [(64, 64), (128, 128), (128, 128)], "RGB", "png", 128, False
    yield "wide", [(300, 150), (200, 100)], "RGB", "png", "128x64", False
    yield "tall", [(50, 100)], "RGB", "jpg", "32x64", False
    yield "not all wide", [(300, 150), (300, 151)], "RGB", "png", 128, True
    yield "oblong", [(300, 200), (310, 210), (320, 190)], "RGB", "jpg", 128, True
    yield "not a power of two", [(100, 100)], "RGB", "png", 64, False
    yield "tiny", [(8, 8)], "RGB", "png", 32, False
    yield "huge", [(2048, 2048)], "RGB", "png", 1024, False
    yield "grey of 16 bits", [(64, 64)], "I;16", "png", 64, False
    yield "rgba", [(64, 64)], "RGBA", "png", 64, False
    yield "jpeg of CMYK", [(64, 64)], "CMYK", "jpg", 64, False


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
    width, height = (int(side) for side in (str(resolution).split("x") * 2)[:2])
    assert (dataset.num_images, dataset.shape) == (len(sizes), (3, height, width))
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


@pytest.mark.parametrize(("index", "label", "said"), [
    (5, 3, r"label 3 for 00000/img00000005\.png but 3 classes"),
    (4, -1, r"label of 00000/img00000004\.png is -1, not an integer >= 0"),
    (4, "cat", r"img00000004\.png is 'cat', not an integer >= 0"),
    (4, None, r"no label for 00000/img00000004\.png"),
])
def test_labels_out_of_range_or_missing(converted, index, label, said):
    def change(files):
        content = json.loads(files["dataset.json"])
        content["labels"][index][1] = label
        content["labels"] = [pair for pair in content["labels"] if pair[1] is not None]
        files["dataset.json"] = json.dumps(content).encode()

    rewrite(converted, change)
    with pytest.raises(UserError, match=said):
        ImageDataset(converted, use_labels=True)


def test_two_labels_for_one_image_and_classes_that_are_no_names(converted):
    def change(key, value):
        def put(files):
            content = json.loads(files["dataset.json"])
            files["dataset.json"] = json.dumps({**content, key: value(content[key])}).encode()

        rewrite(converted, put)

    change("labels", lambda labels: [*labels, labels[2]])
    with pytest.raises(UserError, match=r"two labels for 00000/img00000002\.png"):
        ImageDataset(converted, use_labels=True)
    change("labels", lambda labels: labels[:-1])
    assert ImageDataset(converted, use_labels=True).label_dim == 3
    change("classes", lambda _: 3)
    with pytest.raises(UserError, match=r"'classes' in dataset\.json must be a list of names"):
        ImageDataset(converted, use_labels=True)
    change("classes", lambda _: ["a", "b", "c", "d"])  # one of them without an image
    assert ImageDataset(converted, use_labels=True).label_dim == 4


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


# Held-out images.


@pytest.fixture
def paired(tmp_path):
    """16 different images, and of the first 8 a darker, a mirrored or an exact copy: 24 files."""
    folder = tmp_path / "paired"
    folder.mkdir()
    for index in range(16):
        img = Image.fromarray(pixels(index, 6)).resize((32, 32), Image.Resampling.BICUBIC)
        img.save(folder / f"{index:02d}.png")
        if index < 8:
            arr = np.array(img)
            copy = (arr[:, ::-1], arr // 10 * 9, arr)[index % 3]
            Image.fromarray(copy).save(folder / f"copy{index:02d}.png")
    return folder


def picture_of(name):
    """The number of the picture that a file shows."""
    return int(name[-6:-4])


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_duplicates_stay_on_one_side_of_the_split(paired, share):
    train, heldout = (ImageDataset(paired, holdout=share, part=part) for part in ("train", "heldout"))
    assert sorted(train.names + heldout.names) == ImageDataset(paired).names
    assert train.names == sorted(train.names)
    assert not {picture_of(name) for name in train.names} & {picture_of(name) for name in heldout.names}
    assert heldout.num_images == round(24 * share)
    assert any(name.startswith("copy") for name in heldout.names)
    for dataset in (train, heldout):
        np.testing.assert_array_equal(dataset.image(0)[0], np.array(Image.open(paired / dataset.names[0]))[:, :, 0])


def test_split_is_of_the_content_not_of_names_or_packing(tmp_path, paired):
    expected = {picture_of(name) for name in ImageDataset(paired, holdout=0.3, part="heldout").names}
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(paired.iterdir(), reverse=True):
            archive.write(file, file.name)
    one, two = (ImageDataset(path, holdout=0.3) for path in (paired, packed))
    assert (one.names, one.fingerprint) == (two.names, two.fingerprint)
    (tmp_path / "renamed").mkdir()
    for index, file in enumerate(reversed(sorted(paired.iterdir()))):
        with Image.open(file) as img:
            img.save(tmp_path / "renamed" / f"{index:02d}-{picture_of(file.name):02d}.png", compress_level=9)
    renamed = ImageDataset(tmp_path / "renamed", holdout=0.3, part="heldout")
    assert {picture_of(name) for name in renamed.names} == expected


def test_fingerprints_of_parts_differ_and_max_images_takes_from_the_training_part(paired):
    whole, train = ImageDataset(paired), ImageDataset(paired, holdout=0.25)
    heldout = ImageDataset(paired, holdout=0.25, part="heldout")
    assert ImageDataset(paired, holdout=0.0).fingerprint == whole.fingerprint
    assert len({whole.fingerprint, train.fingerprint, heldout.fingerprint}) == 3
    small, large = (ImageDataset(paired, holdout=0.25, max_images=count) for count in (5, 10))
    assert set(small.names) < set(large.names) < set(train.names)
    assert small.num_images == 5
    assert ImageDataset(paired, holdout=0.25, max_images=99).names == train.names


def test_groups_too_large_for_the_share_train(tmp_path, paired):
    for index in range(12):
        (tmp_path / "paired" / f"again{index:02d}-00.png").write_bytes((paired / "00.png").read_bytes())
    with_many = ImageDataset(paired, holdout=0.2, part="heldout")
    assert 0 not in {picture_of(name) for name in with_many.names}
    assert 5 <= with_many.num_images <= 7


@pytest.mark.parametrize("share", [-0.1, 0.91, float("nan")])
def test_shares_out_of_range(paired, share):
    with pytest.raises(UserError, match=r"--holdout .*from 0 to 0\.9"):
        ImageDataset(paired, holdout=share)


def test_sides_that_would_be_too_small(tmp_path, paired):
    with pytest.raises(UserError, match=r"--holdout 0\.05 of .*24 images.* holds out 1 and leaves 23"):
        ImageDataset(paired, holdout=0.05)
    for file in list(paired.iterdir()):
        if picture_of(file.name) != 7:
            file.unlink()
    with pytest.raises(UserError, match="holds out 0 and leaves 2"):
        ImageDataset(paired, holdout=0.5)
    with pytest.raises(UserError, match="without --holdout"):
        ImageDataset(paired, part="heldout")
    with pytest.raises(ValueError, match="'test' is neither"):
        ImageDataset(paired, holdout=0.5, part="test")


def test_a_damaged_image_is_named_by_the_split(converted):
    def cut(files):
        files["00000/img00000002.png"] = files["00000/img00000002.png"][:500]

    rewrite(converted, cut)
    with pytest.raises(UserError, match=r"set\.zip: 00000/img00000002\.png is not a readable image"):
        ImageDataset(converted, holdout=0.5)
