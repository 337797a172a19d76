"""What happens between building a run and its first step: f adapts to the data, conditions get ready."""

from __future__ import annotations

from pathlib import Path

import torch

from torch_utils.rng import generator
from training.conditioning.base import Prepared
from training.dataset import ImageDataset
from training.loader import to_float
from training.run_state import RunState
from training.tables import LatentTable, encoded

FIT_IMAGES, SAMPLE_IMAGES = 10_000, 2000


def fit_and_sample(count: int, num_images: int, seed: int) -> tuple[list[int], list[int]]:
    """Places of the images that f is fitted to, at most 10,000 of `count` (flips included), and those of σ's sample.

    The second, at most 2000 and among the first, are of the `num_images` unflipped ones: an image and its mirror image
    are no two neighbours.
    """
    order = torch.randperm(count, generator=generator(seed, "fit")).tolist()[:FIT_IMAGES]
    return order, [i for i in order if i < num_images][:SAMPLE_IMAGES]


def prepare(run: RunState, dataset: ImageDataset, run_dir: Path, *, fit: bool, resumed: bool) -> None:
    """Readies f and the conditioning: `fit` adapts f to the data set, `resumed` keeps what the method has chosen.

    A run resumes without either choice, one from other weights (``--init-from``) only keeps f. Where f never changes
    it is tabulated, in `run_dir` if the table is large.
    """
    seed, encoder = run.config["run"]["seed"], run.G.encoder
    f = sample = None
    if run.conditioning.uses_latents:
        print(f"Preparing instance latents of {len(dataset)} images (flips included).", flush=True)
        encoder.eval()
        order, plain = fit_and_sample(len(dataset), dataset.num_images, seed)
        if fit:
            images = (torch.stack([dataset[i][0] for i in order[s:s + 64]]) for s in range(0, len(order), 64))
            encoder.fit(to_float(img.to(run.device)) for img in images)
            run.G_ema.load_state_dict(run.G.state_dict())
        if not encoder.trainable:
            f = LatentTable.encode(encoder, dataset, range(len(dataset)), run.device, run_dir)
        if f is not None:
            sample = f[torch.tensor(plain)]
        elif not resumed:
            sample = torch.cat(list(encoded(encoder, dataset, plain, run.device)))
        encoder.train()
    run.conditioning.prepare(Prepared(dataset, f, sample, seed, resumed, run.device))
