"""The commands that are killed: training, latent diffusion, conversion, metrics; and what must be true at the end."""

from __future__ import annotations

import abc
import contextlib
import importlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from runs import assert_equal

from faults.harness import Tally, Undisturbed, measure, until_done
from torch_utils import checkpoint

FLAGS = ["--cfg", "dicgan_demo", "--sigma", "0.5", "--latent", "4", "--batch", "4", "--ngf", "2", "--kimg", "0.032",
         "--tick", "0.008", "--snap", "1", "--keep", "2", "--device", "cpu"]
LDM_FLAGS = ["--cfg", "mlp", "--kimg", "0.4", "--tick", "0.1", "--snap", "1", "--batch", "50", "--pictures", "0",
             "--device", "cpu"]
TIMES = ("Timing", "Resources", "timestamp")


def stats_of(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of stats.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in lines]


def ticks_of(run_dir: Path) -> list[int]:
    """Numbers of the ticks that log.txt shows."""
    return [int(number) for number in re.findall(r"^tick (\d+) ", (run_dir / "log.txt").read_text(), re.MULTILINE)]


def board_steps(run_dir: Path, name: str) -> list[int]:
    """Steps at which TensorBoard shows a value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.step for event in EventAccumulator(str(run_dir)).Reload().Scalars(name)]


def snapshots(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("network-snapshot-??????.pkl"))


def same_run(run_dir: Path, whole: Path, kind: str) -> None:
    """A run that was killed and resumed has left what the uninterrupted one has: states to the bit, ticks once."""
    assert [path.name for path in snapshots(run_dir)] == [path.name for path in snapshots(whole)]
    for name in {snapshots(whole)[-1].name, *(path.name for path in whole.glob("best_model.pkl"))}:
        assert_equal(checkpoint.load(run_dir / name, kind), checkpoint.load(whole / name, kind))
    assert stats_of(run_dir) == stats_of(whole)
    assert ticks_of(run_dir) == ticks_of(whole) == list(range(1, len(stats_of(whole)) + 1))
    assert not list(run_dir.glob(".*.tmp")), "temporary files are left"


class Job(abc.ABC):
    """One command: `usual` once, then `check` as often as wanted."""

    def __init__(self, name: str, main: Callable[..., object], folder: Path) -> None:
        self.name, self.main, self.folder = name, main, folder / name
        self.folder.mkdir()
        self.whole, self.parts, self.output = self.folder / "whole", self.folder / "parts", self.folder / "output.txt"
        self.usual: Undisturbed | None = None

    @abc.abstractmethod
    def fresh_args(self, outdir: Path) -> Sequence[str | Path]:
        """Of a start in `outdir`."""

    def next_args(self) -> Sequence[str | Path]:
        """After a kill: nothing of it may be damaged."""
        return self.fresh_args(self.parts)

    @abc.abstractmethod
    def verify(self) -> None:
        """AssertionError where `parts` differs from `whole`."""

    def prepare(self) -> None:
        """The undisturbed command."""
        self.whole.mkdir()
        self.usual = measure(self.main, self.fresh_args(self.whole), self.output, self.whole)

    def check(self, seed: int, kills: int, tally: Tally) -> None:
        """Kills it at most `kills` times, lets it end, and looks at what is there. AssertionError if that is wrong."""
        assert self.usual is not None
        shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir()
        self.output.write_text("")
        rng = random.Random(f"{self.name}/{seed}")
        code = until_done(self.main, self.next_args, self.output, self.parts, self.usual, rng, kills, tally)
        assert code == 0, self.output.read_text()
        assert "Traceback" not in self.output.read_text(), self.output.read_text()
        self.verify()


class Run(Job):
    """A run of train.py or ldm/train.py, which is resumed from its newest snapshot."""

    def __init__(self, name: str, main: Callable[..., object], folder: Path, kind: str,
                 new: Sequence[str | Path]) -> None:
        super().__init__(name, main, folder)
        self.kind, self.new = kind, new

    def fresh_args(self, outdir: Path) -> Sequence[str | Path]:
        return ["--outdir", outdir, *self.new]

    def next_args(self) -> Sequence[str | Path]:
        begun = sorted(self.parts.iterdir())
        for run_dir in begun[:-1]:  # runs that were killed before their first snapshot, never touched again
            assert not snapshots(run_dir)
        if not begun or not snapshots(begun[-1]):
            return self.fresh_args(self.parts)
        for path in begun[-1].glob("*.pkl"):
            checkpoint.load(path, ("gan", "ldm", "latents"))
        return ["--resume", begun[-1]]

    def verify(self) -> None:
        (whole,), run_dir = self.whole.iterdir(), sorted(self.parts.iterdir())[-1]
        same_run(run_dir, whole, self.kind)
        if self.kind == "gan":
            steps = board_steps(run_dir, "Loss/G/loss")
            assert steps == board_steps(whole, "Loss/G/loss")
            for picture in whole.glob("*.png"):
                assert (run_dir / picture.name).read_bytes() == picture.read_bytes(), picture.name


class Conversion(Job):
    """dataset_tool.py: the set is absent or whole."""

    def __init__(self, main: Callable[..., object], folder: Path, source: Path) -> None:
        super().__init__("dataset_tool", main, folder)
        self.source = source

    def fresh_args(self, outdir: Path) -> Sequence[str | Path]:
        return ["--source", self.source, "--dest", outdir / "set.zip", "--resolution", "32", "--force"]

    def next_args(self) -> Sequence[str | Path]:
        if (self.parts / "set.zip").exists():
            self.verify()
        return self.fresh_args(self.parts)

    def verify(self) -> None:
        assert (self.parts / "set.zip").read_bytes() == (self.whole / "set.zip").read_bytes()


class Metrics(Job):
    """calc_metrics.py: every record and every cache is whole, and the values are those of an undisturbed command."""

    def __init__(self, main: Callable[..., object], folder: Path, network: Path, reals: Path) -> None:
        super().__init__("calc_metrics", main, folder)
        self.network, self.reals = network, reals

    def fresh_args(self, outdir: Path) -> Sequence[str | Path]:
        os.environ["DICGAN_CACHE"] = str(outdir / "cache")
        return ["--network", self.network, "--metrics", "fid8_full", "--ref", self.reals, "--outdir", outdir]

    def verify(self) -> None:
        def results(outdir: Path) -> list[dict[str, Any]]:
            lines = (outdir / "metric-fid8_full.jsonl").read_text().splitlines()
            return [json.loads(line)["results"] for line in lines]

        assert results(self.parts)[-1] == results(self.whole)[0]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Processes may only be forked while PyTorch has one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_jobs(folder: Path, pictures: Path, data: Path, reals: Path | None = None) -> list[Job]:
    """All jobs, each run once undisturbed.

    pictures: folder of images; data: the set that was made of them; reals: images for metrics, None = the set.
    """
    for heavy in ("torch.utils.tensorboard", "timm", "metrics.registry", "training.training_loop"):
        importlib.import_module(heavy)  # once, before processes part
    gan = Run("train", importlib.import_module("train").main, folder, "gan", ["--data", data, *FLAGS])
    gan.prepare()
    (run_dir,) = gan.whole.iterdir()
    network = snapshots(run_dir)[-1]
    others: list[Job] = [
        Run("ldm_train", importlib.import_module("ldm.train").main, folder, "ldm", ["--network", network, *LDM_FLAGS]),
        Conversion(importlib.import_module("dataset_tool").main, folder, pictures),
        Metrics(importlib.import_module("calc_metrics").main, folder, network, reals or data),
    ]
    for job in others:
        job.prepare()
    return [gan, *others]
