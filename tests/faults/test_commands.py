"""Whole commands that are killed, that run out of disk, or that a storm of signals hits; `make soak` for more."""

from __future__ import annotations

import functools
import importlib
import random
import resource
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import make_pictures

from faults.disks import allowed, on_disk
from faults.harness import Tally, run, storm
from faults.jobs import Job, make_jobs, snapshots
from torch_utils import checkpoint

KILLS = [("train", 0), ("train", 1), ("ldm_train", 0), ("dataset_tool", 0), ("dataset_tool", 1), ("calc_metrics", 0)]


@pytest.fixture(scope="module")
def jobs(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    """The commands as the harness knows them, each once undisturbed."""
    folder = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DICGAN_CACHE", str(folder))  # each job sets its own, and this one undoes that
        yield {job.name: job for job in make_jobs(folder, tiny_set.parent / "raw", tiny_set,
                                                  reals=make_pictures(folder / "reals", 8, 32))}


@pytest.mark.parametrize(("name", "seed"), KILLS)
def test_killed_commands_go_on_as_if_nothing_had_happened(name: str, seed: int, jobs: dict[str, Job]) -> None:
    tally = Tally()
    jobs[name].check(seed, kills=2, tally=tally)
    assert tally.kills >= 1


@functools.cache
def mounts_allowed(folder: Path) -> bool:
    """Asked once: `allowed`."""
    return allowed(folder)


def resumed(job: Job, folder: Path, *more: str) -> tuple[Path, list[str | Path]]:
    """The run that a job has left, and arguments that go on with it in `folder`."""
    (whole,) = job.whole.iterdir()
    return whole, ["--resume", folder, *more]


def begun(name: str, jobs: dict[str, Job], folder: Path) -> tuple[Path, list[str | Path]]:
    """Files that are there already, and arguments of a command that writes beside them in `folder`."""
    if name in ("train", "ldm_train"):
        return resumed(jobs[name], folder, "--kimg", "0.04" if name == "train" else "0.5")
    if name != "gen_images":
        return jobs[name].whole, list(jobs[name].fresh_args(folder))
    network = snapshots(next(jobs["train"].whole.iterdir()))[-1]
    return network.parent, ["--network", network, "--instances", "4", "--seeds", "0-9", "--outdir", folder, "--device",
                            "cpu"]


@pytest.mark.parametrize("free", [0, None], ids=["full", "read-only"])
@pytest.mark.parametrize("name", ["train", "ldm_train", "dataset_tool", "calc_metrics", "gen_images"])
def test_no_room_is_one_line_and_harms_nothing(name: str, free: int | None, jobs: dict[str, Job],
                                               tmp_path: Path) -> None:
    """On a disk of the command's own: exit code 2, what was there is as before, no temporary file is left."""
    if not mounts_allowed(tmp_path):
        pytest.skip("this system lets no process mount a file system of its own (unshare)")
    folder, output = tmp_path / "disk", tmp_path / "output.txt"
    folder.mkdir()
    former, args = begun(name, jobs, folder)

    def check(before: dict[str, bytes], after: dict[str, bytes]) -> None:
        assert set(after) - set(before) <= {file for file in after if file.startswith("events.")}
        logs = {"log.txt", "stats.jsonl", "metric-fid8_full.jsonl"} if free is not None else set()
        assert {file for file in before if after[file] != before[file]} <= logs

    main = importlib.import_module({"ldm_train": "ldm.train"}.get(name, name)).main
    code = run(on_disk(main, former, free, check), [folder, *args], output, tmp_path)
    text = output.read_text()
    assert code == 2, text
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("Error: Cannot write ")
    assert ("the disk is full" if free == 0 else "the file system is read-only") in text.splitlines()[-1]


def test_full_disk_leaves_the_snapshots(jobs: dict[str, Job], tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    run_dir, output = tmp_path / "run", tmp_path / "output.txt"
    whole, args = resumed(jobs["train"], run_dir, "--kimg", "0.04")
    shutil.copytree(whole, run_dir)
    before = {path: path.read_bytes() for path in snapshots(run_dir)}
    size = min(len(content) for content in before.values()) // 2

    def limited(args: Sequence[str]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        jobs["train"].main(args)

    assert run(limited, args, output, tmp_path) == 2
    text = output.read_text()
    assert "Error: Cannot write" in text
    assert "Traceback" not in text
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["train", "ldm_train"])
def test_storm_of_sigterm_ends_with_one_saved_state(name: str, jobs: dict[str, Job], tmp_path: Path) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "output.txt"
    whole, args = resumed(jobs[name], run_dir, "--kimg", "1000")
    shutil.copytree(whole, run_dir)
    code, seconds = storm(jobs[name].main, args, output, lambda: output.exists() and "tick 5" in output.read_text(),
                          [signal.SIGTERM], random.Random(0))
    assert code == 3, output.read_text()
    assert seconds < 30
    assert "Traceback" not in output.read_text()
    newest = checkpoint.load(snapshots(run_dir)[-1], ("gan", "ldm"))["progress"]["cur_nimg"]
    assert newest > checkpoint.load(snapshots(whole)[-1], ("gan", "ldm"))["progress"]["cur_nimg"]
    assert not list(run_dir.glob(".*.tmp"))


def test_second_ctrl_c_interrupts_at_once_but_no_second_sigterm(jobs: dict[str, Job], tmp_path: Path) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "output.txt"
    whole, args = resumed(jobs["ldm_train"], run_dir, "--kimg", "1000")
    shutil.copytree(whole, run_dir)
    code, _ = storm(jobs["ldm_train"].main, args, output, lambda: output.exists() and "tick 5" in output.read_text(),
                    [signal.SIGINT, signal.SIGTERM], random.Random(0))
    assert code in (1, 3), output.read_text()
    assert "Traceback" not in output.read_text()
    checkpoint.load(snapshots(run_dir)[-1], "ldm")


@pytest.mark.parametrize("name", ["dataset_tool", "calc_metrics", "gen_images"])
def test_storms_leave_no_half_file(name: str, jobs: dict[str, Job], tmp_path: Path) -> None:
    """What has its final name is whole, whenever the first signal comes."""
    folder, usual, output = tmp_path / "out", tmp_path / "usual", tmp_path / "output.txt"
    main = importlib.import_module(name).main
    for place in (folder, usual):
        place.mkdir()
    assert run(main, begun(name, jobs, usual)[1], output, usual) == 0, output.read_text()
    code, seconds = storm(main, begun(name, jobs, folder)[1], output, lambda: any(folder.iterdir()), [signal.SIGTERM],
                          random.Random(0))
    assert code in (0, 143), output.read_text()  # 0 if it was done before that
    assert seconds < 30
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    for path in folder.glob("*.*"):
        content = path.read_bytes()
        assert content.endswith(b"}\n") if path.suffix == ".jsonl" else content == (usual / path.name).read_bytes()
