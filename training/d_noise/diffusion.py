"""Forward diffusion with a chain that grows while the discriminator overfits (Diffusion-GAN, Wang et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch

from dnnlib import UserError
from torch_utils.device import sent_like
from torch_utils.rng import generator as seeded
from training.d_noise.base import DNoise

T_DISTRIBUTIONS = ("priority", "uniform")
POOL = 64
ADAPT_EVERY = 4  # iterations


def signal_levels(steps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """ᾱ_t for t = 0 … steps, float64 [steps + 1]: products of 1 − β, with β linear over the *current* length.

    ᾱ_0 = 1, so that t = 0 is the identity.
    """
    betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])


def time_weights(steps: int, distribution: str) -> torch.Tensor:
    """Probabilities of t = 1 … steps, float64 [steps].

    ``priority``: ∝ t − 1, as the official code has it (the paper says ∝ t): long chains are met often from the time
    that they exist. ``uniform``: all alike.
    """
    if distribution == "uniform":
        return torch.full((steps,), 1 / steps, dtype=torch.float64)
    weights = torch.arange(steps, dtype=torch.float64)
    return weights / weights.sum()


def draw_pool(steps: int, distribution: str, nonzero: int, generator: torch.Generator) -> torch.Tensor:
    """int64 [POOL]: `nonzero` times drawn by `time_weights`, the rest 0 (undiffused)."""
    pool = torch.zeros(POOL, dtype=torch.int64)
    if nonzero:
        weights = time_weights(steps, distribution)
        pool[:nonzero] = 1 + torch.multinomial(weights, nonzero, replacement=True, generator=generator)
    return pool


def diffuse(x: torch.Tensor, t: torch.Tensor, levels: torch.Tensor, noise_std: float,
            generator: torch.Generator) -> torch.Tensor:
    """x_t = √ᾱ_t · x + √(1 − ᾱ_t) · noise_std · ε for x [N, C, H, W]; gradients flow through.

    t int64 [N] or, a time per channel, [N, C], on the CPU as are `levels` (`signal_levels`) and `generator`.
    """
    level = levels[t].reshape(*t.shape, *[1] * (x.dim() - t.dim()))
    eps = sent_like(torch.randn(x.shape, generator=generator, device="cpu"), x)
    return torch.addcmul(sent_like(level.sqrt(), x) * x, sent_like(noise_std * (1 - level).sqrt(), x), eps)


class AdaptiveDiffusion(DNoise):
    """A diffusion whose length T = t_min + round(p · (t_max − t_min)) follows the sign of D on reals.

    t_min, t_max          shortest and longest chain, in steps
    beta_start, beta_end  β of the first and the last step, whatever T is
    noise_std             of ε, in units of what is diffused
    target                mean sign of D(real) that p aims at, 0 to below 1: above it D overfits and T grows
    ada_kimg              thousands of images in which p can go from 0 to 1
    t_distribution        key of `T_DISTRIBUTIONS`
    seed                  of the run

    Times come from a pool of `POOL` values, which is drawn anew at every adaptation from (seed, number of
    adaptations): the state is a handful of numbers and a resumed run has the same pool.
    """

    def __init__(self, *, t_min: int, t_max: int, beta_start: float, beta_end: float, noise_std: float, target: float,
                 ada_kimg: float, t_distribution: str, seed: int) -> None:
        if not 0 <= target < 1:
            raise UserError(f"--d-noise-target {target:g}: must be at least 0 and below 1.")
        if t_distribution not in T_DISTRIBUTIONS:
            raise UserError(f"--t-dist {t_distribution}: choose one of {', '.join(T_DISTRIBUTIONS)}.")
        if not 2 <= t_min <= t_max:  # the priority of a single step is 0
            raise ValueError(f"t_min and t_max need 2 <= t_min <= t_max, not {t_min} and {t_max}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"betas need 0 < beta_start <= beta_end < 1, not {beta_start} and {beta_end}")
        if noise_std < 0 or ada_kimg <= 0:
            raise ValueError(f"noise_std {noise_std} must not be negative and ada_kimg {ada_kimg} must be above 0")
        self.t_min, self.t_max = t_min, t_max
        self.beta_start, self.beta_end, self.noise_std = beta_start, beta_end, noise_std
        self.target, self.ada_kimg, self.t_distribution, self.seed = target, ada_kimg, t_distribution, seed
        self.p = 0.0
        self.steps = self.adaptations = self.sign_count = 0
        self.sign_sum: torch.Tensor | float = 0.0
        self._renew()

    @property
    def length(self) -> int:
        """T, the number of steps of the chain."""
        return self.t_min + round(self.p * (self.t_max - self.t_min))

    def nonzero(self) -> int:
        """How many entries of the pool are diffused."""
        raise AssertionError("a diffusion says what share of its pool it diffuses")

    def _renew(self) -> None:
        self.levels = signal_levels(self.length, self.beta_start, self.beta_end)
        rng = seeded("d_noise", self.seed, self.adaptations)
        self.pool = draw_pool(self.length, self.t_distribution, self.nonzero(), rng)

    def draw_times(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """int64 of `shape`, drawn from the pool."""
        return self.pool[torch.randint(POOL, shape, generator=generator, device="cpu")]

    def observe(self, real_logits: torch.Tensor) -> None:
        # A sum on the device: whole numbers, exact in float32, and nothing waits for it.
        self.sign_sum = self.sign_sum + real_logits.detach().sign().float().sum()
        self.sign_count += real_logits.numel()

    def after_step(self, batch: int) -> dict[str, float]:
        """p += sign(E[sign D(real)] − target) · 4 · batch / (1000 · ada_kimg) at every fourth iteration, in [0, 1]."""
        self.steps += 1
        if self.steps % ADAPT_EVERY == 0 and self.sign_count:
            excess = float(self.sign_sum) / self.sign_count - self.target
            direction = (excess > 0) - (excess < 0)
            p = self.p + direction * batch * ADAPT_EVERY / (self.ada_kimg * 1000)
            self.p = min(max(p, 0.0), 1.0)
            self.sign_sum, self.sign_count = 0.0, 0
            self.adaptations += 1
            self._renew()
        return {"DNoise/p": self.p, "DNoise/T": float(self.length)}

    def state_dict(self) -> dict[str, Any]:
        return {"p": self.p, "steps": self.steps, "adaptations": self.adaptations,
                "sign_sum": float(self.sign_sum), "sign_count": self.sign_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.p, self.steps, self.adaptations = state["p"], state["steps"], state["adaptations"]
        self.sign_sum, self.sign_count = state["sign_sum"], state["sign_count"]
        self._renew()
