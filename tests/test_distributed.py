"""Several processes: their step is that of one process, their runs resume bit for bit, and lost ones end the others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_script
from processes import CASES, QUICK, RUN, WHOLE, gan_step, ldm_step, quick_detector
from runs import assert_equal

import train
from dnnlib import UserError
from metrics import detectors
from torch_utils import distributed, exchange, launch
from torch_utils.shared_draws import SharedDraws
from training.dataset import ImageDataset
from training.run_state import list_snapshots, load_state
from training.sampling import load_gan

TOLERANCE = 1e-9
OF_METRICS = {"best", "best_nimg", "stale", "measured_nimg", "metric_seconds", "peaks"}  # in progress
# What a process of the multi-node test does: at the first start it begins a run and loses process 1.
WORKER = """
import os, signal, sys
from pathlib import Path
import torch
from torch_utils import distributed, exchange, launch

out, number = Path(sys.argv[1]), int(os.environ["RANK"])
with distributed.joined("cpu"):
    begun = distributed.from_first(lambda: launch.begun_run(out))
    if begun is None:
        if number == 0:
            (out / "00000-run").mkdir()
            (out / "00000-run" / "network-snapshot-000000.pkl").touch()
            launch.sign_run(out / "00000-run")
        distributed.any_true(False)
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    total = exchange.all_sum(torch.tensor([number + 1.0])).item()
    (out / f"process{number}.txt").write_text(f"{begun.name} {total:g} of {distributed.world()}")
