"""What keeps a run directory whole: locks, logs, held signals, lost loader workers, rollbacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from runs import new_trainer, open_set, tiny_config

import train as train_script
from dnnlib import UserError
from faults.harness import run
from faults.jobs import FLAGS, snapshots, stats_of
from torch_utils.run_folder import claimed, forget_later, held_signals
from training.logs import opened
from training.run_state import load_state
from training.training_loop import Trainer


def test_read_only_folder_is_one_line(tmp_path: Path) -> None:
    def as_nobody(args: Sequence[str]) -> None:
        os.chdir(tmp_path)
        os.chmod(".", 0o555)
        if os.getuid() == 0:
            os.setuid(65534)
        with pytest.raises(UserError, match="permission denied"), opened(Path(), None):
            pass

    output = tmp_path / "output.txt"
    assert run(as_nobody, [], output, tmp_path) == 0, output.read_text()


def test_run_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    (tmp_path / ".network-snapshot-000001.pkl.x.tmp").touch()
    with claimed(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]

        def second(args: Sequence[str]) -> None:
            with pytest.raises(UserError, match="in use by another process"), claimed(tmp_path):
                pass

        assert run(second, [], tmp_path / "output.txt", tmp_path) == 0, (tmp_path / "output.txt").read_text()


def test_log_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    """Ticks and metrics after the snapshot go; what else was said stays, and a line cut short is ended or dropped."""
    log = tmp_path / "log.txt"
    log.write_text("Run directory: x\ntick 1    a\nmetrics 1\ntick 2    b\nmetrics 2\nWarning: c\ntick 3    d\ntick 4")
    lines = "".join(json.dumps({"cur_nimg": n}) + "\n" for n in (10, 20, 30))
    (tmp_path / "metric-x.jsonl").write_text(lines + '{"cur')
    forget_later(tmp_path, {"cur_tick": 2, "cur_nimg": 20})
    assert log.read_text() == "Run directory: x\ntick 1    a\nmetrics 1\ntick 2    b\nmetrics 2\nWarning: c\n"
    assert len((tmp_path / "metric-x.jsonl").read_text().splitlines()) == 2
    forget_later(tmp_path, {"cur_tick": 2, "cur_nimg": 20, "unfinished": True})
    assert "metrics 2" not in log.read_text()
    assert len((tmp_path / "metric-x.jsonl").read_text().splitlines()) == 1


def test_signal_storm_waits_for_the_snapshot() -> None:
    """Fifty signals inside the block are one after it."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with held_signals():
            for _ in range(50):
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


LOST_WORKERS = """
import multiprocessing, os, sys
import torch
from dnnlib import UserError
from training import loader
from training.dataset import ImageDataset

loader.PATIENCE = 1.0
dataset = ImageDataset(sys.argv[1])
stream = loader.batches(dataset, 4, 0, 0, torch.device("cpu"), 2)
try:
    with loader.lost_workers(dataset):
        next(stream)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, int(sys.argv[2]))
        while True:
            next(stream)
except UserError as error:
    print(error.message)
    sys.exit(2)
"""


@pytest.mark.parametrize(("number", "word"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "hangs")])
def test_lost_loader_worker_is_one_line(number: int, word: str, tiny_set: Path) -> None:
    # In a process of its own: PyTorch tells of a worker's death wherever the process is just then.
    done = subprocess.run([sys.executable, "-c", LOST_WORKERS, str(tiny_set), str(int(number))], cwd=ROOT,
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert word in done.stdout
    assert done.stdout.count("\n") == 1


class Faulty(Trainer):
    """A trainer with something that isn't finite at the images of `at`, each once."""

    at: list[int]

    def iteration(self, batch: Any, batch_gpu: int) -> None:
        if self.at and self.run.progress["cur_nimg"] == self.at[0]:
            self.at.pop(0)
            self._stop_nonfinite(self.run.loss.phases(0)[0], "the loss Loss/G/loss is nan")
        super().iteration(batch, batch_gpu)


def faulty(tiny_set: Path, run_dir: Path, at: list[int], **changes: Any) -> Faulty:
    dataset = open_set(tiny_set, "fastgan_demo")
    options = {"kimg": 0.032, "tick": 0.004, "snap": 2, "keep": 0, "on_nan": "rollback", "nan_retries": 2, **changes}
    trainer = new_trainer(tiny_config("fastgan_demo", dataset, **options), dataset, run_dir)
    trainer.__class__ = Faulty
    trainer.at = at
    return trainer  # type: ignore[return-value]


def test_rollback_goes_on_by_another_way(tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the newest snapshot with half the learning rates and another order; stats have every tick once."""
    trainer = faulty(tiny_set, tmp_path, [12, 12])
    rate, order = trainer.run.opt_G.param_groups[0]["lr"], trainer.run.seed
    assert trainer.train()
    assert trainer.run.progress["rollbacks"] == 2
    assert trainer.run.opt_G.param_groups[0]["lr"] == rate / 4
    assert trainer.run.seed != order
    stats = stats_of(tmp_path)
    assert [line["Progress/tick"] for line in stats] == list(range(1, 9))
    assert [line.get("Progress/rollbacks", 0) for line in stats] == [0, 0, 2, 2, 2, 2, 2, 2]
    assert "Rollback 2 of 2" in capsys.readouterr().out
    state = load_state(snapshots(tmp_path)[-1])
    assert state["progress"]["rollbacks"] == 2
    resumed = new_trainer(state["config"], trainer.dataset, tmp_path, state)
    assert resumed.run.seed == trainer.run.seed
    assert resumed.run.opt_D.param_groups[0]["lr"] == trainer.run.opt_D.param_groups[0]["lr"]


@pytest.mark.parametrize(("changes", "at"), [({}, [12, 12, 12]), ({"on_nan": "stop"}, [12]), ({}, [0])])
def test_rollbacks_are_few_and_asked_for(changes: dict[str, Any], at: list[int], tiny_set: Path,
                                         tmp_path: Path) -> None:
    """More than --nan-retries, none asked for, no snapshot yet: the run stops with the reason."""
    with pytest.raises(UserError, match=r"Loss/G/loss is nan\. G was not updated|Loss/G/loss is nan"):
        faulty(tiny_set, tmp_path, at, **changes).train()


def test_rollback_is_for_one_process(tiny_set: Path, tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    args = ["--outdir", tmp_path / "x", "--data", tiny_set, *FLAGS, "--gpus", "2", "--on-nan", "rollback", "-n"]
    assert run(train_script.main, args, output, tmp_path) == 2
    assert "--on-nan rollback works in one process" in output.read_text()
