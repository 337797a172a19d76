"""Files from strangers: nothing in them runs, nothing hangs or fills the memory, and every refusal is one line.

The mutated and hand-made files are in ``tests/fuzz``; a few hundred of them are opened here, in a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from fuzz import samples
from fuzz.harness import Report, run
from fuzz.mutate import mutate_bytes, rezip, unzip
from fuzz.pickles import Payload
from PIL import Image

from dnnlib import UserError, bind, construct
from dnnlib.build_limit import MAX_MODULES, limit_for, limited
from dnnlib.images import decode, open_source
from dnnlib.util import MAX_MESSAGE, one_line, parse_json
from ldm.schedule import alpha_bars
from torch_utils import checkpoint, checkpoint_file
from torch_utils.inert_data import Damaged, Unsafe
from torch_utils.weights_file import read_weights
from training.config_checks import fits, odd_part
from training.report_data import images_seen, read_run, training_time

MUTATED = {"checkpoint": 40, "latents": 40, "prior": 40, "stats": 30, "zip": 60, "tar": 60, "image": 80,
           "labels": 50, "archive": 60, "run": 50, "features": 50}
ATTACKED = tuple(MUTATED)


@pytest.fixture(scope="module")
def reports() -> dict[tuple[str, str], Report]:
    """What became of the files of each kind, by kind and mode."""
    jobs = [(kind, "attacks", 0, 0) for kind in ATTACKED] + [(kind, "mutations", 0, n) for kind, n in MUTATED.items()]
    return {job[:2]: report for job, report in run(jobs)}


@pytest.mark.parametrize("kind", ATTACKED)
def test_hand_made_attacks_are_refused_in_one_line(kind: str, reports: dict[tuple[str, str], Report]) -> None:
    report = reports[kind, "attacks"]
    assert not report.details
    assert not report.accepted
    assert len(report.messages) >= 7
    assert all(message.isprintable() and len(message) < 12 * MAX_MESSAGE for message in report.messages.values())
    assert report.grown < 400 << 10, "KiB: none of the bombs went off"


@pytest.mark.parametrize("kind", MUTATED)
def test_mutated_files_are_read_or_refused(kind: str, reports: dict[tuple[str, str], Report]) -> None:
    report = reports[kind, "mutations"]
    assert not report.details
    assert report.counts.total() == MUTATED[kind]
    # Mutations that all break the container, or all leave it whole, would test nothing.
    assert report.counts["accepted"] >= 2
    assert report.counts["refused"] >= 10


def test_the_watch_sees_what_it_is_there_for(tmp_path: Path) -> None:
    code = f"""
import os, sys, types
from pathlib import Path
from fuzz import worker
from dnnlib import UserError
def fail(path): raise UserError("no\\nway")
def loop(path):
    while True: pass
def fill(path): bytearray(1 << 62)
def swallow(path):
    try: bytearray(1 << 62)
    except MemoryError as error: raise UserError("truncated") from error
def write(path): open({str(tmp_path / "x")!r}, "w").close()
def odd(path): import antigravity
worker.CPU_SECONDS = 0.2
watch = worker.Watch(Path("/nowhere"))
def call(path): os.system("true")
for act in (lambda path: None, fail, lambda path: 1 / 0, loop, fill, swallow, write, odd, call):
    print(worker.outcome(types.SimpleNamespace(open=act), Path("f"), watch)[0])
