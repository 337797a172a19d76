"""dataset_tool.py: every kind of source and picture, labels, splits, bad input, atomicity."""

import errno
import gzip
import io
import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import dataset_tool

# The tool turns this warning into an error for itself; without that, decode()'s own check has to refuse.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

ROOT = Path(__file__).resolve().parents[1]
RED, GREEN, BLUE = (220, 30, 30), (30, 220, 30), (30, 30, 220)


def tool(source, dest, *flags):
    """Exit code and everything printed, progress bar excluded."""
    args = ["--source", str(source), "--dest", str(dest), *map(str, flags)]
    if "--workers" not in args:
        args += ["--workers", "1"]
    result = CliRunner().invoke(dataset_tool.main, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, "\n".join(line.rpartition("img/s]")[2] for line in result.output.splitlines())


def refused(source, dest, *flags):
    """The one line printed for a refused call, which must leave nothing behind."""
    before = sorted(dest.parent.iterdir())
    code, output = tool(source, dest, *flags)
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert code == 2, output
    assert len(errors) == 1, output
    assert output.rstrip().endswith(errors[0])
    assert sorted(dest.parent.iterdir()) == before
    return errors[0]


def quadrants(width=48, height=48):
    """Red top left, green top right, blue below."""
    img = np.zeros((height, width, 3), np.uint8)
    img[:, :] = BLUE
    img[: height // 2, : width // 2] = RED
    img[: height // 2, width // 2 :] = GREEN
    return Image.fromarray(img)


def noise(side=32, seed=0, height=None):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height or side, side, 3), np.uint8))


def save(img, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    img.save(path, **options)


def read_set(path, mode="RGB"):
    """Arrays and dataset.json of a converted zip or folder."""
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    else:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(files.pop("dataset.json"))
    images = {}
    for name, data in files.items():
        with Image.open(io.BytesIO(data)) as img:
            assert (img.format, img.mode) == ("PNG", mode)
            images[name] = np.array(img)
    return images, meta


@pytest.fixture
def photos(tmp_path):
    """Six 32 px images in nested class folders."""
    folder = tmp_path / "photos"
    for index, name in enumerate(("cat/a", "cat/deep/b", "dog/c", "dog/d", "emu/e", "emu/f")):
        save(noise(seed=index), folder / f"{name}.png")
    return folder


def pack(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_only_pixels_are_kept(tmp_path: Path) -> None:
    """No colour profile, camera or comment, which differ between sources of the same picture."""
    (tmp_path / "raw").mkdir()
    exif = Image.Exif()
    exif[0x010F] = "camera"
    noise(32).save(tmp_path / "raw" / "a.png", icc_profile=b"profile", exif=exif, dpi=(72, 72))
    assert tool(tmp_path / "raw", tmp_path / "a.zip")[0] == 0
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".png"))
        data = archive.read(name)
    assert [kind for kind in (b"iCCP", b"eXIf", b"pHYs", b"tEXt") if kind in data] == []


def test_folder_and_zip_give_the_same_bytes_for_any_worker_count(tmp_path, photos):
    packed = pack(photos, tmp_path / "in.zip")
    for dest, source, workers in (("a.zip", photos, 1), ("b.zip", photos, 3), ("c.zip", packed, 2)):
        assert tool(source, tmp_path / dest, "--workers", workers)[0] == 0
    data = (tmp_path / "a.zip").read_bytes()
    assert (tmp_path / "b.zip").read_bytes() == data
    assert (tmp_path / "c.zip").read_bytes() == data
    images, meta = read_set(tmp_path / "a.zip")
    assert list(images) == [f"00000/img{i:08d}.png" for i in range(6)]
    assert meta["labels"] is None
    assert meta["sources"]["00000/img00000001.png"] == "cat/deep/b.png"
    np.testing.assert_array_equal(images["00000/img00000001.png"], np.array(noise(seed=1)))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_folder_dest_holds_the_same_set(tmp_path, photos):
    assert tool(photos, tmp_path / "a.zip")[0] == 0
    assert tool(photos, tmp_path / "deep" / "er" / "out")[0] == 0
    folder, archive = read_set(tmp_path / "deep" / "er" / "out"), read_set(tmp_path / "a.zip")
    assert folder[1] == archive[1]
    assert all((folder[0][name] == archive[0][name]).all() for name in archive[0])
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["out"]


