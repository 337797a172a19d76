"""Speed of latent diffusion against a plain form of the published DDIM network on the same latents.

\b
Examples:
  python benchmarks/bench_ldm.py --shape 16x8x8 --rounds 3
  python benchmarks/bench_ldm.py --shape 16 --cfg mlp --samplers ddim:50,dpm2m:20

Every measurement has a process of its own; rounds alternate between all of them, so that only ratios of one call are
worth quoting. latents/s: sampling with the sampler and steps that are named, whitening included. steps/s: training
steps of the preset's batch. `plain` is the published network with the published sampler (DDIM) and its own loss, for
maps only. Weights are untrained, which doesn't change the speed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib.tuning import tune_process  # noqa: E402  (found from the project's root)

PLAIN = "plain"


def measure_plain(shape: tuple[int, ...], batch: int, count: int, ddim_steps: int,
                  train_steps: int) -> dict[str, float]:
    """The published network: `count` latents by DDIM, then training steps on the noise error, Adam, clipping."""
    import torch

    from benchmarks.plain_unet import PlainUNet
    from ldm import schedule

    torch.manual_seed(0)
    net, alpha = PlainUNet(shape), schedule.alpha_bars().float()
    times = schedule.timesteps(ddim_steps)

    @torch.no_grad()
    def draw() -> None:
        x = torch.randn(count, *shape)
        for t, s in zip(times, [*times[1:], -1], strict=True):
            eps = net(x, torch.full((count,), t))
            x_0 = (x - (1 - alpha[t]).sqrt() * eps) / alpha[t].sqrt()
            a_s = alpha[s] if s >= 0 else torch.ones(())
            x = a_s.sqrt() * x_0 + (1 - a_s).sqrt() * eps

    net.eval()
    sampling = seconds_of(draw)
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)

    def step() -> None:
        x_0, eps, t = torch.randn(batch, *shape), torch.randn(batch, *shape), torch.randint(1000, (batch,))
        a_t = alpha[t].reshape(-1, 1, 1, 1)
        loss = (net(a_t.sqrt() * x_0 + (1 - a_t).sqrt() * eps, t) - eps).square().sum(dim=(1, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return {"latents_per_sec": count / sampling, "steps_per_sec": training_rate(step, train_steps),
            "params": sum(p.numel() for p in net.parameters()), "batch": batch}


def measure(cfg: str, sampler: str, steps: int, shape: tuple[int, ...], batch: int | None, count: int,
            train_steps: int) -> dict[str, float]:
    """One of our presets, the same."""
    import torch

    from ldm.batches import LatentData
    from ldm.presets import resolve
    from ldm.prior import Prior
    from ldm.settings import Sampling
    from ldm.trainer import Trainer

    config = {**resolve(cfg, shape, {"batch": batch, "eval_size": 1}), "seed": 0}
    rng = torch.Generator().manual_seed(0)
    info = {"gan_hash": "", "normalize": "rms", "network": "", "dataset": {}}
    trainer = Trainer(config, LatentData(torch.randn(2000, *shape, generator=rng), torch.arange(2000), info),
                      torch.device("cpu"))
    prior = Prior("random", trainer.sampling_state(), torch.device("cpu"), trainer.ema)
    settings = Sampling(sampler, steps)
    sampling = seconds_of(lambda: prior.sample(range(count), settings, batch_size=count))
    return {"latents_per_sec": count / sampling, "steps_per_sec": training_rate(trainer.step, train_steps),
            "params": sum(p.numel() for p in trainer.net.parameters()), "batch": config["batch"]}


def seconds_of(work: Any) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def training_rate(step: Any, count: int) -> float:
    """Steps per second, the median of `count` after one that isn't counted."""
    step()
    return 1 / statistics.median(seconds_of(step) for _ in range(count))