"""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, "BROWSER": "true"},
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["accepted", "refused", "traceback", "hang", "memory", "memory", "executed",
                                   "executed", "executed"], done.stderr


# Configurations.


@pytest.mark.parametrize("name", [
    "os.system", "builtins.eval", "subprocess.Popen", "antigravity.x", "torch.nn.Linear", "dnnlib.util.format_time",
    "training.logs.Tee", "torch_utils.stats.JsonLines", "training.report.main", "pg_modules.fastgan.nn.Linear",
    "pg_modules.fastgan.dnnlib", "training", "training..loss.x", "pg_modules.backbones.load_backbone", "ldm.train.main",
    "", " os.system", None, 3, ["os.system"]])
def test_only_parts_of_this_project_are_constructed(name: Any) -> None:
    with pytest.raises(UserError, match="does not exist among"):
        construct({"class_name": name, "command": "true"})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(("spec", "words"), [
    ({"ngf": "64"}, "ngf"), ({"ngf": True}, "ngf"), ({"lite": 1}, "lite"), ({"aspect": [1, None]}, "aspect"),
    ({"c_parts": {"label": 1.5}}, "c_parts"), ({"c_parts": [1]}, "c_parts"), ({"ngf": 2**20 + 1}, "no size"),
    ({"aspect": [1, -(2**40)]}, "no size"), ({"c_parts": {"label": 2**21}}, "no size"), ({"ngfs": 1}, "no option")])
def test_values_are_of_their_type_and_size(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        construct({"class_name": "pg_modules.fastgan.Generator", "img_resolution": 32, **spec})
    with pytest.raises(UserError, match="no size"):
        bind(alpha_bars, {"num_steps": 10**9})
    assert construct({"class_name": "pg_modules.fastgan.Generator", "img_resolution": 32, "ngf": 1, "z_dim": 4})


def test_networks_that_are_too_large_are_not_begun() -> None:
    spec = {"class_name": "pg_modules.stylegan2.Generator", "img_resolution": 32, "channel_base": 64, "channel_max": 2,
            "w_dim": 4, "z_dim": 4}
    net = construct(spec)
    with limited(limit_for(net.state_dict())):
        construct(spec)
    with limited(1000), pytest.raises(UserError, match="far larger than its weights"):
        construct(spec)
    with pytest.raises(UserError, match="far larger"):
        construct({**spec, "w_dim": 2**17})  # 2 ** 34 weights in the mapping network alone
    with pytest.raises(UserError, match=f"more than {MAX_MODULES} parts"):
        construct({**spec, "map_layers": 2**18})
    assert torch.zeros(2000).numel() == 2000  # outside, nothing counts


def test_configurations_have_all_parts_of_a_run() -> None:
    config = samples.gan_state("fastgan_lite")["config"]
    assert odd_part(config) is None
    assert odd_part({**config, "data": {**config["data"], "max_images": 7}}) is None
    for table, key, value in (("data", "path", 3), ("data", "num_images", True), ("data", "aspect", [1, 9]),
                              ("optim", "glr", "x"), ("optim", "d_betas", [0.5]), ("optim", "eps", float("nan"))):
        assert odd_part({**config, table: {**config[table], key: value}}) == f"{table}.{key}"
        assert odd_part({**config, table: {k: v for k, v in config[table].items() if k != key}}) == f"{table}.{key}"
        assert odd_part({**config, table: None}) == table


@pytest.mark.parametrize(("cfg", "changes"), [
    ("dicgan", {"encoder": "joint"}), ("icgan", {}), ("stylegan2", {"cond": True}), ("logogan", {})])
def test_generators_fit_their_own_conditioning_only(cfg: str, changes: dict[str, Any]) -> None:
    config = samples.gan_state(cfg, **changes)["config"]
    G, conditioning = construct(config["G"]), construct(config["conditioning"])
    assert fits(config["G"], G, conditioning)
    for odd in (construct({"class_name": "training.conditioning.base.Conditioning", "c_dim": 7}), None,
                construct({"class_name": "training.conditioning.dicgan.DiffusedInstance", "c_dim": 1})):
        assert not fits(config["G"], G, odd)
    assert not fits({**config["G"], "h_channels": 9}, G, conditioning)
    assert not fits(config["G"], torch.nn.Linear(1, 1), conditioning)


# Checkpoints.


def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "n.pkl"
    checkpoint.save(path, "gan", {"w": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 2001] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["tensors"][0].shape == (1000,)  # torch compares no check sums
    with pytest.raises(UserError, match=r"n\.pkl cannot be read .*CRC"):
        checkpoint.load(path, "gan")


def test_all_that_is_saved_comes_back(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.ones(2, 3).to(dtype) for dtype in checkpoint_file.DTYPES.values()}
    tensors |= {"empty": torch.empty(0, 5), "scalar": torch.tensor(3.0), "one": torch.ones(1, 1, 4).transpose(0, 1),
                "piece": torch.arange(12.0).reshape(4, 3)[1:3]}
    checkpoint.save(tmp_path / "t.pkl", "gan", {**tensors, "twice": tensors["piece"]})
    loaded = checkpoint.load(tmp_path / "t.pkl", "gan")
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    for odd in (torch.zeros(2, dtype=torch.cfloat), torch.zeros(2, dtype=torch.float8_e5m2)):
        with pytest.raises(TypeError, match="can't hold tensors"):
            checkpoint.save(tmp_path / "o.pkl", "gan", {"x": odd})
    with pytest.raises(TypeError, match="keys"):
        checkpoint.save(tmp_path / "o.pkl", "gan", {"x": {(1, 2): 3}})


def test_space_is_asked_for_before_a_snapshot_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "n.pkl", "gan", {"a": torch.ones(1000)})
    before = (tmp_path / "n.pkl").read_bytes()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=3000))
    monkeypatch.setattr(checkpoint, "atomic_write", lambda path: pytest.fail("it was begun"))
    with pytest.raises(UserError, match=r"n\.pkl: it needs 3\.9 KiB and the disk has 2\.9 KiB free; free some space"):
        checkpoint.save(tmp_path / "n.pkl", "gan", {"a": torch.zeros(1000)})
    assert (tmp_path / "n.pkl").read_bytes() == before


def test_diverged_weights_are_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "n.pkl", "gan", {"G_ema": {"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")])}})
    with pytest.raises(UserError, match="not finite \\(G_ema/b\\)"):
        checkpoint.load(tmp_path / "n.pkl", "gan")


def test_the_kind_is_told_without_reading_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "n.pkl", "ldm", {"a": torch.ones(2)})
    monkeypatch.setattr(checkpoint_file._Reader, "_values", lambda *_: pytest.fail("a tensor was read"))
    assert checkpoint.kind_of(tmp_path / "n.pkl") == "ldm"


def test_official_pickles_are_told_the_way(tmp_path: Path) -> None:
    (tmp_path / "o.pkl").write_bytes(b"\x80\x04\x95junk")
    with pytest.raises(UserError, match=r"export\.py import-official"):
        checkpoint.load(tmp_path / "o.pkl", "gan")


def test_archives_are_read_by_narrow_rules(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "n.pkl", "gan", {"a": torch.ones(300)})
    parts = list(unzip((tmp_path / "n.pkl").read_bytes()).items())
    for data, error in ((rezip(parts, zipfile.ZIP_DEFLATED), Damaged), (rezip([*parts, parts[-1]]), Damaged),
                        (rezip([("x", b"y")]), Unsafe), (rezip([*parts, ("b/data.pkl", b"")]), Unsafe)):
        (tmp_path / "m.pkl").write_bytes(data)
        with pytest.raises(error):
            checkpoint_file.read(tmp_path / "m.pkl")


# Weights of other networks.


def saved(content: Any, legacy: bool) -> bytes:
    """A file of ``torch.save``, in the zip format or the one before."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


