"""Conditioning many samples, in batches and under one prior after another, with all that is to be shown of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from dnnlib import UserError
from ldm import guide, guide_priors, schedule
from ldm.ddim import EpsFn
from ldm.guidance.base import Task
from ldm.guide_space import WhitenedSpace
from ldm.prior import Prior
from torch_utils.rng import sample_normal

SPACING = "quadratic"  # of the times of ``guided``: what the task asks for at much noise is soon forgotten
Progress = Callable[[int], object]  # number of task updates done, over all samples


@dataclass(frozen=True)
class Settings:
    """Of all priors; see docs/conditioning.md for how the defaults were found.

    iterations, lr    task updates by Adam, its learning rate (all but ``guided``)
    mean_weight       of the squared distance per value to the mean, against the task's loss
    cluster_weight    the same to the nearest cluster's centre
    clusters          number of these
    noise             ``diffusion``: noise in percent from which its updates come down
    prior_updates     ``diffusion``: updates by the prior for each by the task
    steps, inner      ``guided``: steps of DDIM, task updates in each
    guidance_scale    ``guided``: how far each of them moves a value where all is noise
    """

    iterations: int = 60
    lr: float = 0.1
    mean_weight: float = 0.1
    cluster_weight: float = 0.1
    clusters: int = 64
    noise: float = 5.0
    prior_updates: int = 10
    steps: int = 30
    inner: int = 2
    guidance_scale: float = 0.2


@dataclass(frozen=True)
class Diffusion:
    """A latent diffusion model as the priors need it: noise estimate and schedule, see `ldm.prior.Prior`."""

    eps: EpsFn
    alpha_bar: torch.Tensor

    @classmethod
    def of(cls, prior: Prior, class_idx: int | None) -> Diffusion:
        """Of a trained model; a model that knows classes is told `class_idx`."""
        if prior.labels is None:
            return cls(prior.eps, prior.alpha_bar)
        assert class_idx is not None

        def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return prior.net(x, t, torch.full((len(x),), class_idx, device=x.device))

        return cls(eps, prior.alpha_bar)


@dataclass
class Trace:
    """What was seen of a batch: losses ``[n]`` of each update, and the states after some numbers of updates."""

    wanted: Sequence[int]
    progress: Callable[[], object]
    task: list[torch.Tensor] = field(default_factory=list)
    prior: list[torch.Tensor] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)

    def keep(self, count: int, x: torch.Tensor) -> None:
        """`x` after `count` updates, as often as that count is wanted."""
        self.states += [x.clone()] * self.wanted.count(count)

    def watch(self, i: int, x: torch.Tensor, task: torch.Tensor, prior: torch.Tensor) -> None:
        """A `ldm.guide.Watch`."""
        self.task.append(task.cpu())
        self.prior.append(prior.cpu())
        self.keep(i + 1, x)
        self.progress()


@dataclass(frozen=True)
class Found:
    """Samples under one prior.

    latents      ``[n, C, H, W]``, as the generator takes them, on the CPU
    img          ``[n, C, H, W]`` in [-1, 1], on the CPU
    loss         ``[n]``: the task's loss of `img`
    task, prior  losses over the updates, ``[n, updates]``
    frames       states on the way ``[rows, frames, C, H, W]`` of the first samples, from the start to the last update
    seconds      that it took
    """

    prior_name: str
    latents: torch.Tensor
    img: torch.Tensor
    loss: torch.Tensor
    task: torch.Tensor
    prior: torch.Tensor
    frames: torch.Tensor | None
    seconds: float

    def summary(self) -> dict[str, float]:
        """Task loss over the samples, the prior's at the end, and the time; JSON types."""
        return {"task_loss": self.loss.mean().item(), "task_loss_std": self.loss.std().item(),
                "prior_loss": self.prior[:, -1].mean().item(), "seconds": self.seconds}


