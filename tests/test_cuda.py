"""On an NVIDIA GPU: steps are those of the CPU, wait once per phase, and repeat to the bit; scripts run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_script
from processes import CASES, gan_step
from runs import assert_equal, new_trainer, open_set, step, tiny_config

from torch_utils.device import select_device
from torch_utils.shared_draws import shared_draws
from training import update
from training.loader import batches
from training.objective import BatchNoise
from training.presets import PRESETS
from training.run_state import load_state

if not torch.cuda.is_available():
    pytest.skip("there is no NVIDIA GPU", allow_module_level=True)

GPU = select_device("cuda")
METHODS = [cfg for cfg in PRESETS if not cfg.endswith("_demo")]


@pytest.mark.parametrize("cfg", CASES)
def test_gradients_are_those_of_the_cpu(cfg: str, tiny_set: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every phase, in float64; what is prepared before (latents, in float32) differs by rounding."""
    def on_the_cpu(self: BatchNoise, generator: torch.Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device

    monkeypatch.setattr(BatchNoise, "__init__", on_the_cpu)  # a GPU draws other noise maps
    expected, found = gan_step(cfg, tiny_set, tmp_path), gan_step(cfg, tiny_set, tmp_path, GPU)
    assert len(found["gradients"]) == len(expected["gradients"]) >= 2
    for theirs, ours in zip(expected["gradients"], found["gradients"], strict=True):
        whole = torch.cat([gradient.flatten() for gradient in theirs])
        assert whole.norm() > 0
        assert (torch.cat([g.flatten().cpu() for g in ours]) - whole).norm() < 1e-2 * whole.norm()


@pytest.mark.parametrize(("cfg", "amp"), [*((cfg, "off") for cfg in METHODS), ("dicgan", "bf16"), ("dicgan", "fp16"),
                                          ("stylegan2", "bf16")])
def test_resumed_is_uninterrupted(cfg: str, amp: str, tiny_set: Path, tmp_path: Path) -> None:
    """To the bit, in every tensor of the checkpoint."""
    dataset = open_set(tiny_set, cfg)
    config = tiny_config(cfg, dataset, amp=amp)
    whole = new_trainer(config, dataset, tmp_path, device=GPU)
    step(whole, dataset, 2)
    whole.run.save(tmp_path / "snapshot.pkl")
    step(whole, dataset, 2)
    resumed = new_trainer(config, dataset, tmp_path, load_state(tmp_path / "snapshot.pkl"), GPU)
    step(resumed, dataset, 2)
    assert_equal(resumed.run.state_dict(), whole.run.state_dict())


@pytest.fixture
def _waiting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """But for the look at whether anything isn't finite."""
    plain = update.not_finite

    def looked(*arguments: Any) -> str | None:
        torch.cuda.set_sync_debug_mode("default")
        found = plain(*arguments)
        torch.cuda.set_sync_debug_mode("error")
        return found

    monkeypatch.setattr(update, "not_finite", looked)
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_waiting_is_an_error")
@pytest.mark.parametrize("cfg", METHODS)
def test_a_step_waits_for_the_device_once_per_phase(cfg: str, tiny_set: Path, tmp_path: Path) -> None:
    dataset, changes = open_set(tiny_set, cfg), {"recluster": 10.0} if cfg == "selfcond" else {}
    trainer = new_trainer(tiny_config(cfg, dataset, **changes), dataset, tmp_path, device=GPU)
    options, run = trainer.options, trainer.run
    data = batches(dataset, options.batch, options.seed, 0, GPU, 0, run.conditioning.pair)
    trainer.iteration(next(data), int(options.batch_gpu))
    batch = next(data)
    torch.cuda.set_sync_debug_mode("error")
    trainer.iteration(batch, int(options.batch_gpu))
    torch.cuda.set_sync_debug_mode("default")
    assert run.progress["cur_nimg"] == 2 * options.batch


def test_noise_of_micro_batches_is_that_of_the_batch() -> None:
    whole = []
    for parts in (1, 2, 4):
        rng, drawn = torch.Generator().manual_seed(5), []
        start = rng.get_state()
        for number in range(parts):
            rng.set_state(start)
            with shared_draws(rng, number, parts):
                noise = BatchNoise(rng, GPU)
                drawn.append(torch.cat([noise(8 // parts, side, side).flatten(1) for side in (4, 8)], dim=1))
        whole.append(torch.cat(drawn))
    assert whole[0].device.type == "cuda"
    assert not torch.equal(whole[0][0], whole[0][1])
    assert torch.equal(whole[1], whole[0])
    assert torch.equal(whole[2], whole[0])


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_is_near(amp: str, tiny_set: Path, tmp_path: Path) -> None:
    dataset, found = open_set(tiny_set, "dicgan"), {}
    for kind in ("off", amp):
        trainer = new_trainer(tiny_config("dicgan", dataset, amp=kind), dataset, tmp_path, device=GPU)
        step(trainer, dataset, 1)
        found[kind] = {name: entry["mean"] for name, entry in trainer.run.collector.pop().items()}
    for name in ("Loss/G/loss", "Loss/D/fake", "Loss/D/real"):
        assert abs(found[amp][name] - found["off"][name]) < 0.1 * max(abs(found["off"][name]), 1), name


def test_scripts(tmp_path: Path) -> None:
    """From images to a report of numbers, with a resume in between."""
    data, runs = ROOT / "demo" / "earth_64.zip", tmp_path / "runs"

    def done(*arguments: str | Path) -> str:
        process = run_script(*arguments)
        assert process.returncode == 0, process.stderr[-2000:]
        return process.stdout + process.stderr

    said = done("train.py", "--outdir", runs, "--data", data, "--cfg", "dicgan_demo", "--kimg", "0.32", "--tick",
                "0.16", "--snap", "1", "--metrics", "none", "--device", "cuda")
    assert "cuda (" in said
    run = next(runs.iterdir())
    done("train.py", "--resume", run, "--kimg", "0.64")
    network = max(run.glob("network-snapshot-*.pkl"))
    done("ldm/train.py", "--outdir", tmp_path / "ldm", "--network", network, "--data", data, "--kimg", "2", "--device",
         "cuda")
    ldm = next((tmp_path / "ldm").rglob("network-snapshot-*.pkl"))
    done("gen_images.py", "--network", network, "--ldm", ldm, "--seeds", "0-3", "--outdir", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) >= 4
    assert "kid" in done("calc_metrics.py", "--metrics", "kid500_full", "--network", network, "--ldm", ldm, "--data",
                         data)