WEIGHTS: dict[str, Any] = {"a": torch.randn(3, 4).T, "b": torch.nn.Parameter(torch.ones(2, dtype=torch.half)),
                           "n": torch.tensor(3), "m": torch.tensor([True, False]), "e": torch.empty(0, 5)}
WEIGHTS["piece"] = torch.arange(12.0).reshape(4, 3)[1:3]


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_those_that_torch_reads(legacy: bool, tmp_path: Path) -> None:
    path, table = tmp_path / "w.pth", OrderedDict(WEIGHTS)
    table._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]  # as of a state dict
    for content in (table, {"state_dict": table, "epoch": 3, "arch": "resnet50"}):
        path.write_bytes(saved(content, legacy))
        found = read_weights(path, "--weights w", "fetch it")
        assert list(found) == list(table)
        for name, tensor in torch.load(path, weights_only=True).get("state_dict", table).items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def weights_attacks(canary: Path) -> dict[str, bytes]:
    """Files of weights that do harm, or hold something else."""
    one = torch.zeros(1000)
    contents = {"call": {"a": Payload(os.system, f"touch {canary}")}, "list": [one], "key": {1: one},
                "number": {"a": 3}, "expanded": {"a": torch.zeros(1).expand(10**6, 10**6)},
                "told-often": {str(i): one for i in range(5000)}, "sparse": {"a": torch.eye(3).to_sparse()}}
    files = {f"{name}-{legacy}": saved(content, legacy) for name, content in contents.items()
             for legacy in (False, True)}
    # A key of nested tuples, with which torch.load(weights_only=True) ends in a segmentation fault.
    deep = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."
    parts = unzip(saved({"a": one}, False))
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    files |= {"deep": rezip(list((parts | {pickled: deep}).items())), "bare-deep": deep, "empty": b"", "text": b"hello"}
    return {**files, "cut": saved(WEIGHTS, True)[:-20], "safe@x.safetensors": b"\xff" * 100}


