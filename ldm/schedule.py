"""Noise schedules and the times at which a sampler visits them; pure functions.

Times are indices 0 .. T-1 into `alpha_bars` as in Ho et al. (2020): index 0 is the first noising step and
clean data stand before it, at alpha-bar 1. All arithmetic is float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from ldm.names import SCHEDULES, SPACINGS


def alpha_bars(kind: str = "linear", num_steps: int = 1000, beta_start: float = 1e-4,
               beta_end: float = 0.02) -> torch.Tensor:
    """Cumulative products of 1 - beta, float64 ``[num_steps]``, strictly falling within (0, 1).

    ``linear``: betas evenly from `beta_start` to `beta_end` (Ho et al. 2020). ``cosine``: squared cosine with
    offset 0.008 and betas of at most 0.999 (Nichol and Dhariwal 2021, eq. 17); it uses neither beta.
    Raises ValueError on an unknown kind, fewer than 2 steps or betas outside (0, 1).
    """
    if kind not in SCHEDULES or num_steps < 2 or not (0 < beta_start < 1 and 0 < beta_end < 1):
        raise ValueError(f"no schedule {kind!r} with {num_steps} steps, betas {beta_start} to {beta_end}")
    if kind == "linear":
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
    else:
        position = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        level = torch.cos((position + 0.008) / 1.008 * (math.pi / 2)).square()
        betas = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0)


def timesteps(count: int, num_steps: int = 1000, spacing: str = "uniform") -> list[int]:
    """`count` distinct times, falling from T-1 to 0 (with count = 1 only T-1).

    ``uniform`` spaces them evenly, ``quadratic`` evenly in the square root of time, denser where little noise
    is left (Song et al. 2021, appendix D.2, there without the end points). Starting at T-1 matters: sampling
    starts from pure noise, which is what the data have become there and nowhere before.
    Raises ValueError unless 1 <= count <= num_steps.
    """
    if spacing not in SPACINGS or not 1 <= count <= num_steps:
        raise ValueError(f"cannot visit {count} of {num_steps} times with {spacing!r} spacing")
    if count == 1:
        return [num_steps - 1]
    power = 1 if spacing == "uniform" else 2
    times: list[int] = []
    for i in range(count):
        time = round((num_steps - 1) * (i / (count - 1)) ** power)
        # Rounding crowds the first quadratic times together; each then takes the next free index.
        times.append(max(time, times[-1] + 1) if times else time)
    return times[::-1]


def visits(alpha_bar: torch.Tensor, steps: Sequence[int], end: float = 1.0) -> list[tuple[int, float, float]]:
    """(t, a_t, a_s) of every step of a sampler: the time, its alpha-bar, and the alpha-bar that the step leads to.

    alpha_bar  float64 ``[T]``
    steps      falling times, as of `timesteps`
    end        alpha-bar of the state that comes out; 1 for clean data

    Raises ValueError when there are no times, they don't fall, or the last is no noisier than `end`.
    """
    if not steps or any(s >= t for t, s in itertools.pairwise(steps)):
        raise ValueError("times must fall and there must be at least one")
    levels = [*(float(alpha_bar[t]) for t in steps), end]
    if not levels[-2] < end <= 1:
        raise ValueError(f"the end {end} must lie above alpha-bar {levels[-2]} of the last time, and be 1 at most")
    return [(t, levels[i], levels[i + 1]) for i, t in enumerate(steps)]