def _encodings():
    img = quadrants()
    grey16 = np.asarray(img.convert("L")).astype(np.uint16) * 257
    rgba = img.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.repeat([[255], [0]], 24, axis=0).astype(np.uint8).repeat(48, axis=1)))
    other = Image.new("RGB", img.size, (1, 2, 3))
    palette = img.convert("P", palette=Image.Palette.ADAPTIVE)
    yield "grey.png", img.convert("L"), {}, "grey"
    yield "grey16.png", Image.fromarray(grey16), {}, "grey"
    yield "grey16.tif", Image.fromarray(grey16), {}, "grey"
    yield "float.tif", Image.fromarray(np.asarray(img.convert("L")).astype(np.float32) / 255), {}, "grey"
    yield "palette.png", palette, {}, "rgb"
    yield "transparent.gif", palette, {"transparency": palette.getpixel((0, 47))}, "half"
    yield "rgba.png", rgba, {}, "half"
    yield "rgba.webp", rgba, {"lossless": True}, "half"
    yield "cmyk.jpg", img.convert("CMYK"), {"quality": 98}, "rgb"
    yield "cmyk.tif", img.convert("CMYK"), {}, "rgb"
    yield "animated.gif", img, {"save_all": True, "append_images": [other]}, "rgb"
    yield "animated.webp", img, {"save_all": True, "append_images": [other], "lossless": True}, "rgb"
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF value -> how an upright image must be stored
    for value, operation in stored.items():
        exif = Image.Exif()
        exif[0x0112] = value
        turned = img.transpose(Image.Transpose(operation))
        yield f"exif{value}.jpg", turned, {"exif": exif, "quality": 98}, "rgb"
        yield f"exif{value}.tif", turned, {"exif": exif}, "rgb"


@pytest.mark.parametrize(("name", "img", "options", "expected"), [pytest.param(*e, id=e[0]) for e in _encodings()])
def test_every_encoding_becomes_upright_rgb(tmp_path, name, img, options, expected):
    save(img, tmp_path / "in" / name, **options)
    assert tool(tmp_path / "in", tmp_path / "o.zip", "--resolution", 32, "--background", "#0a0b0c")[0] == 0
    (out,) = read_set(tmp_path / "o.zip")[0].values()
    corners = {"top left": out[4, 4], "top right": out[4, 27], "below": out[27, 16]}
    colours = np.array([RED, GREEN, BLUE])
    if expected == "grey":
        colours = np.round(colours @ [0.299, 0.587, 0.114]).repeat(3).reshape(3, 3)
    if expected == "half":
        colours[2] = (10, 11, 12)
    for (where, pixel), colour in zip(corners.items(), colours, strict=True):
        assert np.abs(pixel.astype(int) - colour).max() <= 8, (where, pixel, colour)


def test_transforms_crop_pad_and_letterbox(tmp_path):
    save(Image.fromarray(np.array([[RED] * 16 + [GREEN] * 64 + [BLUE] * 16] * 64, np.uint8)), tmp_path / "in" / "a.png")
    for transform, size in (("center-crop", "32"), ("pad", "32x32"), ("center-crop-wide", "64x32")):
        flags = ("--resolution", size, "--transform", transform, "--background", "yellow")
        assert tool(tmp_path / "in", tmp_path / f"{transform}.zip", *flags)[0] == 0
    crop, pad, wide = (
        next(iter(read_set(tmp_path / f"{t}.zip")[0].values())) for t in ("center-crop", "pad", "center-crop-wide")
    )
    assert (crop == GREEN).all()
    assert pad.shape == (32, 32, 3)
    assert (pad[:5] == (255, 255, 0)).all()  # 96x64 -> 32x21, rows 5..25
    assert (pad[26:] == (255, 255, 0)).all()
    assert (pad[7:24, :2] == RED).all()
    assert wide.shape == (64, 64, 3)
    assert (wide[:16] == 0).all()
    assert (wide[48:] == 0).all()
    assert (wide[16:48, 16:48] == GREEN).all()  # 96x48 is kept of 96x64
    assert (wide[16:48, :8] == RED).all()