"""


@pytest.fixture(scope="module")
def left(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left."""
    folder = tmp_path_factory.mktemp("processes")
    done = run_script("tests/processes.py", tiny_set, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    (folder / "errors.txt").write_text(done.stderr)
    return folder


def steps(left: Path) -> list[dict[str, Any]]:
    return [torch.load(left / f"steps{rank}.pt") for rank in range(2)]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("cfg", CASES if WHOLE else QUICK)
def test_two_processes_take_the_step_of_one(cfg: str, left: Path, tiny_set: Path, tmp_path: Path) -> None:
    """Gradients of every phase in float64: batch norm, whitening, noise, augmentation and adaptive signs included."""
    one, both = gan_step(cfg, tiny_set, tmp_path), [found[cfg] for found in steps(left)]
    assert sorted(torch.cat([two["draws"] for two in both]).tolist()) == one["draws"].tolist()
    for two in both:
        assert len(two["gradients"]) == len(one["gradients"]) >= 2
        for a, b in zip(one["gradients"], two["gradients"], strict=True):
            assert len(a) == len(b) > 0
            assert max(x.abs().max() for x in a) > 1e-5
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(y, x, rtol=0, atol=TOLERANCE)
        for net in ("G", "D", "G_ema"):  # buffers included: running statistics, the mean style
            assert largest_difference(one[net], two[net]) < 1e-8  # Adam enlarges differences of small gradients
        assert two["d_noise"] == one["d_noise"]
        assert (two["loss"].get("ada") or {}) == (one["loss"].get("ada") or {})
    for net in ("G", "D", "G_ema"):
        assert_equal(both[0][net], both[1][net])
    for name, (count, total, _) in one["collector"].items():
        merged = both[0]["collector"][name]
        assert merged[1] / merged[0] == pytest.approx(total / count, abs=1e-9), name
    assert both[1]["collector"] == {}


def test_latent_diffusion_steps_alike(left: Path) -> None:
    """With dropout and hidden classes, whose draws are those of one process, too."""
    one, both = ldm_step(), [found["ldm"] for found in steps(left)]
    for two in both:
        for x, y in zip(one["gradients"][0], two["gradients"][0], strict=True):
            torch.testing.assert_close(y, x, rtol=0, atol=TOLERANCE)
        assert two["heldout"] == pytest.approx(one["heldout"], abs=1e-9)
    assert_equal(both[0]["net"], both[1]["net"])


def test_exchanges(left: Path) -> None:
    for found in (found["exchanges"] for found in steps(left)):
        assert found["rows"].tolist() == [[0, 1], [10, 11], [2, 3], [12, 13]]  # dealt out in turn, so gathered in turn
        assert found["any"] == [True, False]
        assert found["least"] == 4
        assert found["first"] == "of 0"
        assert [g.tolist() for g in found["gradients"]] == [[[2.0, 2.0]], 6.0]
        assert found["problem"] == "on process 1 it rains"
    first, second = (found["exchanges"]["merged"] for found in steps(left))
    assert first == {"x": [4.0, 9.0, 1 + 9 + 4 + 9]}
    assert second == {}


def test_work_is_dealt_out(left: Path) -> None:
    first, second = (found["shared"] for found in steps(left))
    assert first["made"] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert second["made"] == []
    assert first["problem"] == second["problem"] == "number 6 fails on 0"


def test_one_process_exchanges_nothing() -> None:
    gradients = [torch.tensor([1.0, 2.0])]
    assert exchange.average_gradients(gradients, "why") == "why"
    assert gradients[0].tolist() == [1.0, 2.0]
    assert exchange.gather_rows(torch.ones(3, 2)).shape == (3, 2)
    assert distributed.any_true(True, False) == (True, False)
    assert list(range(5))[distributed.share()] == list(range(5))
    assert list(exchange.dealt(exchange.in_batches(range(5), 2, list))) == [[0, 1], [2, 3], [4]]


def test_draws_are_rows_of_the_whole_batch() -> None:
    def draw(rng: torch.Generator, n: int) -> list[torch.Tensor]:
        return [torch.randn(n, 2, generator=rng), torch.rand((), generator=rng), torch.rand((n,), generator=rng),
                torch.randint(1, 9, (n, 1), generator=rng), torch.randint(9, (n,), generator=rng)]

    whole = draw(torch.Generator().manual_seed(3), 6)
    for rank in range(3):
        rng = torch.Generator().manual_seed(3)
        with SharedDraws(rng, rank, 3):
            own = draw(rng, 2)
        for a, b in zip(whole, own, strict=True):
            assert torch.equal(a[rank::3] if a.dim() else a, b)
    with SharedDraws(rng, 0, 3), pytest.raises(AssertionError, match="randperm"):
        torch.randperm(4, generator=rng)


def stats_of(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of stats.jsonl without what depends on the clock, in float32: sums are merged at every snapshot."""
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return [{key: {k: torch.tensor(v).float() for k, v in value.items()} if isinstance(value, dict) else value
             for key, value in line.items() if not key.startswith(("Timing", "Resources", "timestamp"))}
            for line in lines]


def test_runs_of_two_processes_resume_bit_for_bit(left: Path) -> None:
    (whole,), (parts,) = ((left / name).iterdir() for name in ("whole", "parts"))
    assert whole.name == "00000-stylegan2_ada_demo-tiny-gpus2-batch8"
    ends = [load_state(list_snapshots(run_dir)[-1]) for run_dir in (whole, parts)]
    assert ends[0]["versions"]["processes"] == "2"
    for end in ends:
        assert end["progress"]["cur_nimg"] == 40
        end["collector"] = {name: [pytest.approx(x) for x in value] for name, value in end["collector"].items()}
        end["progress"] = {key: value for key, value in end["progress"].items() if key not in OF_METRICS}
    for key in ends[0]:
        if key not in ("collector", "config"):
            assert_equal(ends[1][key], ends[0][key], key)
    assert_equal(stats_of(parts), stats_of(whole))
    assert len(stats_of(whole)) == 2
    events = [path for path in whole.iterdir() if path.name.startswith("events")]
    assert len(events) == 2  # of process 0: the run, and its restart


def test_torchrun_starts_again_where_the_run_was(left: Path) -> None:
    """The same command, started again by torchrun, goes on with the run that it had begun and makes no other."""
    (run_dir,) = (left / "whole").iterdir()
    assert f"Resuming {run_dir} from network-snapshot-000000.pkl, 40 images seen." in (left / "output.txt").read_text()


def test_another_number_of_processes_goes_on(left: Path) -> None:
    """One process takes over from two, and says what changes."""
    state = load_state(list_snapshots(left / "alone")[-1])
    assert state["progress"]["cur_nimg"] == 40
    assert "this run had 2 process(es) and has 1 now" in (left / "output.txt").read_text()
    assert "processes" not in state["versions"]


def records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines of ``metric-*.jsonl`` by metric, without clocks."""
    return {path.stem: [{key: value for key, value in json.loads(line).items() if "time" not in key}
                        for line in path.read_text().splitlines()] for path in folder.glob("metric-*.jsonl")}


def test_metrics_of_two_processes_are_those_of_one(left: Path) -> None:
    """To the bit: batches are composed alike. Features of the real images are cached once."""
    one, two, again = (records(left / name) for name in ("one", "two", "again"))
    assert len(one) == 4
    for found in (two, again):
        assert found.keys() == one.keys()
        for name, (record,) in one.items():
            assert found[name] == [{**record, "num_gpus": 2}]
    assert len(list((left / "cache" / "features").iterdir())) == 2  # images and flips


def test_images_of_two_processes_are_those_of_one(left: Path) -> None:
    names = sorted(path.name for path in (left / "one" / "images").iterdir())
    assert names == [f"seed{seed:04d}.png" for seed in range(3, 13)]
    for name in ("two", "again"):
        assert sorted(path.name for path in (left / name / "images").iterdir()) == names
        for file in [*(f"images/{image}" for image in names), "grid.png"]:
            assert (left / name / file).read_bytes() == (left / "one" / file).read_bytes(), file


def test_bad_input_of_two_processes_is_one_line(left: Path) -> None:
    """An image that only process 1 reads, and a file that neither finds."""
    errors = [line for line in (left / "errors.txt").read_text().splitlines() if "Error" in line]
    assert len(errors) == 2, errors
    assert "picture005.png" in errors[0]
    assert "nowhere.pkl does not exist" in errors[1]


def test_snapshots_are_measured_by_all_processes(left: Path, tiny_set: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two processes writes what one would measure, and all of its processes know what is best."""
    (run_dir,) = (left / "whole").iterdir()
    progress = [torch.load(run_dir / f"progress{rank}.pt") for rank in range(2)]
    assert_equal(progress[0], progress[1])
    stored = records(run_dir)
    assert [record["cur_nimg"] for record in stored["metric-fid20_full"]] == [16, 32, 40]
    values = [record["results"]["fid20_full"] for record in stored["metric-fid20_full"]]
    assert progress[0]["best"] == min(values)
    monkeypatch.setattr(detectors, "load_detector", quick_detector)
    monkeypatch.setenv("DICGAN_CACHE", str(tmp_path))
    snapshot = list_snapshots(run_dir)[-1]
    gan = load_gan(snapshot, torch.device("cpu"))
    evaluate = train.make_evaluate(gan.config, ImageDataset(tiny_set), tmp_path, torch.device("cpu"))
    assert evaluate(gan, snapshot).values["fid20_full"] == values[-1]
    for name, (record,) in records(tmp_path).items():
        assert {**record, "num_gpus": 2} == stored[name][-1]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}


def test_gpus_starts_processes_and_a_killed_one_ends_the_others(tiny_set: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "train.py", "--outdir", tmp_path, "--data", tiny_set, *RUN, "--kimg", "50", "--gpus", "2"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("tick 2"):  # after the first snapshot
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "process 1 of 2 was killed by signal 9" in errors
    assert "Traceback" not in errors
    (run_dir,) = tmp_path.iterdir()
    assert load_state(list_snapshots(run_dir)[-1])["progress"]["cur_nimg"] >= 16


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_nodes_and_a_restart(tmp_path: Path) -> None:
    """torchrun on two loopback addresses, a process each: they meet, one is killed, and both start again."""
    try:
        with socket.socket() as second:
            second.bind(("127.0.0.2", 0))
    except OSError:
        pytest.skip("this machine has no 127.0.0.2")
    (tmp_path / "worker.py").write_text(WORKER)
    nodes = [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node),
         "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port),
         "--local-addr", f"127.0.0.{node + 1}", "--max-restarts", "1", tmp_path / "worker.py", tmp_path],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for port in [free_port()] for node in range(2)]
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "lost contact" in outputs[0]
    for number in range(2):
        assert (tmp_path / f"process{number}.txt").read_text() == "00000-run 3 of 2"


@pytest.mark.parametrize(("batch", "processes"), [(6, 4), (4, 4)])
def test_batches_that_cannot_be_shared_are_refused(batch: int, processes: int) -> None:
    with pytest.raises(UserError, match=f"--batch {batch}: {processes} processes"):
        distributed.check_batch(batch, processes)


def test_gpus_beside_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not launch.wants_launch(None)
    assert not launch.wants_launch(1)
    assert launch.wants_launch(2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.wants_launch(2)
    with pytest.raises(UserError, match="--gpus 4"):
        launch.wants_launch(4)
