"""Training speed and peak memory of presets, alternating, each measurement in a process of its own.

\b
Example:
  python benchmarks/bench_train.py --cfg fastgan_lite,dicgan_lite --resolution 256 --batch 8 --rounds 3

Only ratios of one call are worth quoting: machines differ and are noisy. Data loading is not in it (random
images in memory), conditioning and both optimizer steps are.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib.tuning import tune_process  # noqa: E402  (found from the project's root)


def measure(cfg: str, resolution: int, batch: int | None, steps: int) -> dict[str, float]:
    """Images per second (median step, after one warm-up step) and peak resident bytes of this process."""
    import torch

    from dnnlib import construct
    from training.conditioning.base import Batch
    from training.dataset import ImageDataset
    from training.loader import to_float
    from training.preparation import prepare
    from training.resolve import resolve
    from training.run_state import RunState
    from training.training_loop import Trainer

    class RandomImages(ImageDataset):
        """64 fixed random pictures in memory."""

        def __init__(self) -> None:
            self.num_images, self.labels = 64, None
            rng = torch.Generator().manual_seed(0)
            self.images = torch.randint(0, 256, (64, 3, resolution, resolution), generator=rng, dtype=torch.uint8)

        def __len__(self) -> int:
            return self.num_images

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
            return self.images[index], -1, index

    data = {"path": "", "name": "random", "resolution": resolution, "aspect": (1, 1), "channels": 3, "num_images": 64,
            "label_dim": 0, "fingerprint": ""}
    # A fixed sigma: random images have no neighbours for `auto` to find.
    sigma = 0.5 if cfg.startswith("dicgan") else None
    config = resolve(cfg, {"batch": batch, "batch_gpu": batch, "metrics": "none", "sigma": sigma}, data)
    size = config["run"]["batch"]
    config["run"]["batch_gpu"] = size
    run, dataset = RunState(config, torch.device("cpu")), RandomImages()
    prepare(run, dataset, ROOT, fit=True, resumed=False)
    trainer = Trainer(run, dataset, ROOT, None)
    assert construct(config["run"]).batch == size
    seconds = []
    for step in range(steps + 1):
        indices = torch.arange(step * size, (step + 1) * size) % 64
        images = to_float(torch.stack([dataset[int(i)][0] for i in indices]))
        begun = time.perf_counter()
        trainer.iteration(Batch(images, torch.full((size,), -1), indices, indices), size)
        seconds.append(time.perf_counter() - begun)
    return {"img_per_sec": size / statistics.median(seconds[1:]),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0, "batch": size}


@click.command(help=__doc__)
@click.option("--cfg", default="fastgan_demo,dicgan_demo", show_default=True, help="Presets, comma-separated; "
              "the first is the one that ratios refer to")
@click.option("--resolution", type=int, default=64, show_default=True)
@click.option("--batch", type=int, help="Images per step  [default: the preset's]")
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Timed steps")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds over all presets")
@click.option("--one", is_flag=True, hidden=True)
def main(cfg: str, resolution: int, batch: int | None, steps: int, rounds: int, one: bool) -> None:
    if one:
        click.echo(json.dumps(measure(cfg, resolution, batch, steps)))
        return
    names = cfg.split(",")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            command = [sys.executable, __file__, "--one", "--cfg", name, "--resolution", str(resolution),
                       "--steps", str(steps), *(["--batch", str(batch)] if batch else [])]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            if done.returncode:
                raise click.ClickException(f"{name}: {done.stderr.strip().splitlines()[-1]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            click.echo(f"round {number + 1} {name}: {results[name][-1]['img_per_sec']:.2f} img/s", err=True)
    click.echo(f"{resolution} px, {steps} steps, {rounds} rounds, medians (minimum – maximum)")
    click.echo(f"{'preset':<16}{'batch':>6}{'img/s':>10}{'range':>20}{'ratio':>8}{'peak MiB':>10}")
    base = statistics.median(row["img_per_sec"] for row in results[names[0]])
    for name, rows in results.items():
        speeds = [row["img_per_sec"] for row in rows]
        middle = statistics.median(speeds)
        peak = statistics.median(row["peak_bytes"] for row in rows) / 2**20
        spread = f"{min(speeds):.2f} – {max(speeds):.2f}"
        click.echo(f"{name:<16}{rows[0]['batch']:>6.0f}{middle:>10.2f}{spread:>20}{middle / base:>8.2f}{peak:>10.0f}")


if __name__ == "__main__":
    tune_process()  # as train.py
    main()