@pytest.mark.parametrize(("size", "kept"), [("64x32", (96, 48)), ("32x64", (32, 64)), ("32", (64, 64))])
def test_center_crop_takes_the_shape_of_the_resolution(tmp_path, size, kept):
    picture = noise(96, height=64)
    save(picture, tmp_path / "in" / "a.png")
    code, output = tool(tmp_path / "in", tmp_path / "o.zip", "--resolution", size, "--transform", "center-crop")
    width, height = (int(side) for side in (size.split("x") * 2)[:2])
    assert code == 0
    assert f"1 image of {width}x{height}, no labels" in output
    left, top = (96 - kept[0]) // 2, (64 - kept[1]) // 2
    part = picture.crop((left, top, left + kept[0], top + kept[1]))
    expected = part.resize((width, height), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(read_set(tmp_path / "o.zip")[0]["00000/img00000000.png"], np.array(expected))


@pytest.mark.parametrize(("source", "size", "place"), [
    ((64, 64), "128x64", (32, 0, 96, 64)),
    ((64, 64), "64x128", (0, 32, 64, 96)),
    ((192, 48), "128x64", (0, 16, 128, 48)),
])
def test_pad_fills_up_to_the_shape_of_the_resolution(tmp_path, source, size, place):
    save(Image.new("RGB", source, RED), tmp_path / "in" / "a.png")
    flags = ("--resolution", size, "--transform", "pad", "--background", "#1edc1e")
    assert tool(tmp_path / "in", tmp_path / "o.zip", *flags)[0] == 0
    expected = Image.new("RGB", tuple(int(side) for side in size.split("x")), GREEN)
    expected.paste(RED, place)
    np.testing.assert_array_equal(read_set(tmp_path / "o.zip")[0]["00000/img00000000.png"], np.array(expected))


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_two_to_one_sources_need_no_flags(tmp_path, size):
    picture = noise(size[0], height=size[1])
    save(picture, tmp_path / "in" / "a.png")
    assert tool(tmp_path / "in", tmp_path / "o.zip")[0] == 0
    np.testing.assert_array_equal(read_set(tmp_path / "o.zip")[0]["00000/img00000000.png"], np.array(picture))
    # A transform without --resolution makes squares, of these too.
    assert tool(tmp_path / "in", tmp_path / "p.zip", "--transform", "center-crop")[0] == 0
    assert read_set(tmp_path / "p.zip")[0]["00000/img00000000.png"].shape == (32, 32, 3)


def test_grey_is_the_luma_of_the_colour_set(tmp_path):
    save(noise(100, height=64), tmp_path / "in" / "colour.png")
    values = Image.fromarray(np.arange(2048, dtype=np.int64).reshape(32, 64).astype(np.uint8))
    save(values, tmp_path / "in" / "grey.png")
    flags = ("--resolution", "64x32", "--transform", "pad", "--background", "navy")
    assert tool(tmp_path / "in", tmp_path / "rgb.zip", *flags)[0] == 0
    code, output = tool(tmp_path / "in", tmp_path / "grey.zip", *flags, "--color", "grey")
    assert code == 0
    assert "2 images of 64x32, grey, no labels" in output
    colour, meta = read_set(tmp_path / "rgb.zip")
    grey, grey_meta = read_set(tmp_path / "grey.zip", "L")
    assert grey_meta == meta
    for name, img in colour.items():
        np.testing.assert_array_equal(grey[name], np.array(Image.fromarray(img).convert("L")))
    np.testing.assert_array_equal(grey["00000/img00000001.png"], np.array(values))  # no loss
    # A grey set converts on: to grey unchanged, by default to colour.
    assert tool(tmp_path / "grey.zip", tmp_path / "again.zip", "--color", "grey")[0] == 0
    assert all((read_set(tmp_path / "again.zip", "L")[0][name] == grey[name]).all() for name in grey)
    assert tool(tmp_path / "grey.zip", tmp_path / "back.zip")[0] == 0
    assert all((read_set(tmp_path / "back.zip")[0][name] == grey[name][:, :, None]).all() for name in grey)


def test_small_images_are_enlarged_and_counted(tmp_path):
    save(noise(20), tmp_path / "in" / "a.png")
    save(noise(100), tmp_path / "in" / "b.png")
    code, output = tool(tmp_path / "in", tmp_path / "o.zip", "--resolution", 64)
    assert code == 0
    assert "1 of 2 images were smaller" in output


def _png_header(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


@pytest.fixture
def damaged(photos):
    """`photos` with five unusable files among them; returns their names."""
    whole = (photos / "cat" / "a.png").read_bytes()
    bad = {
        "random.jpg": random.Random(0).randbytes(400),
        "empty.png": b"",
        "half.png": whole[: len(whole) // 2],
        "bomb10k.png": _png_header(10_000),  # between the limit and twice that, where Pillow only warns
        "bomb60k.png": _png_header(60_000),
    }
    for name, data in bad.items():
        (photos / "dog" / name).write_bytes(data)
    return [f"dog/{name}" for name in bad]


def test_unusable_files_are_skipped_and_listed(tmp_path, photos, damaged):
    code, output = tool(photos, tmp_path / "o.zip", "--workers", 2)
    assert code == 0
    assert "Skipped 5 unusable files:" in output
    assert all(f"  {name} " in output for name in damaged)
    images, meta = read_set(tmp_path / "o.zip")
    assert len(images) == 6
    assert not set(damaged) & set(meta["sources"].values())


def test_on_error_fail_stops(tmp_path, photos, damaged):
    assert "dog/bomb10k.png" in refused(photos, tmp_path / "o.zip", "--on-error", "fail", "--workers", 2)


def test_labels_and_max_images_pass_over_skipped_files(tmp_path, photos, damaged):
    assert tool(photos, tmp_path / "o.zip", "--labels", "folders", "--max-images", 5)[0] == 0
    meta = read_set(tmp_path / "o.zip")[1]
    assert [label for _, label in meta["labels"]] == [0, 0, 1, 1, 2]
    assert list(meta["sources"].values())[-1] == "emu/e.png"


def test_nothing_usable(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    assert "none of its 1 images is usable" in refused(tmp_path / "in", tmp_path / "o.zip")


def test_folder_labels_keep_class_names_below_a_common_folder(tmp_path, photos):
    assert tool(tmp_path / "photos", tmp_path / "a.zip", "--labels", "folders")[0] == 0
    outer = tmp_path / "outer"
    outer.mkdir()
    photos.rename(outer / "photos")
    assert tool(outer, tmp_path / "b.zip", "--labels", "folders")[0] == 0
    for name in ("a.zip", "b.zip"):
        meta = read_set(tmp_path / name)[1]
        assert meta["classes"] == ["cat", "dog", "emu"]
        assert [label for _, label in meta["labels"]] == [0, 0, 1, 1, 2, 2]


def test_labels_of_a_converted_set_carry_over_and_sources_stay(tmp_path, photos):
    assert tool(photos, tmp_path / "a.zip", "--labels", "folders")[0] == 0
    (tmp_path / "s.json").write_text(json.dumps({"test": ["f.jpg", "c.png"]}))
    flags = ("--resolution", 64, "--include", f"{tmp_path / 's.json'}:test")
    assert tool(tmp_path / "a.zip", tmp_path / "b.zip", *flags)[0] == 0
    images, meta = read_set(tmp_path / "b.zip")
    assert [img.shape[0] for img in images.values()] == [64, 64]
    assert list(meta["sources"].values()) == ["dog/c.png", "emu/f.png"]
    assert meta["labels"] == [["00000/img00000000.png", 1], ["00000/img00000001.png", 2]]
    assert meta["classes"] == ["cat", "dog", "emu"]
    assert tool(tmp_path / "a.zip", tmp_path / "c.zip", "--labels", "none")[0] == 0
    assert read_set(tmp_path / "c.zip")[1]["labels"] is None


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([["a.png", 0]], "b.png"),
        ([["a.png", 0], ["b.png", 1], ["ghost.png", 1]], "ghost.png"),
        ([["a.png", 0], ["b.png", -1]], "b.png"),
        ([["a.png", 0], ["b.png", 1.5]], "b.png"),
        ([["a.png", 0], ["b.png", True]], "b.png"),
        ([["a.png", 0], ["b.png", 1], ["b.png", 1]], "b.png"),
        ([["a.png", 0], "b.png"], "b.png"),
        ({"a.png": 0}, "dataset.json"),
    ],
)
def test_labels_that_do_not_fit_name_the_file(tmp_path, labels, named):
    for name in ("a.png", "b.png"):
        save(noise(), tmp_path / "in" / name)
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert named in refused(tmp_path / "in", tmp_path / "o.zip")


def test_folder_labels_need_class_folders(tmp_path, photos):
    save(noise(), tmp_path / "single" / "cat" / "a.png")
    assert "one class folder only (cat)" in refused(tmp_path / "single", tmp_path / "o.zip", "--labels", "folders")
    save(noise(), photos / "stray.png")
    assert "stray.png" in refused(photos, tmp_path / "o.zip", "--labels", "folders")


def test_include_reports_missing_and_refuses_unknown_or_ambiguous(tmp_path, photos):
    split = tmp_path / "s.json"
    content = {"rule": "x", "train": ["e.webp", "a.png", "gone.png"], "none": ["gone.png"], "empty": [], "twice": ["c"]}
    split.write_text(json.dumps(content))
    code, output = tool(photos, tmp_path / "o.zip", "--include", f"{split}:train")
    assert code == 0
    assert "not in the source (1): gone.png" in output
    assert list(read_set(tmp_path / "o.zip")[1]["sources"].values()) == ["cat/a.png", "emu/e.png"]
    dest = tmp_path / "p.zip"
    assert "train, none, empty, twice" in refused(photos, dest, "--include", f"{split}:val")
    assert "train, none, empty, twice" in refused(photos, dest, "--include", split)
    assert "gone.png" in refused(photos, dest, "--include", f"{split}:none")
    assert "non-empty list" in refused(photos, dest, "--include", f"{split}:empty")
    assert "cannot read" in refused(photos, dest, "--include", f"{tmp_path / 'absent.json'}:train")
    save(noise(), photos / "cat" / "c.png")
    assert "fits cat/c.png and dog/c.png" in refused(photos, dest, "--include", f"{split}:twice")


def test_size_errors_say_what_to_add(tmp_path):
    folder, dest = tmp_path / "in", tmp_path / "o.zip"
    save(noise(100), folder / "b.png")
    assert "add --resolution=64" in refused(folder, dest)
    save(noise(48, height=32), folder / "a.png")
    assert "a.png is 48x32, not square: add --transform=center-crop or" in refused(folder, dest, "--resolution", 32)
    assert "a.png is 48x32, not 2:1: add --transform=center-crop or" in refused(folder, dest, "--resolution", "64x32")
    assert "a.png is 48x32, not 1:2: add --transform=center-crop or" in refused(folder, dest, "--resolution", "32x64")
    line = refused(folder, dest)
    assert "a.png is 48x32, neither square nor 2:1 or 1:2: add --transform=center-crop or --transform=pad, with" in line
    assert "--resolution=64x32" in line
    save(noise(64), folder / "a.png")
    save(noise(32), folder / "b.png")
    assert "b.png would be 32x32, but others 64x64: add --resolution=32." in refused(folder, dest)
    save(noise(64, height=32), folder / "b.png")
    line = refused(folder, dest)
    assert "b.png would be 64x32, but others 64x64: add --resolution=32 --transform=center-crop." in line
    save(noise(128, height=64), folder / "a.png")
    assert "b.png would be 64x32, but others 128x64: add --resolution=64x32." in refused(folder, dest)
    save(noise(50, height=100), folder / "a.png")
    assert "its short side not a power of two from 32 to 1024: add --resolution=32x64." in refused(folder, dest)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--resolution", "100"), "power of two"),
        (("--resolution", "16"), "power of two"),
        (("--resolution", "2048"), "power of two"),
        (("--resolution", "64by64"), "WIDTHxHEIGHT"),
        (("--resolution", "1024x4096"), "exactly twice it, for example 1024x2048."),
        (("--resolution", "96x32"), "exactly twice it, for example 64x32."),
        (("--resolution", "100x50"), "exactly twice it, for example 64x32."),
        (("--resolution", "64x0"), "exactly twice it, for example 64x32; only --transform=center-crop-wide"),
        (("--resolution", "64x48"), "for example 32; only --transform=center-crop-wide takes others."),
        (("--resolution", "64x48", "--transform", "pad"), "center-crop-wide"),
        (("--resolution", "48x24", "--transform", "center-crop-wide"), "the width must be a power of two"),
        (("--resolution", "64x128", "--transform", "center-crop-wide"), "height"),
        (("--transform", "center-crop-wide"), "needs --resolution"),
        (("--background", "octarine"), "#rrggbb"),
    ],
)
def test_bad_flag_values(tmp_path, photos, flags, said):
    assert said in refused(photos, tmp_path / "o.zip", *flags)


