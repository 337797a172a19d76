"""How much of what a latent diffusion model draws is its training latents themselves."""

from __future__ import annotations

import torch

from ldm.prior import Prior
from ldm.settings import Sampling
from ldm.trainer import Trainer

SAMPLES = 128
MOST_HELD_OUT = 1024
SETTINGS = Sampling(sampler="dpm2m")  # the one that needs fewest steps
COPIES = 0.5  # ratio below which samples are called copies


def nearest_distances(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Euclidean distance ``[N]`` of each of `queries` ``[N, ...]`` to the nearest of `bank` ``[M, ...]``."""
    rows = bank.flatten(1)
    return torch.cat([torch.cdist(part, rows).min(dim=1).values for part in queries.flatten(1).split(128)])


def nearest_ratio(trainer: Trainer) -> float:
    """Median distance of samples to the nearest training latent, over that of held-out latents; in whitened space.

    About 1 for a model that has learned the distribution, 0 for one that repeats its training latents, above 1 for
    samples that are further from all latents than real ones.
    """
    prior = Prior("this run", trainer.sampling_state(), trainer.device, trainer.ema)
    samples = trainer.whitening.apply(prior.sample(range(SAMPLES), SETTINGS))
    drawn, real = (nearest_distances(rows, trainer.train_latents).median()
                   for rows in (samples, trainer.held_latents[:MOST_HELD_OUT]))
    return float(drawn / real.clamp(min=1e-12))
