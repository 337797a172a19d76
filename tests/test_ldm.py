"""Latent diffusion: schedules and samplers against exact results, networks, whitening, resume, scripts, errors."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import run_script
from runs import CPU, assert_equal, tiny_config

from dnnlib import UserError
from dnnlib.cli import format_seeds, next_run_dir, parse_seeds
from ldm import denoiser, schedule, whitening
from ldm.batches import LatentData, batch_indices, draw_times, split_images
from ldm.copying import nearest_ratio
from ldm.latents import open_latents
from ldm.names import SCHEDULES, SPACINGS
from ldm.presets import PRESETS, resolve
from ldm.prior import Prior, load_prior
from ldm.sample import main as sample_main
from ldm.settings import Sampling
from ldm.train import main as train_main
from ldm.trainer import Trainer
from ldm.training_loop import Run, list_snapshots
from ldm.unet import num_levels
from torch_utils import checkpoint
from torch_utils.rng import generator
from training.dataset import ImageDataset
from training.run_state import RunState
from training.sampling import load_gan
from training.sources import encode_images

LINEAR = schedule.alpha_bars()


# Seed lists and run folders.


@pytest.mark.parametrize(("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("1,5,9-12", [1, 5, 9, 10, 11, 12]), ("7", [7]),
                                             (" 3 , 1 - 2", [3, 1, 2]), ("4,4", [4, 4])])
def test_parse_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds
    assert parse_seeds(format_seeds(seeds)) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "5-3", "1-2-3", "1.5", "0-99999999999", "9" * 5000,
                                  str(2**63)])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_run_folders_are_numbered_after_the_highest(tmp_path: Path) -> None:
    assert next_run_dir(tmp_path / "none", "x").name == "00000-x"
    for name in ("00003-a", "00007-b", "notes"):
        (tmp_path / name).mkdir()
    assert next_run_dir(tmp_path, "x").name == "00008-x"


# Schedules.


@pytest.mark.parametrize("kind", SCHEDULES)
def test_alpha_bars_fall_from_one_to_zero(kind: str) -> None:
    bars = schedule.alpha_bars(kind)
    assert bars.dtype == torch.float64
    assert bars.shape == (1000,)
    assert bool((bars[1:] < bars[:-1]).all())
    assert bars[0] > 0.999
    assert 0 < bars[-1] < 1e-4


def test_linear_schedule_has_the_published_values() -> None:
    assert LINEAR[0].item() == pytest.approx(1 - 1e-4, abs=1e-12)
    assert LINEAR[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    # Indices at which the noise passes 30 % and 5 %.
    noise = (1 - LINEAR).sqrt()
    assert int((noise - 0.3).abs().argmin()) == 92
    assert int((noise - 0.05).abs().argmin()) == 11


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [2, 3, 10, 50, 999, 1000])
def test_timesteps_have_both_ends_and_no_doubles(spacing: str, count: int) -> None:
    times = schedule.timesteps(count, 1000, spacing)
    assert len(times) == count
    assert times[0] == 999
    assert times[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(times))


def test_spacings() -> None:
    assert schedule.timesteps(5, 9) == [8, 6, 4, 2, 0]
    assert schedule.timesteps(4, 10, "quadratic") == [9, 4, 1, 0]
    assert schedule.timesteps(1) == [999]
    for count, spacing in ((0, "uniform"), (1001, "uniform"), (5, "cubic")):
        with pytest.raises(ValueError, match="cannot visit"):
            schedule.timesteps(count, 1000, spacing)


# Networks.


@pytest.mark.parametrize(("cfg", "shape"), [
    ("mlp", (16, 1, 1)), ("mlp", (2, 4, 4)), ("unet", (3, 4, 4)), ("unet", (4, 8, 8)), ("unet", (2, 5, 6)),
])
def test_network_shapes_gradients_and_start(cfg: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    config = resolve(cfg, shape, {})
    config["net"].update({"width": 64} if cfg == "mlp" else {"channels": 32})
    net = denoiser.build(config, shape)
    x, t = torch.randn(3, *shape), torch.tensor([0, 400, 999])
    torch.testing.assert_close(net(x, t), denoiser.gaussian_guess(x, LINEAR[t]))  # starts at the Gaussian guess
    for _ in range(2):  # the zero layers pass gradients on from the second step
        net.zero_grad()
        (net(x, t) - torch.randn_like(x)).square().mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    assert all(float(p.grad.abs().sum()) > 0 for name, p in net.named_parameters() if not _is_inert(name))
    net.eval()
    assert not torch.equal(net(x, t)[0], net(x, t.flip(0))[0])  # the time is used
    torch.testing.assert_close(net(x, t)[1:2], net(x[1:2], t[1:2]), atol=1e-5, rtol=1e-4)  # samples don't mix


def _is_inert(name: str) -> bool:
    """The bias of keys adds the same to all logits of a query, so that a third of a qkv bias has no gradient."""
    return name.endswith("qkv.bias")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_describes_a_network(name: str) -> None:
    shape = (16, 1, 1) if name.startswith("mlp") else (16, 8, 8)
    with torch.device("meta"):
        config = resolve(name, shape, {"batch": 3, "lr": None})
        from dnnlib import construct

        construct(config["net"], shape=shape)
    assert config["batch"] == 3
    assert config["lr"] == PRESETS[name]["lr"]
    assert json.loads(json.dumps(config)) == config


def test_levels_fit_the_map() -> None:
    assert [num_levels(s, s, 4) for s in (2, 4, 7, 8, 12, 16, 32, 64)] == [1, 1, 1, 2, 2, 3, 4, 4]


def test_presets_refuse_nonsense() -> None:
    with pytest.raises(UserError, match="no such configuration"):
        resolve("unknown", (4, 1, 1), {})
    with pytest.raises(UserError, match="vectors"):
        resolve("unet", (4, 1, 1), {})
    with pytest.raises(UserError, match="no option"):
        resolve("mlp", (4, 1, 1), {"width": 3})
    assert resolve("auto", (4, 1, 1), {})["cfg"] == "mlp"
    assert resolve("auto", (4, 4, 4), {})["cfg"] == "unet"


# Whitening, split, batches.


def test_auto_whitening_is_the_fullest_that_fits() -> None:
    for shape, kind in (((2048, 1, 1), "full"), ((2049, 1, 1), "diagonal"), ((16, 8, 8), "full"),
                        ((17, 8, 8), "channel")):
        assert whitening.choose_kind("auto", shape) == kind
        assert whitening.choose_kind("scalar", shape) == "scalar"


@pytest.mark.parametrize("kind", ["full", "channel", "diagonal", "scalar"])
def test_missing_noise_makes_the_sum_white(kind: str) -> None:
    """Noise of whitened space, brought back, plus what `colour` gives: covariance total^2 in every direction."""
    rng = generator("colour")
    f = torch.einsum("ij,njhw->nihw", torch.randn(3, 3, generator=rng), torch.randn(500, 3, 2, 1, generator=rng)) * 2
    fitted = whitening.fit(f, 10**9, kind)
    total = 0.7
    share = total / fitted.largest_spread
    basis = torch.eye(6).reshape(6, 3, 2, 1)
    back = fitted.invert(basis * share) - fitted.invert(torch.zeros_like(basis))
    both = torch.stack([back.flatten(1), fitted.colour(basis, total, share).flatten(1)])
    torch.testing.assert_close(torch.einsum("kni,knj->ij", both, both), total**2 * torch.eye(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["diagonal", "scalar"])
def test_small_whitenings(kind: str) -> None:
    f = torch.randn(3000, 3, 2, 2, generator=generator("small")) * torch.tensor([1.0, 5.0, 0.0])[:, None, None] + 2
    fitted = whitening.fit(f, 3000, kind)
    assert fitted.matrix.shape == (12,)
    white = fitted.apply(f)
    torch.testing.assert_close(fitted.invert(white), f, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(white.mean(0), torch.zeros(3, 2, 2), atol=1e-3, rtol=0)
    deviation = white.std(0)
    if kind == "diagonal":
        torch.testing.assert_close(deviation[:2], torch.ones(2, 2, 2), atol=0.01, rtol=0)
    else:
        assert deviation.square().mean().sqrt().item() == pytest.approx(1, abs=0.01)
        torch.testing.assert_close(deviation[1] / deviation[0], torch.full((2, 2), 5.0), atol=0.3, rtol=0)


@pytest.mark.parametrize(("shape", "kind"), [((6, 1, 1), "full"), ((2, 3, 3), "full"), ((2, 32, 32), "channel")])
def test_whitening_whitens_and_inverts(shape: tuple[int, int, int], kind: str) -> None:
    rng = generator("whiten")
    mix = torch.randn(shape[0], shape[0], generator=rng)
    f = torch.einsum("ij,njhw->nihw", mix, torch.randn(4000, *shape, generator=rng)) * 5 + 3
    fitted = whitening.fit(f, 10**9)  # so many images that nothing is shrunk
    assert fitted.shrinkage < 1e-4
    assert fitted.kind == kind
    white = fitted.apply(f)
    assert white.shape == f.shape
    rows = white.flatten(1) if kind == "full" else white.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(rows.T), torch.eye(rows.shape[1]), atol=0.01, rtol=0)
    torch.testing.assert_close(fitted.invert(white), f, atol=1e-3, rtol=1e-3)


def test_whitening_of_few_samples_does_not_explode_on_others() -> None:
    rng = generator("few")
    train, other = torch.randn(40, 64, 1, 1, generator=rng), torch.randn(500, 64, 1, 1, generator=rng)
    fitted = whitening.fit(train, 40)  # the plain covariance has rank 39 of 64
    assert fitted.shrinkage > 0.5
    assert 0.7 < fitted.apply(other).square().mean().item() < 1.6


def test_whitening_survives_a_dead_channel_and_refuses_collapse() -> None:
    f = torch.randn(200, 4, 1, 1, generator=generator("dead"))
    f[:, 2] = 1.0
    fitted = whitening.fit(f, 200)
    assert bool(torch.isfinite(fitted.apply(f)).all())
    torch.testing.assert_close(fitted.invert(fitted.apply(f)), f, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="collapsed"):
        whitening.fit(torch.ones(200, 4, 1, 1), 200)


def test_split_keeps_flips_together() -> None:
    index = torch.arange(40) % 20
    train, held = split_images(index, 0.1, 3)
    assert len(held) == 4
    assert len(train) == 36
    assert not set(index[train].tolist()) & set(index[held].tolist())
    assert not torch.equal(held, split_images(index, 0.1, 4)[1])
    with pytest.raises(UserError, match="at least 4"):
        split_images(torch.arange(3), 0.1, 0)


def test_batches_cover_every_epoch_and_depend_on_position_only() -> None:
    whole = batch_indices(10, 0, 40, 5)
    for epoch in whole.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert torch.equal(batch_indices(10, 7, 16, 5), whole[7:23])


@pytest.mark.parametrize("mode", ["uniform", "antithetic", "stratified"])
def test_times_are_uniform(mode: str) -> None:
    t = torch.cat([draw_times(25, 1000, mode, generator("times", i)) for i in range(400)])
    assert t.min() >= 0
    assert t.max() <= 999
    counts = torch.histc(t.float(), 10, 0, 1000)
    assert bool(((counts - 1000).abs() < 150).all())


# Training.


def two_moons(count: int = 120) -> LatentData:
    """4-d latents from two separate clusters, on the sphere that RMS normalisation gives."""
    rng = generator("data")
    x = 0.25 * torch.randn(count, 4, 1, 1, generator=rng)
    x[:, 0] += torch.where(torch.arange(count) % 3 == 0, 1.0, -1.0)[:, None, None]
    x = x * x.square().mean(1, keepdim=True).rsqrt()
    info = {"gan_hash": "a" * 64, "normalize": "rms", "network": "net.pkl", "dataset": {"name": "moons"}}
    return LatentData(x, torch.arange(count), info)


def small_config(**changes: Any) -> dict[str, Any]:
    config = {**resolve("mlp", (4, 1, 1), {}), "seed": 1, "minutes": None, "batch": 32, "kimg": 1.5, "tick": 0.4,
              "snap": 2, "eval_size": 128, **changes}
    config["net"].update(width=32, layers=2, time_channels=16)
    return config


def stats_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("Timing", "timestamp"))} for line in lines]


def without_time(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "progress": {k: v for k, v in state["progress"].items() if k != "seconds"}}


def test_interrupted_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    data, config = two_moons(), small_config()
    whole = Trainer(config, data, CPU)
    assert Run(whole, tmp_path / "whole").train(lambda: False)

    steps = 0

    def stopped() -> bool:
        nonlocal steps
        steps += 1
        return steps > 22  # in the middle of a tick and of an epoch

    first = Trainer(config, data, CPU)
    assert not Run(first, tmp_path / "parts").train(stopped)
    assert first.progress["cur_nimg"] == 22 * 32
    # A line after the snapshot, as of a run that was killed, is forgotten.
    with open(tmp_path / "parts" / "stats.jsonl", "a") as file:
        file.write('{"Progress/tick": 2}\n')
    (snapshot,) = list_snapshots(tmp_path / "parts")
    second = Trainer(config, data, CPU, checkpoint.load(snapshot, "ldm"))
    assert Run(second, tmp_path / "parts").train(lambda: False)

    assert_equal(without_time(second.state_dict()), without_time(whole.state_dict()))
    assert stats_of(tmp_path / "parts") == stats_of(tmp_path / "whole")
    assert len(stats_of(tmp_path / "whole")) == 4
    assert_equal(checkpoint.load(tmp_path / "parts" / "best_model.pkl", "ldm")["ema"],
                 checkpoint.load(tmp_path / "whole" / "best_model.pkl", "ldm")["ema"])


def test_training_beats_the_gaussian_guess_and_finds_both_clusters(tmp_path: Path) -> None:
    data = two_moons(300)
    trainer = Trainer(small_config(kimg=48, tick=8, snap=3, keep=2, lr=4e-3, batch=96), data, CPU)
    assert trainer.evaluate() == pytest.approx(trainer.guess_loss, rel=1e-5)
    Run(trainer, tmp_path).train(lambda: False)
    assert trainer.best is not None
    assert trainer.best["loss"] < 0.95 * trainer.guess_loss
    assert len(list_snapshots(tmp_path)) == 2
    prior = load_prior(tmp_path / "best_model.pkl", CPU)
    f = prior.sample(range(300), Sampling(steps=25))
    torch.testing.assert_close(f.square().mean(1).flatten(), torch.ones(300), atol=1e-4, rtol=0)
    assert (f[:, 0] > 0).float().mean().item() == pytest.approx(1 / 3, abs=0.1)
    assert (f[:, 0].abs() < 1.0).float().mean().item() < 0.1  # few between the clusters
    torch.testing.assert_close(f.mean(0), data.latents.mean(0), atol=0.25, rtol=0)


def test_early_stop(tmp_path: Path) -> None:
    """Few latents and a large learning rate: the held-out loss turns, and the run ends by itself."""
    config = small_config(kimg=100, tick=2, patience=2, lr=5e-3, ema_kimg=1.0)
    trainer = Trainer(config, two_moons(16), CPU)
    run = Run(trainer, tmp_path)
    assert run.train(lambda: False)
    assert trainer.best is not None
    end = trainer.progress["cur_nimg"]
    assert 4000 <= end - trainer.best["cur_nimg"] < 4100
    assert end < 90_000
    assert "Stopped early: no lower held-out loss for 2 ticks" in run.verdict()
    assert [line for line in stats_of(tmp_path) if "Copy/nearest_ratio" in line][-1]["Progress/kimg"] == end / 1000
    # A finished run stays finished, and goes on with more patience.
    newest = checkpoint.load(list_snapshots(tmp_path)[-1], "ldm")
    again = Trainer(newest["config"], two_moons(16), CPU, newest)
    assert Run(again, tmp_path).train(lambda: False)
    assert again.progress["cur_nimg"] == end
    again.config["patience"] = 9
    assert not Run(again, tmp_path).train(lambda: again.progress["cur_nimg"] >= end + 64)
    assert again.progress["cur_nimg"] == end + 64


def test_copies_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio is 0 for samples that are training latents, and 1 for held-out ones."""
    trainer = Trainer(small_config(), two_moons(200), CPU)
    for rows, wanted in ((trainer.train_latents, 0.0), (trainer.held_latents, 1.0)):
        monkeypatch.setattr(Prior, "sample", lambda self, seeds, settings, rows=rows: self.decode(rows))
        assert nearest_ratio(trainer) == pytest.approx(wanted, abs=0.01)


