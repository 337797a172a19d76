"""Samplers of diffusion models as pure functions (Song et al. 2021, "Denoising diffusion implicit models").

Notation: `a_t` is alpha-bar at the present time, `a_s` that of the next, less noisy one (1 for clean data);
x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps. Nothing is clamped: latents have no fixed range. The other families are
`ldm.dpm` (second order) and `ldm.langevin` (predictor and corrector).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ldm.schedule import visits

EpsFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
NoiseFn = Callable[[int], torch.Tensor]


def add_noise(x_0: torch.Tensor, eps: torch.Tensor, a_t: torch.Tensor | float) -> torch.Tensor:
    """x_t at noise level `a_t`, a number or a float64 tensor ``[N]`` for `x_0` ``[N, ...]`` (eq. 4)."""
    level = torch.as_tensor(a_t, dtype=torch.float64)
    level = level.reshape(level.shape + (1,) * (x_0.ndim - 1)) if level.ndim else level
    return level.sqrt().to(x_0) * x_0 + (1 - level).sqrt().to(x_0) * eps


def predict_clean(x_t: torch.Tensor, eps: torch.Tensor, a_t: float) -> torch.Tensor:
    """The x_0 that `x_t` and the noise estimate `eps` imply (eq. 9)."""
    return (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)


def at_time(eps_fn: EpsFn, x: torch.Tensor, t: int) -> torch.Tensor:
    """The noise estimate for `x` ``[N, ...]``, all at time `t`."""
    return eps_fn(x, torch.full((len(x),), t, dtype=torch.int64, device=x.device))


def step_sigma(a_t: float, a_s: float, eta: float) -> float:
    """Standard deviation of the fresh noise in one step (eq. 16); eta 1 is the posterior of the DDPM."""
    return eta * math.sqrt((1 - a_t / a_s) * (1 - a_s) / (1 - a_t))


def step(x_t: torch.Tensor, eps: torch.Tensor, a_t: float, a_s: float, sigma: float = 0.0,
         noise: torch.Tensor | None = None) -> torch.Tensor:
    """One step from noise level `a_t` to `a_s` (eq. 12), with `sigma` times `noise` put in afresh."""
    direction = math.sqrt(max(1 - a_s - sigma * sigma, 0.0))
    x_s = math.sqrt(a_s) * predict_clean(x_t, eps, a_t) + direction * eps
    return x_s if noise is None else x_s + sigma * noise


@torch.no_grad()
def sample(eps_fn: EpsFn, x_T: torch.Tensor, alpha_bar: torch.Tensor, steps: Sequence[int], eta: float = 0.0,
           noise_fn: NoiseFn | None = None, end: float = 1.0) -> torch.Tensor:
    """Runs the chain from noise to clean data, or to the noise level `end`.

    eps_fn     (x ``[N, ...]``, t int64 ``[N]``) -> noise estimate like x
    x_T        standard normal ``[N, ...]``
    alpha_bar  float64 ``[T]`` of `schedule.alpha_bars`
    steps      falling times to visit, of `schedule.timesteps`
    eta        0 deterministic DDIM ... 1 DDPM ancestral sampling
    noise_fn   number of the step (from 0) -> standard normal like x_T; needed when eta > 0
    end        alpha-bar of the state that is returned

    Returns x_0 (or the state at `end`), shaped like x_T. Raises ValueError when the times don't fall or reach `end`,
    eta is outside [0, 1] or `noise_fn` is missing.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, not {eta}")
    if eta > 0 and noise_fn is None:
        raise ValueError("eta > 0 needs noise_fn")
    x = x_T
    for i, (t, a_t, a_s) in enumerate(visits(alpha_bar, steps, end)):
        sigma = step_sigma(a_t, a_s, eta)
        noise = noise_fn(i).to(x) if noise_fn is not None and sigma > 0 else None
        x = step(x, at_time(eps_fn, x, t), a_t, a_s, sigma, noise)
    return x


@torch.no_grad()
def encode(eps_fn: EpsFn, x_0: torch.Tensor, alpha_bar: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """The deterministic chain backwards: the x_T ``[N, ...]`` from which `sample` comes back to `x_0` (section 4.3).

    `steps` as of `sample`, in the same falling order. Each step takes the noise estimate of where it starts, so that
    the way back is exact only in the limit of many steps.
    """
    x = x_0
    now = steps[-1]  # clean data have no time of their own; the least noisy one stands for it
    for t, a_t, a_s in reversed(visits(alpha_bar, steps)):
        x = step(x, at_time(eps_fn, x, now), a_s, a_t)
        now = t
    return x
