"""Training speed and peak memory of our path against a plain form of the published step (benchmarks/reference).

\b
Examples:
  python benchmarks/bench_train.py
  python benchmarks/bench_train.py --cfg fastgan_lite,dicgan --resolution 256 --rounds 5 --out train.jsonl
  python benchmarks/bench_train.py --cfg fastgan_demo,dicgan_demo --resolution 64 --batch 16 --change amp=bf16

Both sides make whole iterations (conditions, G, D, optimizers, moving average) of the same configuration in float32
on random images in memory, in turns, each measurement in a process of its own. Medians over rounds, and their
ratios; only ratios of one call are worth quoting. Our side runs under the settings of dnnlib/tuning.py, as train.py
does, the reference as Python starts, unless --tune-reference. The last column is our cost per image in multiples of
that of the first configuration. Measurements also appear as lines of JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rounds import IMAGES, Row, run, timed, two_sided  # noqa: E402  (found from the project's root)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def random_images(resolution: int) -> torch.Tensor:
    """uint8 ``[IMAGES, 3, resolution, resolution]``."""
    import torch

    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (IMAGES, 3, resolution, resolution), generator=rng, dtype=torch.uint8)


def our_step(config: dict[str, Any], images: torch.Tensor, device: torch.device) -> Callable[[torch.Tensor], None]:
    """An iteration of our loop on the images of given indices."""
    import torch

    from torch_utils.device import sent
    from training.conditioning.base import Batch
    from training.dataset import ImageDataset
    from training.loader import to_float
    from training.preparation import prepare
    from training.run_state import RunState
    from training.training_loop import Trainer

    class RandomImages(ImageDataset):
        """The images as a data set."""

        def __init__(self) -> None:
            self.num_images, self.labels = IMAGES, None

        def __len__(self) -> int:
            return IMAGES

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
            return images[index], -1, index

    run, dataset = RunState(config, device), RandomImages()
    prepare(run, dataset, ROOT, fit=True, resumed=False)
    trainer = Trainer(run, dataset, ROOT, None)

    def step(indices: torch.Tensor) -> None:
        labels = sent(torch.full_like(indices, -1), device)
        batch = Batch(to_float(sent(images[indices], device)), labels, indices, indices)
        trainer.iteration(batch, len(indices))

    return step


def plain_step(config: dict[str, Any], images: torch.Tensor, device: torch.device) -> Callable[[torch.Tensor], None]:
    """The same of the reference."""
    import torch
    import torch.nn.functional as F

    from benchmarks.reference.step import build_trainer
    from training.loader import to_float

    torch.manual_seed(0)
    trainer = build_trainer(config, device)
    if config["cfg"].startswith("icgan"):
        trainer.features = F.normalize(torch.randn(IMAGES, config["G"]["c_parts"]["instance"]), dim=1).to(device)

    def step(indices: torch.Tensor) -> None:
        trainer.iteration(to_float(images[indices].to(device)), torch.full_like(indices, -1).to(device), indices)

    return step


def measure(side: str, config: dict[str, Any], seconds: float, device: str) -> Row:
    """Speed and peak memory in this process, as `timed`."""
    import torch

    from torch_utils.device import select_device

    images, batch = random_images(config["G"]["img_resolution"]), config["run"]["batch"]
    step = (our_step if side == "fast" else plain_step)(config, images, select_device(device))
    place = 0

    def next_step() -> None:
        nonlocal place
        step(torch.arange(place, place + batch) % IMAGES)
        place += batch

    return timed(next_step, seconds, batch, device)


@click.command(help=__doc__)
@two_sided(resolution="64,128,256", batch=8, seconds=20)
def main(**options: Any) -> None:
    run(__file__, measure, **options)


if __name__ == "__main__":
    main()
