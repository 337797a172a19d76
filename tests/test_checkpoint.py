"""Checkpoints hold data, never code, and are complete or absent."""

from __future__ import annotations

import errno
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script

from dnnlib import UserError, atomic_write, bind, construct, util
from dnnlib.util import format_time
from torch_utils import checkpoint
from torch_utils.ema import ema_beta, ema_update
from torch_utils.inert_files import read_inert
from torch_utils.rng import generator, sample_normal
from torch_utils.stats import Collector, JsonLines

STATE = {"net": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)},
         "optimizer": {"state": {0: {"step": torch.tensor(1.0)}, 1: {}}, "betas": (0.0, 0.99),
                       "flags": [None, True, "x", 2]}}


class Payload:
    """Unpickles by running code: what a hostile checkpoint does."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch HACKED",)


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pkl", "gan", STATE)
    loaded = checkpoint.load(tmp_path / "a.pkl", "gan")
    assert torch.equal(loaded["net"]["w"], STATE["net"]["w"])
    assert loaded["optimizer"]["betas"] == (0.0, 0.99)
    assert list(loaded["optimizer"]["state"]) == [0, 1]
    assert loaded["optimizer"]["flags"] == [None, True, "x", 2]
    raw = torch.load(tmp_path / "a.pkl", weights_only=True)
    assert set(raw) == {"format", "kind", "json", "tensors"}
    with pytest.raises(TypeError, match="can't hold"):
        checkpoint.save(tmp_path / "b.pkl", "gan", {"x": object()})


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"junk", b"PK\x03\x04broken", pickle.dumps({"G": 1})])
def test_foreign_files_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pkl"):
        checkpoint.load(tmp_path / "x.pkl", "gan")


@pytest.mark.parametrize("wrap", ["plain", "torch", "nested"])
def test_code_in_a_checkpoint_never_runs(wrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    if wrap == "plain":
        path.write_bytes(pickle.dumps(Payload()))
    else:
        torch.save(Payload() if wrap == "torch" else {"format": checkpoint.FORMAT, "kind": "gan", "json": "{}",
                                                      "tensors": [Payload()]}, path)
    with pytest.raises(UserError, match="never run"):
        checkpoint.load(path, "gan")
    assert not (tmp_path / "HACKED").exists()
    done = run_script(ROOT / "gen_images.py", "--network", path, "--seeds", "0", "--outdir", tmp_path / "o",
                      cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_truncated_checkpoint_is_one_line(share: float, tmp_path: Path) -> None:
    path = tmp_path / "t.pkl"
    checkpoint.save(path, "gan", {"w": torch.randn(1000)})
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(UserError, match=r"t\.pkl"):
        checkpoint.load(path, "gan")


def test_wrong_kind_says_what_it_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "l.pkl", "ldm", {"a": 1})
    with pytest.raises(UserError, match=r"latent diffusion checkpoint.*generator checkpoint"):
        checkpoint.load(tmp_path / "l.pkl", "gan")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "none.pkl", "gan")


def test_a_part_of_two_sizes_is_refused(tmp_path: Path) -> None:
    """zipfile would ask for as much memory as the table of contents says, and only then look how much is there."""
    path = tmp_path / "snapshot.pkl"
    checkpoint.save(path, "latents", {"latents": torch.zeros(2)})
    data = path.read_bytes()
    for entry in re.finditer(b"PK\1\2", data):  # of the table of contents
        data = data[:entry.start() + 20] + b"\xff\xff\xff\x7f" + data[entry.start() + 24:]  # its compressed size
    path.write_bytes(data)
    with pytest.raises(UserError, match="two sizes"):
        checkpoint.load(path, "latents")
    with pytest.raises(UserError, match="two sizes"):
        read_inert(path)


def test_damaged_table_of_contents(tmp_path: Path) -> None:
    for text in ('{"$tensor": 7}', "[", '{"x": 1}', "3"):
        torch.save({"format": checkpoint.FORMAT, "kind": "gan", "json": text, "tensors": []}, tmp_path / "d.pkl")
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(tmp_path / "d.pkl", "gan")


def test_atomic_write_finds_what_a_signal_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes between the making of the temporary file and the next line."""
    def cut_off(path: Path, mode: str) -> None:
        open(path, mode).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(util, "open", cut_off, raising=False)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file"):
        pytest.fail("it was yielded")
    assert not list(tmp_path.iterdir())


def test_atomic_write_leaves_no_trace_of_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(b"old")

    def fail_half_way(error: Exception) -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(UserError, match="full"):
        fail_half_way(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ValueError, match="x"):
        fail_half_way(ValueError("x"))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin"]


def test_weights_hash_sees_every_change() -> None:
    net = torch.nn.Linear(3, 3)
    first = checkpoint.weights_hash(net.state_dict())
    assert first == checkpoint.weights_hash(dict(reversed(net.state_dict().items())))
    with torch.no_grad():
        net.bias[0] += 1e-6
    assert first != checkpoint.weights_hash(net.state_dict())


def test_sample_noise_does_not_depend_on_the_batch() -> None:
    both = sample_normal([3, 7], (2, 2), "eps")
    assert torch.equal(both[1:], sample_normal([7], (2, 2), "eps"))
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both, sample_normal([3, 7], (2, 2), "z"))
    assert torch.equal(torch.randn(3, generator=generator(1, "a")), torch.randn(3, generator=generator(1, "a")))


def test_ema_half_life_and_buffers() -> None:
    assert ema_beta(100, 10**9, half_life_kimg=0.1, rampup=None) == pytest.approx(0.5)
    assert ema_beta(100, 1000, half_life_kimg=10, rampup=0.05) == pytest.approx(0.25)
    ema, net = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    net.weight.data.fill_(3.0)
    net.running_mean.fill_(5.0)
    ema_update(ema, net, 0.75)
    assert ema.weight.tolist() == [1.5, 1.5]
    assert ema.running_mean.tolist() == [5.0, 5.0]


def test_collector_and_lines(tmp_path: Path) -> None:
    collector = Collector()
    collector.report("a", torch.tensor([1.0, 3.0]))
    saved = collector.state_dict()
    collector.report("a", 5.0)
    assert collector.pop()["a"] == {"num": 3, "mean": 3.0, "std": pytest.approx((8 / 3) ** 0.5)}
    collector.load_state_dict(saved)
    assert collector.pop()["a"]["mean"] == 2.0
    lines = JsonLines(tmp_path / "s.jsonl", 0)
    for i in range(3):
        lines.append({"i": i})
    JsonLines(tmp_path / "s.jsonl", 2).append({"i": 9})
    kept = [line.split(",")[0] for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert kept == ['{"i": 0', '{"i": 1', '{"i": 9']


def target(a: int, b: int = 2) -> tuple[int, int]:
    """Something to bind."""
    return a, b


def test_binding_is_strict() -> None:
    assert bind(target, {"a": 1}) == {"a": 1, "b": 2}
    with pytest.raises(UserError, match="no option c"):
        bind(target, {"a": 1, "c": 3})
    with pytest.raises(UserError, match="needs a"):
        bind(target, {})
    assert construct({"class_name": "training.conditioning.base.Conditioning"}, c_dim=3).classes == 3
    for name in ("dnnlib.nothing", "nowhere.at.all", "plain"):
        with pytest.raises(UserError, match="does not exist"):
            construct({"class_name": name})
    assert format_time(90061) == "1d 01h"