def test_sources_that_are_none(tmp_path):
    dest = tmp_path / "o.zip"
    assert "does not exist" in refused(tmp_path / "absent", dest)
    (tmp_path / "empty").mkdir()
    assert "contains no images" in refused(tmp_path / "empty", dest)
    for name in ("note.txt", "broken.zip", "broken.tar.gz", "x-images-idx3-ubyte.gz", "other.gz"):
        (tmp_path / name).write_bytes(b"nothing useful")
        assert name.removesuffix("images-idx3-ubyte.gz") in refused(tmp_path / name, dest)
    (tmp_path / "lsun").mkdir()
    (tmp_path / "lsun" / "data.mdb").write_bytes(b"nothing useful")
    assert "lmdb" in refused(tmp_path / "lsun", dest)


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/a.png", "C:\\a.png", "..\\a.png"])
def test_zip_entries_that_lead_outside_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr(name, b"x")
    assert "leads outside" in refused(tmp_path / "in.zip", tmp_path / "o.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_zip_entries_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a.png", b"x")
        archive.writestr("a.png", b"y")
    assert "occurs twice" in refused(tmp_path / "in.zip", tmp_path / "o.zip")


def test_a_damaged_zip_entry_is_one_unusable_file(tmp_path, photos):
    packed = pack(photos, tmp_path / "in.zip")
    data = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        at = archive.getinfo("dog/c.png").header_offset
    data[at + 60 : at + 80] = bytes(20)
    packed.write_bytes(data)
    code, output = tool(packed, tmp_path / "o.zip")
    assert code == 0
    assert "Skipped 1 unusable file:" in output
    assert "dog/c.png" in output