def test_hostile_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    for name, data in weights_attacks(tmp_path / "canary").items():
        path = tmp_path / name.rpartition("@")[2]
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"^--weights w (cannot be read as weights|is refused: it asks for .*);? .*"
                                            r"fetch it\.$"):
            read_weights(path, "--weights w", "fetch it")
    assert not (tmp_path / "canary").exists()


def test_changed_weights_are_read_or_refused(tmp_path: Path) -> None:
    path, counts = tmp_path / "w.pth", {True: 0, False: 0}
    for seed in range(150):
        rng = random.Random(seed)
        path.write_bytes(mutate_bytes(saved(WEIGHTS, bool(seed % 2)), rng))
        try:
            read_weights(path, "--weights w", "fetch it")
            counts[True] += 1
        except UserError:
            counts[False] += 1
    assert min(counts.values()) >= 10


# Data sets.


def test_pipes_and_devices_in_a_folder_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    with open_source(tmp_path) as source:
        for name in ("a.png", "b.png"):
            with pytest.raises(UserError, match=f"{name} is no regular file"):
                source.read(name)
        with pytest.raises(UserError, match=r"cannot read c\.png"):
            source.read("c.png")


def test_files_larger_than_any_picture_are_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1 << 40)  # sparse
    with open_source(tmp_path) as source, pytest.raises(UserError, match=r"a\.png has 1\.0 TiB, more than the 512"):
        source.read("a.png")


def test_other_formats_than_those_of_pictures_are_unknown() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(eps)) as img:
        assert img.format == "EPS"  # whose pixels Pillow would get from Ghostscript
    with pytest.raises(UserError, match=r"x\.png is not a readable image \(the format is unknown\)"):
        decode(eps, "x.png")


def test_deep_grey_is_scaled_the_same_in_pieces() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(2, 32768)
    data = samples.encoded(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(decode(data, "x")[:, :, 0], np.rint(values / 257))


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[-Infinity]", "[" * 100_000, "{", "\ud800"])
def test_json_is_read_by_the_standard(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json('{"a": [1, {"a": null}]}') == {"a": [1, {"a": None}]}


def test_messages_are_one_line_that_steers_no_terminal() -> None:
    assert UserError("a\n\x1b[2J\u202eb\udc80 · σ “x”").message == r"a\n\x1b[2J\u202eb\udc80 · σ “x”"
    long = one_line("a" * 5000 + "remedy")
    assert len(long) < MAX_MESSAGE + 10
    assert long.endswith("remedy")


def test_labels_of_absurd_numbers_are_refused(tmp_path: Path) -> None:
    from training.dataset import ImageDataset

    pairs = [["00000/img00000000.png", 10**7]]
    path = tmp_path / "s.zip"
    path.write_bytes(rezip([(pairs[0][0], samples.png(0)), ("dataset.json", json.dumps({"labels": pairs}).encode())]))
    with pytest.raises(UserError, match="numbered from 0 to at most 999999"):
        ImageDataset(path, use_labels=True)


# Run directories.


def test_statistics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    for name, content in samples.run_files().items():
        (tmp_path / name).write_bytes(content)
    lines = [{"Progress/kimg": 1, "a": 2.0, "Timing/total_sec": 5}, {"Progress/kimg": float("nan"), "a": "x"},
             {"Progress/kimg": 2, "a": 10**400}, {"Progress/kimg": "3", "a": 1},
             {"Progress/kimg": 4, "a": {"mean": True}}]
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_run(str(tmp_path), "--run")
    assert found.curve("a") == [(1.0, 2.0)]
    assert images_seen(found) == 4000
    assert training_time(found) == "5s"
