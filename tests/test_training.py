"""train.py as a user runs it: files of a run, exact resume, clean interruption, faults."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_script
from runs import CPU, assert_equal, new_trainer, open_set, step, tiny_config

from dnnlib import UserError
from torch_utils import checkpoint
from training.conditioning.base import Batch, Condition
from training.dataset import ImageDataset
from training.loader import EndlessSampler, batches, split
from training.memory import fit_batch, try_step
from training.objective import Phase, Terms
from training.run_state import RunState, list_snapshots, load_state
from training.sampling import live_gan
from training.training_loop import Measured, Trainer

# A run of 30 steps on 80 images (flips included): 1.5 epochs.
FLAGS = ["--cfg", "dicgan_demo", "--sigma", "0.5", "--latent", "4", "--batch", "4", "--ngf", "2", "--kimg", "0.12",
         "--tick", "0.02", "--snap", "100", "--device", "cpu"]


def train(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return run_script("train.py", *args)


def run_dir_of(outdir: Path) -> Path:
    (run_dir,) = outdir.iterdir()
    return run_dir


def stats_of(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of stats.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("Timing", "Resources", "timestamp"))} for line in lines]


@pytest.fixture(scope="module")
def whole_run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with two loader workers."""
    outdir = tmp_path_factory.mktemp("whole")
    done = train("--outdir", outdir, "--data", tiny_set, *FLAGS, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "From a trial pass" in done.stdout  # an ETA before the first batch, and a better one after it
    assert done.stdout.index("would take about") < done.stdout.index("tick 1")
    return run_dir_of(outdir)


def test_files_of_a_run(whole_run: Path) -> None:
    assert whole_run.name == "00000-dicgan_demo-tiny-gpus1-batch4"
    names = {path.name for path in whole_run.iterdir()}
    assert names >= {"training_options.json", "log.txt", "stats.jsonl", "reals.png", "fakes_init.png",
                     "fakes000000.png", "network-snapshot-000000.pkl"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    stats = stats_of(whole_run)
    assert [line["Progress/tick"] for line in stats] == [1, 2, 3, 4, 5, 6]
    for key in ("Latent/perplexity", "Latent/mean_cosine", "Latent/effective_rank", "Latent/retrieval_rank",
                "Loss/G/loss", "Loss/scores/fake", "Loss/scores/real"):
        assert {"num", "mean", "std"} == set(stats[-1][key])


def test_interrupted_run_resumes_bit_for_bit(whole_run: Path, tiny_set: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of an epoch and of a tick, then --resume alone: same weights, optimizer, EMA, stats."""
    process = subprocess.Popen(
        [sys.executable, "train.py", "--outdir", tmp_path, "--data", tiny_set, *FLAGS, "--workers", "2"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("tick 2"):
            process.send_signal(signal.SIGINT)
            break
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    run_dir = run_dir_of(tmp_path)
    assert f"train.py --resume {run_dir}" in output
    interrupted = load_state(list_snapshots(run_dir)[-1])["progress"]["cur_nimg"]
    assert 40 <= interrupted < 120
    done = train("--resume", run_dir)
    assert done.returncode == 0, done.stderr
    assert_equal(load_state(list_snapshots(run_dir)[-1]), load_state(list_snapshots(whole_run)[-1]))
    assert stats_of(run_dir) == stats_of(whole_run)


def test_resumed_run_can_be_made_longer_but_not_different(whole_run: Path) -> None:
    refused = train("--resume", whole_run, "--batch", "8")
    assert refused.returncode == 2
    assert "--batch" in refused.stderr
    shown = train("--resume", whole_run, "--kimg", "1", "--dry-run")
    assert shown.returncode == 0
    assert '"kimg": 1.0' in shown.stdout


def test_dry_run_writes_nothing(tiny_set: Path, tmp_path: Path) -> None:
    done = train("--outdir", tmp_path / "runs", "--data", tiny_set, "--cfg", "dicgan", "--sigma", "0.3", "-n")
    assert done.returncode == 0, done.stderr
    assert '"sigma": 0.3' in done.stdout
    assert not (tmp_path / "runs").exists()


def test_snapshots_of_the_first_version_are_named_as_such(whole_run: Path, tmp_path: Path) -> None:
    state = load_state(list_snapshots(whole_run)[-1])
    del state["config"]["d_noise"]
    checkpoint.save(tmp_path / "old.pkl", "gan", state)
    with pytest.raises(UserError, match="before this version"):
        load_state(tmp_path / "old.pkl")


def test_init_from_starts_at_the_weights(whole_run: Path, tiny_set: Path, tmp_path: Path) -> None:
    snapshot = list_snapshots(whole_run)[-1]
    args = ["--outdir", tmp_path, "--data", tiny_set, "--init-from", snapshot, "--kimg", "0.004", "--device", "cpu"]
    done = train(*args, *[f for f in FLAGS if f != "0.12" and f != "--kimg"])
    assert done.returncode == 0, done.stderr
    before = load_state(snapshot)["G_ema"]
    after = load_state(list_snapshots(run_dir_of(tmp_path))[-1])
    assert after["progress"]["cur_nimg"] == 4
    name = "init.conv.weight"
    moved = (after["G"][name] - before[name]).abs().max()
    assert 0 < moved < 2e-3  # one Adam step of 5e-4
    refused = train("--outdir", tmp_path, "--data", tiny_set, "--init-from", snapshot, "--cfg", "fastgan_demo")
    assert refused.returncode == 2
    assert "--init-from" in refused.stderr


@pytest.mark.parametrize(("args", "words"), [
    (["--outdir", "x", "--data", "SET", "--cfg", "biggan"], ["--cfg biggan", "dicgan_lite"]),
    (["--outdir", "x", "--cfg", "dicgan"], ["--data"]),
    (["--outdir", "x", "--data", "nowhere.zip", "--cfg", "dicgan"], ["nowhere.zip"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "dicgan", "--sigma", "1"], ["--sigma 1", "[0, 1)"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "dicgan", "--sigma", "much"], ["--sigma"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "dicgan", "--sigma", "auto:x"], ["--sigma auto:x"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "fastgan", "--sigma", "0.3"], ["--sigma"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "fastgan", "--map-depth", "2"], ["--map-depth", "mapping"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "fastgan", "--gpus", "2"], ["--gpus 2"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "fastgan", "--batch", "10", "--batch-gpu", "4"], ["--batch-gpu 4"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "fastgan", "--kimg", "-1"], ["--kimg"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "fastgan", "--device", "cuda"], ["--device cuda"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "fastgan", "--metrics", "fid1k_half"], ["fid1k_half"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "logogan", "--features", "nonsense"], ["nonsense"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "icgan", "--feature-weights", "no.pth"], ["no.pth"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "icgan", "--features", "tf_efficientnet_lite2"], ["--metrics none"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "fastgan", "--freeze-d", "9"], ["--freeze-d 9"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "dicgan", "--sigma", "auto:41"], ["--sigma auto:41"]),
    (["--outdir", "x", "--data", "SET", "--cfg", "dicgan", "--latent", "80"], ["--latent 80"]),
    (["--resume", "nowhere"], ["nowhere", "network-snapshot"]),
])
def test_bad_flags_are_one_line(args: list[str], words: list[str], tiny_set: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available() and "cuda" in args:
        pytest.skip("this machine has CUDA")
    args = [str(tiny_set) if a == "SET" else str(tmp_path / "x") if a == "x" else a for a in args]
    done = train(*args)
    assert done.returncode == 2, done.stdout + done.stderr
    message = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(message) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in message[0]
    assert not (tmp_path / "x").exists()


def test_holdout_never_trains_and_is_the_bar_of_the_metrics(tiny_set: Path, tmp_path: Path) -> None:
    done = train("--outdir", tmp_path, "--data", tiny_set, *FLAGS, "--kimg", "0.008", "--holdout", "0.25",
                 "--metrics", "fid8_full")
    assert done.returncode == 0, done.stderr
    run_dir = run_dir_of(tmp_path)
    state = load_state(list_snapshots(run_dir)[-1])
    assert state["config"]["data"]["num_images"] == 30
    measured = run_script("calc_metrics.py", "--network", list_snapshots(run_dir)[-1], "--metrics", "fid8_full",
                          "--ref", tiny_set, "--outdir", tmp_path / "again")
    assert measured.returncode == 0, measured.stderr
    for folder in (run_dir, tmp_path / "again"):
        record = json.loads((folder / "metric-fid8_full.jsonl").read_text().splitlines()[-1])
        assert record["dataset"]["num_images"] == 30
        assert record["copying"]["heldout"]["num_images"] == 10


def evaluated_trainer(tiny_set: Path, run_dir: Path, results: list[dict[str, float]], **changes: Any) -> Trainer:
    """A run with a snapshot every step, whose evaluations give `results` one after the other, the last one forever."""
    dataset = open_set(tiny_set, "fastgan_demo")
    options = {"metrics": "fid4_full", "kimg": 0.04, "tick": 0.004, "snap": 1, **changes}
    trainer = new_trainer(tiny_config("fastgan_demo", dataset, **options), dataset, run_dir)
    calls = itertools.chain(results, itertools.repeat(results[-1]))

    def evaluate(gan: Any, snapshot: Path) -> Measured:
        values = next(calls)
        return Measured(values, next(iter(values.values())), [])

    trainer.evaluate = evaluate
    return trainer


def test_patience_ends_a_run_that_gets_no_better(tiny_set: Path, tmp_path: Path) -> None:
    losses = [{"fid4_full": value} for value in (3.0, 2.0, 2.5, 2.2, 1.0)]
    trainer = evaluated_trainer(tiny_set, tmp_path, losses, patience=2)
    assert trainer.train()
    progress = load_state(list_snapshots(tmp_path)[-1])["progress"]
    assert progress["cur_nimg"] == 16
    assert (progress["best"], progress["best_nimg"], progress["stale"]) == (2.0, 8, 2)
    assert (tmp_path / "best_nimg.txt").read_text() == "8\n"


def test_best_and_newest_are_kept(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last --keep snapshots, and the best weights however old."""
    monkeypatch.setattr("training.training_loop.snapshot_path",
                        lambda run_dir, cur_nimg: run_dir / f"network-snapshot-{cur_nimg:06d}.pkl")
    losses = [{"fid4_full": value} for value in (1.0, 2.0)]
    assert evaluated_trainer(tiny_set, tmp_path, losses, keep=2, kimg=0.016).train()
    assert [path.name for path in list_snapshots(tmp_path)] == [f"network-snapshot-{n:06d}.pkl" for n in (12, 16)]
    assert load_state(tmp_path / "best_model.pkl")["progress"]["cur_nimg"] == 4


@pytest.mark.parametrize(("minutes", "count"), [(1e-6, 5), (1000.0, 1)])
def test_snapshots_by_the_clock(minutes: float, count: int, tiny_set: Path, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of four steps, then at the end; or at the end only."""
    saved: list[Path] = []
    trainer = evaluated_trainer(tiny_set, tmp_path, [{"fid4_full": 1.0}], snap=1000, snap_minutes=minutes, kimg=0.016,
                                metrics="none")
    trainer.evaluate = None
    monkeypatch.setattr(RunState, "save", lambda run, path: saved.append(path))
    assert trainer.train()
    assert len(saved) == count


def test_metrics_budget_spares_snapshots(tiny_set: Path, tmp_path: Path) -> None:
    trainer = evaluated_trainer(tiny_set, tmp_path, [{"fid4_full": 1.0}], metrics_budget=1e-9)
    trainer.train()
    assert trainer.run.progress["metric_seconds"] > 0
    assert trainer.run.progress["best_nimg"] == 4
    assert trainer.run.progress["stale"] == 0  # measured once only


def test_falling_recall_is_a_warning(tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = [{"fid4_full": 1.0, "pr4_recall": recall} for recall in (0.4, 0.3, 0.19)]
    evaluated_trainer(tiny_set, tmp_path, values, kimg=0.012).train()
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: pr4_recall")]
    assert len(warnings) >= 1
    assert "from 0.4 to 0.19" in warnings[0]


def test_best_is_the_highest_where_that_is_better(tiny_set: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    import train as script

    records = [{"results": {"pr4n3_full_precision": 0.7}, "copying": {"ratio": 0.3, "bar": "held-out images"}}]
    monkeypatch.setattr("metrics.registry.evaluate", lambda *args, **options: records)
    monkeypatch.setattr("metrics.registry.write_records", lambda *args: [])
    trainer = evaluated_trainer(tiny_set, tmp_path, [{"x": 0.0}], metrics="pr4n3_full")
    measure = script.make_evaluate(trainer.run.config, trainer.dataset, tmp_path, CPU)
    measured = measure(live_gan(trainer.run, "this run"), tmp_path / "snapshot.pkl")
    assert measured.loss == -0.7
    assert len(measured.warnings) == 1
    assert "copying" in measured.warnings[0]


@pytest.mark.parametrize("flags", [["--metrics-budget", "200%"], ["--patience", "-1"],
                                   ["--patience", "2", "--metrics", "none"]])
def test_impossible_schedules_are_refused(flags: list[str], tiny_set: Path, tmp_path: Path) -> None:
    done = train("--outdir", tmp_path / "x", "--data", tiny_set, "--cfg", "fastgan", "-n", *flags)
    assert done.returncode == 2
    assert flags[0] in done.stderr


def small_trainer(tiny_set: Path, tmp_path: Path, **changes: Any) -> tuple[Any, ImageDataset]:
    dataset = open_set(tiny_set, "dicgan_demo")
    return new_trainer(tiny_config("dicgan_demo", dataset, **changes), dataset, tmp_path), dataset


def test_nonfinite_loss_stops_before_the_weights(tiny_set: Path, tmp_path: Path) -> None:
    trainer, dataset = small_trainer(tiny_set, tmp_path)
    step(trainer, dataset, 1)
    with torch.no_grad():
        next(trainer.run.D.parameters()).fill_(float("nan"))
    before = {k: v.clone() for k, v in trainer.run.G.named_parameters()}
    with pytest.raises(UserError, match="not updated"):
        step(trainer, dataset, 1)
    assert all(torch.equal(v, before[k]) for k, v in trainer.run.G.named_parameters())


def test_stop_gradient_of_eq_5(tiny_set: Path, tmp_path: Path) -> None:
    """f is trained through G alone: with G blind to h, the encoder gets no gradient though D sees h."""
    trainer, dataset = small_trainer(tiny_set, tmp_path, encoder="joint", info_weight=0.0)
    run = trainer.run
    batch = next(batches(dataset, 4, 0, 0, CPU, 0))
    trainer.run.loss.generator_terms(batch, torch.Generator().manual_seed(0)).loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in run.G.encoder.parameters())
    run.G.zero_grad(set_to_none=True)
    original = run.G.modulation.forward
    run.G.modulation.forward = lambda h, z, sigma: original(h.detach(), z, sigma)
    trainer.run.loss.generator_terms(batch, torch.Generator().manual_seed(0)).loss.backward()
    assert all(p.grad is None for p in run.G.encoder.parameters())


@pytest.mark.parametrize("encoder", ["frozen", "head", "joint"])
def test_information_pays_the_generator(encoder: str, tiny_set: Path, tmp_path: Path) -> None:
    """The information term has a gradient into the image, whatever f is, and leaves f's statistics alone."""
    trainer, dataset = small_trainer(tiny_set, tmp_path, encoder=encoder)
    loss, f = trainer.run.loss, trainer.run.G.encoder
    fake = next(batches(dataset, 4, 0, 0, CPU, 0)).img.requires_grad_()
    before = [value.clone() for value in f.buffers()]
    information = loss.information(fake, Condition(f=torch.randn(4, 4, 1, 1, generator=torch.Generator())))
    gradient, = torch.autograd.grad(information, fake)
    assert gradient.abs().flatten(1).sum(1).min() > 0
    assert all(torch.equal(value, old) for value, old in zip(f.buffers(), before, strict=True))
    assert f.training


def test_accumulated_gradients_weigh_images_equally(tiny_set: Path, tmp_path: Path) -> None:
    """A micro-batch counts by its images, a phase moves its own network alone, and cur_nimg counts the batch."""
    trainer, dataset = small_trainer(tiny_set, tmp_path, batch=6, batch_gpu=2)
    step(trainer, dataset, 2)
    assert trainer.run.progress["cur_nimg"] == 12
    batch = next(batches(dataset, 6, 0, 0, CPU, 0))
    weight = next(p for p in trainer.run.D.parameters() if p.requires_grad)
    other = next(trainer.run.G.parameters())
    before = other.detach().clone()

    def terms(part: Batch, rng: torch.Generator) -> list[Terms]:
        assert not other.requires_grad
        return [Terms(weight.sum() * part.img.mean(), {"Loss/test": part.img.mean()})]

    trainer._phase(Phase("test", "D", terms), split(batch, 4), torch.Generator())
    torch.testing.assert_close(weight.grad, torch.full_like(weight, batch.img.mean().item()))
    assert torch.equal(other, before)
    assert other.requires_grad


def test_order_of_images_is_a_function_of_seed_and_position(tiny_set: Path) -> None:
    def drawn(start: int, count: int) -> list[int]:
        stream = EndlessSampler(10, 1, seed=1, start=start)
        places = list(itertools.chain.from_iterable(itertools.islice(stream, count)))
        assert [place for _, _, place in places] == list(range(start, start + count))
        assert all(real == origin for real, origin, _ in places)
        return [real for real, _, _ in places]

    first = drawn(0, 25)
    assert sorted(first[:10]) == sorted(first[10:20]) == list(range(10))
    assert first[:10] != first[10:20]
    assert drawn(7, 18) == first[7:]
    dataset = ImageDataset(tiny_set, mirror=True)
    for workers in (0, 2):
        batch = next(batches(dataset, 6, 3, 90, CPU, workers))
        plain = next(batches(dataset, 6, 3, 90, CPU, 0))
        assert torch.equal(batch.img, plain.img)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_break_during_training_are_named_in_one_line(workers: int, tiny_set: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tiny_set) as archive:
        archive.extractall(tmp_path / "set")
    for victim in sorted((tmp_path / "set").rglob("*.png"))[7:10]:
        victim.write_bytes(victim.read_bytes()[:200])
    stream = batches(ImageDataset(tmp_path / "set"), 8, 0, 0, CPU, workers)
    with pytest.raises(UserError, match=r"img0000000[789]\.png") as caught:
        list(itertools.islice(stream, 6))
    assert "\n" not in caught.value.message


def test_batch_gpu_auto_fits_the_memory(tiny_set: Path, tmp_path: Path) -> None:
    trainer, _ = small_trainer(tiny_set, tmp_path)
    before = {k: v.clone() for k, v in trainer.run.G.state_dict().items()}
    trial = try_step(trainer.run)
    assert all(torch.equal(v, before[k]) for k, v in trainer.run.G.state_dict().items())
    assert all(p.grad is None for net in (trainer.run.G, trainer.run.D) for p in net.parameters())
    assert trial.bytes_per_image > 32 * 32 * 3 * 4
    assert trial.seconds_per_image > 0
    assert fit_batch(64, per_image=1.0, free=200.0) == 64
    assert fit_batch(64, per_image=1.0, free=50.0) == 16
    assert fit_batch(64, per_image=100.0, free=1.0) == 2


@pytest.mark.parametrize("cfg", ["stylegan2_ada_demo", "diffusiongan_pixel_demo"])
def test_trial_pass_changes_nothing(cfg: str, tiny_set: Path, tmp_path: Path) -> None:
    dataset = open_set(tiny_set, cfg)
    run = new_trainer(tiny_config(cfg, dataset), dataset, tmp_path).run
    before = copy.deepcopy(run.state_dict())
    try_step(run)
    assert_equal(run.state_dict(), before)


def test_full_disk_keeps_the_former_snapshot(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, dataset = small_trainer(tiny_set, tmp_path)
    path = tmp_path / "network-snapshot-000000.pkl"
    trainer.run.save(path)
    before = path.read_bytes()
    step(trainer, dataset, 1)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="disk is full"):
        trainer.run.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert checkpoint.kind_of(path) == "gan"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