def test_hidden_and_resource_fork_files_are_no_images(tmp_path, photos):
    for name in (".DS_Store.png", "cat/._a.png", "__MACOSX/cat/a.png", ".cache/x.png"):
        save(noise(), photos / name)
    assert tool(photos, tmp_path / "o.zip")[0] == 0
    assert len(read_set(tmp_path / "o.zip")[0]) == 6


def _cifar(path, extra=None):
    rng = np.random.RandomState(0)
    batches = {f"data_batch_{n}": rng.randint(0, 256, (3, 3072), np.uint8) for n in (1, 2)}
    with tarfile.open(path, "w:gz") as tar:

        def add(name, content):
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        add("batches.meta", {b"label_names": [b"plane", b"car", b"bird"]})
        for number, (name, images) in enumerate(batches.items()):
            add(name, {b"data": images, b"labels": [number, 2, 0]})
        add("test_batch", {b"data": batches["data_batch_1"], b"labels": [1, 1, 1]})
        if extra is not None:
            add("data_batch_3", extra)
    return batches


def test_cifar(tmp_path):
    batches = _cifar(tmp_path / "cifar-10-python.tar.gz")
    assert tool(tmp_path / "cifar-10-python.tar.gz", tmp_path / "o.zip", "--workers", 2)[0] == 0
    images, meta = read_set(tmp_path / "o.zip")
    assert [label for _, label in meta["labels"]] == [0, 2, 0, 1, 2, 0]
    assert meta["classes"] == ["plane", "car", "bird"]
    expected = batches["data_batch_2"][1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(images["00000/img00000004.png"], expected)
    source = tmp_path / "cifar-10-python.tar.gz"
    assert "no folders" in refused(source, tmp_path / "p.zip", "--labels", "folders")


class _RunsCode:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_cifar_archive_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _cifar(tmp_path / "evil.tar.gz", extra=_RunsCode())
    assert "mkdir, which is not data" in refused(tmp_path / "evil.tar.gz", tmp_path / "o.zip")
    assert not (tmp_path / "pwned").exists()


def test_mnist_is_padded_to_32(tmp_path):
    digits = np.random.RandomState(0).randint(0, 256, (4, 28, 28), np.uint8)
    images_path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(images_path, "wb") as file:
        file.write(struct.pack(">4I", 2051, 4, 28, 28) + digits.tobytes())
    assert "train-labels-idx1-ubyte.gz does not exist" in refused(images_path, tmp_path / "o.zip")
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">2I", 2049, 4) + bytes([3, 1, 0, 2]))
    assert tool(images_path, tmp_path / "o.zip")[0] == 0
    images, meta = read_set(tmp_path / "o.zip")
    assert [label for _, label in meta["labels"]] == [3, 1, 0, 2]
    img = images["00000/img00000002.png"]
    assert img.shape == (32, 32, 3)
    assert tool(images_path, tmp_path / "grey.zip", "--color", "grey")[0] == 0
    grey, grey_meta = read_set(tmp_path / "grey.zip", "L")
    assert grey_meta == meta
    np.testing.assert_array_equal(grey["00000/img00000002.png"], img[:, :, 0])
    np.testing.assert_array_equal(img[2:30, 2:30], digits[2][:, :, None].repeat(3, axis=2))
    assert img[:2].max() == img[:, 30:].max() == 0
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">2I", 2049, 3) + bytes(3))
    assert "do not fit" in refused(images_path, tmp_path / "p.zip")