class Search:
    """Samples for a task: each depends on its seed (and number, where there are several targets) alone."""

    def __init__(self, space: WhitenedSpace, task: Task, settings: Settings, *,
                 start: Callable[[Sequence[int]], torch.Tensor], diffusion: Diffusion | None = None,
                 centres: torch.Tensor | None = None) -> None:
        """start: seeds -> latents of random images. diffusion: for the priors ``diffusion`` and ``guided``.

        centres: whitened ``[K, D]``, for ``cluster``.
        """
        self.space, self.task, self.settings = space, task, settings
        self.start, self.diffusion, self.centres = start, diffusion, centres

    def updates(self, prior: str) -> int:
        """Task updates of a sample."""
        s = self.settings
        return s.steps * s.inner if prior == "guided" else s.iterations

    def check(self, priors: Sequence[str]) -> None:
        """`UserError` for settings that the latent diffusion model doesn't allow."""
        if "diffusion" in priors:
            self._times  # noqa: B018 - raises
        if "guided" in priors:
            assert self.diffusion is not None
            known = len(self.diffusion.alpha_bar)
            if self.settings.steps > known:
                raise UserError(f"--steps {self.settings.steps}: this latent model was trained with {known}; choose "
                                "fewer.")

    @property
    def _times(self) -> list[int]:
        """Of the diffusion prior's updates."""
        assert self.diffusion is not None, "this prior needs a latent diffusion model"
        return guide_priors.noise_times(self.diffusion.alpha_bar, self.settings.noise, self.settings.prior_updates)

    def run(self, prior: str, seeds: Sequence[int], batch_size: int, *, frames: int = 0, rows: int = 0,
            progress: Progress = lambda updates: None) -> Found:
        """Samples of all `seeds` under `prior`.

        frames: states that are kept of the first `rows` samples, from the start to the end; 0 or at least 2.
        progress: told the number of samples that got one more task update.
        """
        begun, updates = time.monotonic(), self.updates(prior)
        wanted = [round(updates * k / (frames - 1)) for k in range(frames)]
        batches, strips = [], []
        for first in range(0, len(seeds), batch_size):
            part = seeds[first:first + batch_size]
            task = self.task.select([(first + k) % self.task.num_targets for k in range(len(part))])
            trace = Trace(wanted if first < rows else [], functools.partial(progress, len(part)))
            x = self._sample(prior, part, task, trace)
            with torch.no_grad():
                img = self.space.images(x, part)
                batches.append([self.space.latents(x).cpu(), img.cpu(), task.loss(img).cpu(),
                                torch.stack(trace.task, 1), torch.stack(trace.prior, 1)])
                if trace.states:
                    states = [self.space.images(state, part).cpu() for state in trace.states]
                    strips.append(torch.stack(states, 1)[:rows - first])
        latents, images, losses, task_losses, prior_losses = map(torch.cat, zip(*batches, strict=True))
        return Found(prior, latents, images, losses, task_losses, prior_losses,
                     torch.cat(strips) if strips else None, time.monotonic() - begun)

    def _sample(self, prior: str, seeds: Sequence[int], task: Task, trace: Trace) -> torch.Tensor:
        """Whitened latents of a batch."""
        def loss(x: torch.Tensor) -> torch.Tensor:
            return task.loss(self.space.images(x, seeds))

        s = self.settings
        if prior == "guided":
            assert self.diffusion is not None
            eps, alpha_bar = self.diffusion.eps, self.diffusion.alpha_bar
            noise = sample_normal(seeds, self.space.shape, "ldm").to(self.space.device)  # as `Prior.sample` draws it
            trace.keep(0, noise)
            times = schedule.timesteps(s.steps, len(alpha_bar), SPACING)
            return self.space.project(guide.guide(loss, noise, eps, alpha_bar, times, scale=s.guidance_scale,
                                                  inner=s.inner, watch=trace.watch))
        start = self.space.whitening.apply(self.start(seeds))
        trace.keep(0, start)
        descent, project = guide.Descent(s.iterations, s.lr), self.space.project
        if prior == "none":
            return guide.optimise(loss, start, descent, project=project, watch=trace.watch)
        if prior == "diffusion":
            assert self.diffusion is not None
            update = guide_priors.diffusion_update(self.diffusion.eps, self.diffusion.alpha_bar, self._times)
            return guide.optimise(loss, start, descent, project=project, watch=trace.watch, update=update)
        penalty: guide.Loss = guide_priors.mean_penalty
        if prior == "cluster":
            assert self.centres is not None, "clusters need centres"
            penalty = guide_priors.cluster_penalty(self.centres)
        weight = s.cluster_weight if prior == "cluster" else s.mean_weight
        return guide.optimise(loss, start, descent, project=project, watch=trace.watch, penalty=penalty, weight=weight)
