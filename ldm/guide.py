"""Conditioning at test time: latents that make a task's loss small without leaving what is likely.

Volkovskyi, "Conditioning GANs at test time using denoising diffusion". Latents are whitened, ``[N, C, H, W]``, mean 0
and variance 1, so that one learning rate and one weight mean the same in every space and for every prior. Nothing here
knows a generator: a `Loss` decodes latents itself. Losses are summed over the batch and all else is elementwise or per
sample, so that a sample doesn't depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ldm import ddim
from ldm.schedule import visits

Loss = Callable[[torch.Tensor], torch.Tensor]  # whitened latents [N, ...] -> [N]
Map = Callable[[torch.Tensor], torch.Tensor]  # whitened latents -> the same shape
# Number of the update, latents after it, task loss [N] before it, prior loss [N] (see `optimise` and `guide`).
Watch = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Descent:
    """Adam on latents: number of task updates, and the learning rate, which falls to 0 along a half cosine."""

    iterations: int
    lr: float

    def rate(self, i: int) -> float:
        """Of update `i`."""
        return self.lr * 0.5 * (1 + math.cos(math.pi * i / self.iterations))


def optimise(loss: Loss, start: torch.Tensor, descent: Descent, *, project: Map, watch: Watch,
             penalty: Loss | None = None, weight: float = 0.0, update: Map | None = None) -> torch.Tensor:
    """Latents from `start` by Adam on ``loss + weight · penalty``, with a prior's `update` after every step of Adam.

    Neither of both is no prior, a penalty the mean or the cluster prior, an update the diffusion prior.
    project: back to latents that there are, after a step. `watch` is told as prior loss the penalty, or how far the
    update moved the latents (mean square over values); 0 without a prior.
    """
    x = start.clone().requires_grad_()
    adam = torch.optim.Adam([x])
    for i in range(descent.iterations):
        adam.param_groups[0]["lr"] = descent.rate(i)
        task = loss(x)
        prior = torch.zeros_like(task) if penalty is None else penalty(x)
        x.grad = torch.autograd.grad((task + weight * prior).sum(), x)[0]
        adam.step()
        with torch.no_grad():
            x.copy_(project(x))
            if update is not None:
                moved = update(x)
                prior = mean_square(moved - x)
                x.copy_(moved)
        watch(i, x.detach(), task.detach(), prior.detach())
    return x.detach()


def guide(loss: Loss, x_T: torch.Tensor, eps_fn: ddim.EpsFn, alpha_bar: torch.Tensor, steps: Sequence[int], *,
          scale: float, inner: int, watch: Watch) -> torch.Tensor:
    """Latents by deterministic DDIM from noise `x_T`, steered by the task's gradient through the model.

    At every step the model's estimate of the clean latent is moved `inner` times, each time by

        −scale · sqrt(1 − a_t) · g / rms(g),   g = the gradient of the task's loss at the moved estimate, in x_t,

    and the next state by the same in sum. The gradient in x_t is that in the estimate times the model's Jacobian
    (Chung et al. 2023, "Diffusion posterior sampling"), which takes away what would lead off the data; its length is
    normalised per sample, and the noise that is left says how far it may lead. scale 0 is plain DDIM. `watch` is told
    as prior loss how far the task moved the estimate (mean square over values).
    """
    x = x_T
    for i, (t, a_t, a_s) in enumerate(visits(alpha_bar, steps)):
        x = x.detach().requires_grad_()
        eps = ddim.at_time(eps_fn, x, t)
        estimate = ddim.predict_clean(x, eps, a_t)
        shift = torch.zeros_like(x)
        for k in range(inner):
            moved = estimate + shift
            task = loss(moved)
            gradient = torch.autograd.grad(task.sum(), x, retain_graph=True)[0]
            shift = shift - scale * math.sqrt(1 - a_t) * _unit_rms(gradient)
            watch(i * inner + k, (estimate + shift).detach(), task.detach(), mean_square(shift))
        x = ddim.step(x, eps, a_t, a_s).detach() + shift
    return x


def _unit_rms(x: torch.Tensor) -> torch.Tensor:
    """Each sample of ``[N, ...]`` divided by its root mean square; 0 stays 0."""
    rms = mean_square(x).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    return x / rms.reshape(-1, *[1] * (x.ndim - 1))


def mean_square(x: torch.Tensor) -> torch.Tensor:
    """Per sample: ``[N, ...]`` -> ``[N]``."""
    return x.square().flatten(1).mean(1)