def run_one(job: list[str], shape: tuple[int, ...], batch: int | None, count: int,
            train_steps: int) -> dict[str, float]:
    """The measurement that a worker process is asked for: cfg, sampler, steps."""
    cfg, sampler, steps = job[0], job[1], int(job[2])
    if cfg == PLAIN:
        return measure_plain(shape, batch or 128, count, steps, train_steps)
    return measure(cfg, sampler, steps, shape, batch, count, train_steps)


def jobs_of(cfg: str, samplers: str) -> list[tuple[str, str, str]]:
    """All pairs of networks and samplers; the plain network has DDIM only."""
    pairs = [tuple(part.split(":")) for part in samplers.split(",")]
    if any(len(pair) != 2 or not pair[1].isdigit() for pair in pairs):
        raise click.UsageError(f"--samplers {samplers}: write them as ddim:50,dpm2m:20.")
    names = cfg.split(",")
    return [(name, sampler, steps) for name in names for sampler, steps in pairs
            if name != PLAIN or sampler == "ddim"]


@click.command(help=__doc__)
@click.option("--shape", default="16x8x8", show_default=True, help="Of the latents: CxHxW, or C for vectors")
@click.option("--cfg", help="Networks, comma-separated; ratios refer to the first  [default: plain,unet-cifar,"
              "unet-dicgan,unet for maps; mlp for vectors]")
@click.option("--samplers", default="ddim:50,dpm2m:20", show_default=True, help="SAMPLER:STEPS, comma-separated")
@click.option("--count", type=click.IntRange(min=1), default=16, show_default=True, help="Latents that are sampled")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Latents per training step")
@click.option("--train-steps", type=click.IntRange(min=1), default=3, show_default=True, help="Timed training steps")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds over everything")
@click.option("--one", hidden=True)
def main(shape: str, cfg: str | None, samplers: str, count: int, batch: int, train_steps: int, rounds: int,
         one: str | None) -> None:
    sides = tuple(int(part) for part in shape.split("x"))
    size = sides if len(sides) == 3 else (sides[0], 1, 1)
    if one:
        click.echo(json.dumps(run_one(one.split(":"), size, batch, count, train_steps)))
        return
    jobs = jobs_of(cfg or ("mlp" if size[1:] == (1, 1) else "plain,unet-cifar,unet-dicgan,unet"), samplers)
    results: dict[tuple[str, str, str], list[dict[str, float]]] = {job: [] for job in jobs}
    for _ in range(rounds):
        for job in jobs:
            command = [sys.executable, __file__, "--one", ":".join(job), "--shape", shape, "--count", str(count),
                       "--batch", str(batch), "--train-steps", str(train_steps)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            if done.returncode:
                raise click.ClickException(f"{job[0]}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
            results[job].append(json.loads(done.stdout.splitlines()[-1]))
    show(results, shape, rounds)


def show(results: dict[tuple[str, str, str], list[dict[str, float]]], shape: str, rounds: int) -> None:
    """The table: medians, ranges and ratios to the first row."""
    click.echo(f"latents {shape}, {rounds} rounds, medians (minimum – maximum)")
    click.echo(f"{'network':<14}{'M params':>9}  {'sampler':<10}{'latents/s':>10}{'range':>16}{'ratio':>7}"
               f"{'train steps/s':>15}{'range':>16}{'ratio':>7}")
    base: dict[str, float] = {}
    for (cfg, sampler, steps), rows in results.items():
        line = f"{cfg:<14}{rows[0]['params'] / 1e6:>9.2f}  {sampler + ' ' + steps:<10}"
        for key, width in (("latents_per_sec", 10), ("steps_per_sec", 15)):
            values = [row[key] for row in rows]
            middle = statistics.median(values)
            base.setdefault(key, middle)
            spread = f"{min(values):.2f} – {max(values):.2f}"
            line += f"{middle:>{width}.2f}{spread:>16}{middle / base[key]:>7.2f}"
        click.echo(line)


if __name__ == "__main__":
    tune_process()  # as train.py
    main()
