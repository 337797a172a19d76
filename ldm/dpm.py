"""A second-order sampler: DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2), a pure function.

It solves the same differential equation as deterministic DDIM, its first-order case, from one network call per step:
the estimate of x_0 is extrapolated from the last two. Notation as in `ldm.ddim`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ldm.ddim import EpsFn, at_time, predict_clean
from ldm.schedule import visits


def half_log_snr(a: float) -> float:
    """lambda = log(sqrt(a) / sqrt(1 - a)), the variable in which the solver's steps are measured; a < 1."""
    return 0.5 * math.log(a / (1 - a))


@torch.no_grad()
def sample(eps_fn: EpsFn, x_T: torch.Tensor, alpha_bar: torch.Tensor, steps: Sequence[int],
           end: float = 1.0) -> torch.Tensor:
    """From noise `x_T` ``[N, ...]`` to clean data or to the noise level `end`; arguments as of `ddim.sample`.

    The first step has no history and the last one to clean data is infinitely long in lambda; both are of first order.
    """
    x = x_T
    previous: torch.Tensor | None = None  # estimate of x_0 one step ago
    length_before = 0.0
    for t, a_t, a_s in visits(alpha_bar, steps, end):
        clean = predict_clean(x, at_time(eps_fn, x, t), a_t)
        if a_s == 1:
            return clean
        length = half_log_snr(a_s) - half_log_snr(a_t)
        guess = clean if previous is None else clean + (clean - previous) * (length / (2 * length_before))
        x = math.sqrt((1 - a_s) / (1 - a_t)) * x + math.sqrt(a_s) * -math.expm1(-length) * guess
        previous, length_before = clean, length
    return x
