"""Predictor-corrector sampling (Song et al. 2021, "Score-based generative modeling", algorithms 1 and 5).

After every DDIM step, Langevin steps at the new noise level pull the state towards the distribution that the model has
there, and so undo some of the predictor's error. Notation as in `ldm.ddim`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ldm.ddim import EpsFn, NoiseFn, at_time, step
from ldm.schedule import visits


def correct(x: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor, a: float, snr: float) -> torch.Tensor:
    """One Langevin step at noise level `a`: x + d * score + sqrt(2 d) * noise with d = 2 snr^2 (1 - a).

    The paper takes d = 2 (snr * |noise| / |score|)^2 with norms averaged over the batch; |noise| / |score| is
    sqrt(1 - a) for a perfect estimate, which keeps samples independent of the batch that they are in.
    `eps` is the noise estimate, -sqrt(1 - a) times the score. The step's own error makes variances too large by
    a share of snr^2 at most.
    """
    spread = math.sqrt(1 - a)
    return x - 2 * snr * snr * spread * eps + 2 * snr * spread * noise


@torch.no_grad()
def sample(eps_fn: EpsFn, x_T: torch.Tensor, alpha_bar: torch.Tensor, steps: Sequence[int], noise_fn: NoiseFn,
           corrections: int = 1, snr: float = 0.16, end: float = 1.0) -> torch.Tensor:
    """From noise `x_T` ``[N, ...]`` to clean data, or to the noise level `end`; arguments as of `ddim.sample`.

    noise_fn     number of a Langevin step (from 0, over the whole chain) -> standard normal like x_T
    corrections  Langevin steps after each predictor step, none after the last: the model has no time for its level
    snr          size of a Langevin step, see `correct`
    """
    x, count = x_T, 0
    path = visits(alpha_bar, steps, end)
    for i, (t, a_t, a_s) in enumerate(path):
        x = step(x, at_time(eps_fn, x, t), a_t, a_s)
        for _ in range(corrections if i + 1 < len(path) else 0):
            x = correct(x, at_time(eps_fn, x, path[i + 1][0]), noise_fn(count).to(x), a_s, snr)
            count += 1
    return x