def test_other_latents_are_not_continued(tmp_path: Path) -> None:
    trainer = Trainer(small_config(), two_moons(), CPU)
    trainer.evaluate()
    with pytest.raises(UserError, match="not those"):
        Trainer(small_config(), two_moons(100), CPU, trainer.state_dict())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nonfinite_stops_before_the_update(what: str) -> None:
    trainer = Trainer(small_config(), two_moons(), CPU)
    trainer.step()
    if what == "loss":
        trainer.train_latents[:] = float("nan")
    else:
        next(iter(trainer.net.parameters())).register_hook(lambda grad: grad * float("inf"))
    before = {name: value.clone() for name, value in trainer.net.state_dict().items()}
    with pytest.raises(UserError, match=f"the {what} is .*--lr"):
        trainer.step()
    assert_equal(dict(trainer.net.state_dict()), before)
    assert trainer.progress["cur_nimg"] == 32


# From a generator's checkpoint through the scripts.


@pytest.fixture(scope="module")
def gan_path(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained DIC-GAN with a convolutional encoder."""
    dataset = ImageDataset(tiny_set, mirror=True)
    run = RunState(tiny_config("dicgan_demo", dataset, encoder="joint"), CPU)
    path = tmp_path_factory.mktemp("gan") / "gan.pkl"
    run.save(path)
    return path


FLAGS = ["--kimg", "1.2", "--tick", "0.5", "--batch", "32", "--seed", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def ldm_run(gan_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outdir = tmp_path_factory.mktemp("ldm")
    done = run_script("ldm/train.py", "--network", gan_path, "--outdir", outdir, *FLAGS)
    assert done.returncode == 0, done.stderr
    (run_dir,) = outdir.iterdir()
    return run_dir


def test_files_of_a_run(ldm_run: Path, gan_path: Path, tiny_set: Path) -> None:
    assert ldm_run.name == "00000-ldm-tiny-mlp"
    assert {path.name for path in ldm_run.iterdir()} == {
        ".lock", "training_options.json", "log.txt", "stats.jsonl", "network-snapshot-000001.pkl", "best_model.pkl",
        "training_latents.pkl", "samples000001.png"}
    log = (ldm_run / "log.txt").read_text()
    assert "Gaussian guess" in log
    assert "best_model.pkl" in log
    assert [line["Progress/tick"] for line in stats_of(ldm_run)] == [1, 2, 3]
    gan = load_gan(gan_path, CPU)
    state = checkpoint.load(ldm_run / "network-snapshot-000001.pkl", "ldm")
    assert state["gan_hash"] == gan.hash
    assert state["normalize"] == "rms"
    assert state["latent_shape"] == [4, 1, 1]
    stored = checkpoint.load(ldm_run / "training_latents.pkl", "latents")["latents"]
    torch.testing.assert_close(stored, encode_images(gan, ImageDataset(tiny_set, mirror=True)))


def test_resume_script_extends_a_run(ldm_run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(ldm_run, copy)
    done = CliRunner().invoke(train_main, ["--resume", str(copy), "--kimg", "2"])
    assert done.exit_code == 0, done.output
    assert "1216 latents seen" in done.stdout
    assert len(stats_of(copy)) == 5
    again = CliRunner().invoke(train_main, ["--resume", str(copy)])
    assert again.exit_code == 0, again.output
    assert "complete" in again.stdout
    assert stats_of(copy)[:3] == stats_of(ldm_run)


@pytest.mark.parametrize(("part", "value", "word"), [
    ("config.net.width", 2**19, "far larger than its weights"), ("config.net.width", 2**21, "no size is above"),
    ("config.schedule.num_steps", 10**9, "config"), ("config.batch", 10**9, "config/batch"),
    ("config.eval_size", 10**9, "config/eval_size"), ("config.betas", [2.0, 0.9], "config/betas"),
    ("config.time_sampling", "never", "config/time_sampling"), ("latent_shape", [2**20, 1, 1], "whitening"),
    ("config.net.width", 128, "do not fit"), ("optimizer", {}, "do not fit"), ("config.tick", None, "config/tick"),
])
def test_absurd_snapshots_are_not_resumed(part: str, value: Any, word: str, ldm_run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(ldm_run, copy)
    state = checkpoint.load(list_snapshots(copy)[-1], "ldm")
    *path, last = part.split(".")
    place: Any = state
    for key in path:
        place = place[key]
    place[last] = value
    checkpoint.save(list_snapshots(copy)[-1], "ldm", state)
    done = CliRunner().invoke(train_main, ["--resume", str(copy), "--kimg", "2"])
    assert done.exit_code == 2, (done.output, done.exception)
    assert word in done.stderr


def test_dry_run_writes_nothing(gan_path: Path, tmp_path: Path) -> None:
    args = ["--network", str(gan_path), "--outdir", str(tmp_path / "o"), "--minutes", "2", "-n"]
    done = CliRunner().invoke(train_main, args)
    assert done.exit_code == 0, done.output
    options = json.loads(done.stdout[:done.stdout.index("\nDry run")])
    assert options["minutes"] == 2
    assert options["kimg"] is None
    assert options["dataset"]["num_images"] == 40
    assert options["dataset"]["mirror"] is True
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("settings", [Sampling(steps=8), Sampling(steps=8, eta=1.0), Sampling("dpm2m", 6),
                                      Sampling("pc", 6), Sampling("gaussian")], ids=str)
def test_a_seed_gives_its_latent_in_any_batch(ldm_run: Path, settings: Sampling) -> None:
    prior = load_prior(ldm_run / "best_model.pkl", CPU)
    together = prior.sample(range(10), settings, batch_size=10)
    alone = prior.sample([7, 3], settings, batch_size=1)
    torch.testing.assert_close(alone, together[[7, 3]], atol=1e-4, rtol=0)
    assert (together[7] - together[3]).abs().max() > 0.01
    assert prior.sample([], settings).shape == (0, 4, 1, 1)


def test_latents_file_equals_its_model(ldm_run: Path, gan_path: Path, tmp_path: Path) -> None:
    model, path = ldm_run / "best_model.pkl", tmp_path / "latents.pkl"
    done = CliRunner().invoke(sample_main, ["--network", str(model), "--seeds", "0-4,9", "--steps", "8", "--eta", "0.5",
                                            "--spacing", "quadratic", "--batch", "4", "--outdir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    gan_hash = load_gan(gan_path, CPU).hash
    stored = open_latents(path, gan_hash, CPU, {})
    live = open_latents(model, gan_hash, CPU, {"steps": 8, "eta": 0.5, "spacing": "quadratic"})
    torch.testing.assert_close(stored([9, 2]), live([9, 2]), atol=1e-4, rtol=0)
    assert stored.latent_shape == live.latent_shape == (4, 1, 1)
    assert {**stored.provenance, "latents": None} == {**live.provenance, "latents": None}
    default = open_latents(model, gan_hash, CPU, {})
    assert default.provenance["ldm_steps"] == 50
    wanted = "no latent for seed 5-6; make them: .*--seeds 0-6,9 --steps 8 --eta 0.5 --spacing quadratic --out"
    with pytest.raises(UserError, match=wanted):
        stored([0, 5, 6])
    with pytest.raises(UserError, match="sampled with steps 8"):
        open_latents(path, gan_hash, CPU, {"steps": 50})


def test_wrong_files_are_refused(ldm_run: Path, gan_path: Path) -> None:
    gan_hash = load_gan(gan_path, CPU).hash
    with pytest.raises(UserError, match="belongs to another GAN"):
        open_latents(ldm_run / "best_model.pkl", "0" * 64, CPU, {})
    with pytest.raises(UserError, match="that a model was trained on"):
        open_latents(ldm_run / "training_latents.pkl", gan_hash, CPU, {})
    with pytest.raises(UserError, match="is a generator checkpoint"):
        open_latents(gan_path, gan_hash, CPU, {})


@pytest.mark.parametrize(("settings", "word"), [
    ({"steps": 0}, "--steps 0"), ({"steps": 1001}, "--steps 1001"), ({"eta": 2.0}, "--eta 2"),
    ({"spacing": "cubic"}, "--spacing cubic"), ({"sampler": "euler"}, "--sampler euler"),
    ({"sampler": "dpm2m", "eta": 0.5}, "--eta belongs to"), ({"snr": 0.2}, "belong to --sampler pc"),
    ({"sampler": "pc", "snr": 0.9}, "--snr 0.9"), ({"sampler": "pc", "corrections": 0}, "--corrections 0"),
    ({"sampler": "gaussian", "steps": 9}, "takes no steps"), ({"cfg_scale": 2.0}, "without classes"),
])
def test_settings_that_do_not_exist(settings: dict[str, Any], word: str, ldm_run: Path, gan_path: Path) -> None:
    with pytest.raises(UserError, match=word):
        open_latents(ldm_run / "best_model.pkl", load_gan(gan_path, CPU).hash, CPU, settings)


@pytest.mark.parametrize(("args", "word"), [
    (["ldm/train.py", "--outdir", "OUT"], "--network"),
    (["ldm/train.py", "--network", "GAN"], "--outdir"),
    (["ldm/train.py", "--network", "nowhere.pkl", "--outdir", "OUT"], "nowhere.pkl"),
    (["ldm/train.py", "--network", "LDM", "--outdir", "OUT"], "latent diffusion checkpoint"),
    (["ldm/train.py", "--network", "GAN", "--outdir", "OUT", "--cfg", "unet"], "vectors"),
    (["ldm/train.py", "--network", "GAN", "--outdir", "OUT", "--data", "nowhere.zip"], "nowhere.zip"),
    (["ldm/train.py", "--network", "GAN", "--outdir", "OUT", "--lr", "0"], "--lr"),
    (["ldm/train.py", "--network", "GAN", "--outdir", "OUT", "--space", "w"], "no mapping network"),
    (["ldm/train.py", "--network", "GAN", "--outdir", "OUT", "--samples", "9"], "--samples"),
    (["ldm/train.py", "--network", "GAN", "--outdir", "OUT", "--cond", "1"], "--cond 1"),
    (["ldm/train.py", "--resume", "OUT"], "no network-snapshot"),
    (["ldm/train.py", "--resume", "RUN", "--lr", "1"], "--lr cannot change"),
    (["ldm/sample.py", "--network", "LDM", "--seeds", "0-3"], "--out"),
    (["ldm/sample.py", "--network", "LDM", "--seeds", "3-0", "--out", "OUT"], "backwards"),
    (["ldm/sample.py", "--network", "LDM", "--seeds", "0", "--out", "OUT", "--eta", "2"], "--eta"),
    (["ldm/sample.py", "--network", "LDM", "--seeds", "0", "--out", "OUT", "--steps", "1001"], "--steps 1001"),
    (["ldm/sample.py", "--network", "GAN", "--seeds", "0", "--out", "OUT"], "generator checkpoint"),
])
def test_bad_flags_are_one_line(args: list[str], word: str, ldm_run: Path, gan_path: Path, tmp_path: Path) -> None:
    places = {"GAN": gan_path, "LDM": ldm_run / "best_model.pkl", "RUN": ldm_run, "OUT": tmp_path / "out"}
    # In this process: click's own handling of errors, without 14 imports of torch.
    main = train_main if args[0] == "ldm/train.py" else sample_main
    done = CliRunner().invoke(main, [str(places.get(arg, arg)) for arg in args[1:]])
    assert done.exit_code == 2, done.output
    assert word in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error:")]) == 1
    assert not (tmp_path / "out").exists()