def test_lsun(tmp_path):
    with lmdb.open(str(tmp_path / "church_lmdb"), map_size=1 << 22) as env, env.begin(write=True) as transaction:
        for index, key in enumerate((b"00ff", b"0a12", b"broken")):
            buffer = io.BytesIO()
            noise(40, seed=index, height=36).save(buffer, "WEBP", lossless=True)
            transaction.put(key, buffer.getvalue() if key != b"broken" else b"x")
    flags = ("--resolution", 32, "--transform", "center-crop", "--workers", 2)
    code, output = tool(tmp_path / "church_lmdb", tmp_path / "o.zip", *flags)
    assert code == 0
    assert "  broken " in output
    images, meta = read_set(tmp_path / "o.zip")
    assert list(meta["sources"].values()) == ["00ff", "0a12"]
    assert meta["labels"] is None
    expected = noise(40, height=36).crop((2, 0, 38, 36)).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images["00000/img00000000.png"], np.array(expected))


def test_existing_dest_needs_force(tmp_path, photos):
    archive, folder = tmp_path / "o.zip", tmp_path / "out"
    archive.write_bytes(b"old")
    assert "--force" in refused(photos, archive)
    assert archive.read_bytes() == b"old"
    assert tool(photos, archive, "--force")[0] == 0
    assert len(read_set(archive)[0]) == 6
    folder.mkdir()
    assert tool(photos, folder)[0] == 0  # an empty folder is free to use
    assert "--force" in refused(photos, folder)
    assert tool(photos, folder, "--force", "--max-images", 2)[0] == 0
    assert len(read_set(folder)[0]) == 2
    (folder / "diary.txt").write_text("mine")
    assert "won't delete" in refused(photos, folder, "--force")
    assert "overlap" in refused(photos, photos / "out", "--force")
    assert "overlap" in refused(archive, archive, "--force")
    assert (folder / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["o.zip", "out"])
