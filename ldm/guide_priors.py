"""What makes latents likely: penalties of the mean and the cluster prior, updates of the diffusion prior.

All in whitened space, see `ldm.guide`.
"""

from __future__ import annotations

import torch

from dnnlib import UserError
from ldm import ddim
from ldm.guide import Loss, Map, mean_square


def mean_penalty(x: torch.Tensor) -> torch.Tensor:
    """Squared distance to the mean latent, which whitening puts at 0, per value: ``[N, ...]`` -> ``[N]``."""
    return mean_square(x)


def cluster_penalty(centres: torch.Tensor) -> Loss:
    """Squared distance to the nearest of `centres` ``[K, D]``, per value: ``[N, ...]`` -> ``[N]``."""
    def penalty(x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1)
        with torch.no_grad():
            nearest = torch.cdist(rows, centres.to(x)).argmin(1)
        return mean_square(rows - centres.to(x)[nearest])
    return penalty


def noise_times(alpha_bar: torch.Tensor, percent: float, count: int) -> list[int]:
    """`count` falling times, evenly from the one with `percent` % of noise, sqrt(1 − alpha-bar), to the first.

    `UserError` where the schedule has fewer times than that up to `percent`.
    """
    known = int(((1 - alpha_bar).sqrt() <= percent / 100).sum())
    if known < count:
        raise UserError(f"--noise {percent:g}: this latent model knows {known} times with so little noise, but "
                        f"--prior-updates {count} takes as many; say --prior-updates {known}." if known else
                        f"--noise {percent:g}: this latent model knows no time with so little noise; give more.")
    return [known - 1] if count == 1 else [round((known - 1) * i / (count - 1)) for i in range(count)][::-1]


def diffusion_update(eps_fn: ddim.EpsFn, alpha_bar: torch.Tensor, times: list[int]) -> Map:
    """Whitened latents are taken for noisy ones of the first of `times` and brought to clean data by DDIM."""
    def update(x: torch.Tensor) -> torch.Tensor:
        return ddim.sample(eps_fn, x, alpha_bar, times)
    return update