def test_full_disk_keeps_what_was_there(tmp_path, photos, monkeypatch, name):
    dest = tmp_path / "place" / name
    dest.parent.mkdir()
    assert tool(photos, dest, "--max-images", 1)[0] == 0
    before = read_set(dest)[1]

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert "the disk is full" in refused(photos, dest, "--force")
    assert read_set(dest)[1] == before


def hear_interrupts() -> None:
    """Undoes an inherited ``trap '' INT``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["o.zip", "out"])
def test_interruption_leaves_nothing(tmp_path, name, number):
    picture = io.BytesIO()
    noise(512).save(picture, "PNG")
    (tmp_path / "in").mkdir()
    for index in range(300):
        (tmp_path / "in" / f"{index}.png").write_bytes(picture.getvalue())
    dest = tmp_path / "place" / name
    dest.parent.mkdir()
    command = [sys.executable, "dataset_tool.py", f"--source={tmp_path / 'in'}", f"--dest={dest}", "--workers=2"]
    # A suite started in the background inherits an ignored SIGINT; the tool shall hear it as from a terminal.
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True,
                               preexec_fn=hear_interrupts)
    deadline = time.monotonic() + 60
    while process.poll() is None and not any(dest.parent.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # into the middle of the work
    assert process.poll() is None
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (1, 2, 143)
    assert b"Traceback" not in errors
    assert list(dest.parent.iterdir()) == []


# check: duplicates and leaks.


def check(*args):
    """Exit code and output of `dataset_tool.py check`."""
    result = CliRunner().invoke(dataset_tool.main, ["check", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def shapes(seed, side=64):
    return noise(6, seed).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def two_sets(tmp_path):
    """train: 5 pictures of several sizes, two of them twice; test.zip: 3 others and a JPEG of a training picture."""
    for index in range(5):
        save(shapes(index, 48 + 8 * index), tmp_path / "train" / f"{index}.png")
    save(shapes(0, 48), tmp_path / "train" / "again.bmp")
    save(shapes(1, 56).transpose(Image.Transpose.FLIP_LEFT_RIGHT), tmp_path / "train" / "flipped.png")
    for index in range(3):
        save(shapes(10 + index), tmp_path / "other" / f"{index}.png")
    save(shapes(3, 72), tmp_path / "other" / "copy.jpg", quality=60)
    return tmp_path / "train", pack(tmp_path / "other", tmp_path / "test.zip")


def test_check_finds_duplicates_and_leaks(tmp_path, two_sets):
    train, test = two_sets
    code, output = check(train, test, "--out", tmp_path / "report.json", "--grid", tmp_path / "closest.png")
    assert code == 1
    leak, within = output.split("Duplicates within a set: 2 groups, 4 images")
    assert leak.startswith("Leaks between the sets: 1 group, 2 images")
    assert f"{train}:3.png" in leak
    assert f"{test}:copy.jpg" in leak
    assert "1.000 (exact)" in within
    assert f"{train}:again.bmp" in within
    assert "(mirrored)" in within
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["sets"] == [{"path": str(train), "images": 7}, {"path": str(test), "images": 4}]
    assert report["threshold"] == 0.9
    found = {(group["kind"], tuple(file["name"] for file in group["files"])) for group in report["groups"]}
    assert found == {("duplicates", ("0.png", "again.bmp")), ("duplicates", ("1.png", "flipped.png")),
                     ("leak", ("3.png", "copy.jpg"))}
    for group in report["groups"]:
        assert group["similarity"] == min(link["similarity"] for link in group["links"]) >= 0.9
    with Image.open(tmp_path / "closest.png") as grid:
        assert grid.width > 3 * 128


def test_check_of_a_clean_set(tmp_path, two_sets):
    _, test = two_sets
    code, output = check(test, "--grid", tmp_path / "closest.png")
    assert (code, output.splitlines()[0]) == (0, "No duplicates among 4 images at a similarity of 0.9 or more.")
    assert f"so {tmp_path / 'closest.png'} was not written" in output
    assert not (tmp_path / "closest.png").exists()


def test_check_threshold_and_the_closest_pair_beneath_it(two_sets):
    train, test = two_sets
    code, output = check(train, test, "--threshold", 1)
    assert code == 1
    assert "Leaks" not in output
    assert "copy.jpg" in output.split("Closest pair beneath 1: 0.9")[1]


def test_check_lists_unreadable_files_and_shortens_long_lists(tmp_path):
    for index in range(12):
        save(shapes(0), tmp_path / "set" / f"{index:02d}.png")
    for index in range(21):
        save(shapes(20 + index, 32), tmp_path / "set" / f"x{index}.png")
        save(shapes(20 + index, 32), tmp_path / "set" / f"y{index}.png")
    (tmp_path / "set" / "broken.png").write_bytes(b"junk")
    code, output = check(tmp_path / "set", "--out", tmp_path / "report.json")
    assert code == 1
    assert "Skipped: " in output
    assert "broken.png is not a readable image" in output
    assert "… and 2 more groups; --out FILE.json lists all" in output
    assert "… and 2 more\n" in output
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert [len(group["files"]) for group in report["groups"]] == [12, *[2] * 21]
    assert len(report["unreadable"]) == 1
    assert report["sets"][0]["images"] == 54


def test_check_refuses_bad_input(tmp_path, two_sets):
    train, test = two_sets
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"junk")
    (tmp_path / "link").symlink_to(train)
    for args, said in [
        ([train, tmp_path / "link"], "is given twice"), ([tmp_path / "absent"], "does not exist"),
        ([tmp_path / "broken", train], "broken contains no readable image"), ([train, "--threshold", 0], "over 0"),
        ([train, "--threshold", "nan"], "over 0"), ([train, "--grid", "a.jpg"], r"name a .png file"),
        ([], "Missing argument"),
    ]:
        code, output = check(*args)
        assert code == 2, output
        assert said in output
    result = CliRunner().invoke(dataset_tool.main, ["--source", str(train), "check", str(test)])
    assert (result.exit_code, "--source belongs to conversion" in result.output) == (2, True)


@pytest.mark.parametrize(("given", "missing"), [([], "--source"), (["--source", "a"], "--dest")])
def test_conversion_still_asks_for_its_paths(given, missing):
    result = CliRunner().invoke(dataset_tool.main, given)
    assert result.exit_code == 2
    assert f"Missing option '{missing}'" in result.output
