"""Networks, optimizer and progress of a latent diffusion run on a tensor of latents; knows nothing of generators."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import platform
from collections.abc import Iterator
from typing import Any

import torch

from dnnlib import UserError
from dnnlib.build_limit import MAX_ELEMENTS, limit_for, limited
from ldm import denoiser, whitening
from ldm.batches import LatentData, batch_indices, draw_times, noisy_set, split_images
from ldm.ddim import add_noise
from torch_utils import distributed, exchange
from torch_utils.device import device_description, sent
from torch_utils.ema import ema_beta, ema_update
from torch_utils.rng import generator, mix_seed
from torch_utils.shared_draws import shared_draws
from torch_utils.stats import Collector


def latents_hash(latents: torch.Tensor, labels: torch.Tensor | None) -> str:
    """SHA-256 of the training latents and their classes: a resumed run must go on with the same."""
    digest = hashlib.sha256(latents.contiguous().numpy().tobytes())
    if labels is not None:
        digest.update(labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Trainer:
    """Networks, optimizer and progress of one run; `step` and `evaluate` are all that changes them.

    `progress`: ``cur_nimg`` latents seen, ``cur_tick`` and ``tick_start_nimg``, training ``seconds`` over all
    sessions, ``heldout`` the loss at the last measurement. `best`: ``loss``, ``cur_nimg`` and ``ema`` of the
    moving average with the lowest held-out loss so far.
    """

    def __init__(self, config: dict[str, Any], data: LatentData, device: torch.device,
                 state: dict[str, Any] | None = None) -> None:
        """config: of `ldm.presets.resolve`, with ``seed``. state: the checkpoint to continue from."""
        self.config, self.data, self.device = config, data, device
        self.classes = config["net"].get("classes", 0)
        assert bool(self.classes) == (data.labels is not None), "classes go with labels"
        self.latents_hash = latents_hash(data.latents, data.labels)
        if state is not None and state["latents_hash"] != self.latents_hash:
            raise UserError("The training latents are not those that this run began with; start a new run.")
        train, held = split_images(data.image_index, config["holdout"], config["seed"])
        if state is None:
            images = len(data.image_index[train].unique())
            self.whitening = whitening.fit(data.latents[train], images, config["whiten"])
        else:
            self.whitening = whitening.Whitening.from_state(state["whitening"])
        self.alpha_bar = denoiser.alpha_bars_of(config)
        self.train_latents = self.whitening.apply(data.latents[train])
        self.held_latents = self.whitening.apply(data.latents[held])
        self.train_labels, held_labels = (None if data.labels is None else data.labels[part] for part in (train, held))
        self.test = noisy_set(self.held_latents, held_labels, self.alpha_bar, config["eval_size"], config["seed"])
        guess = denoiser.gaussian_guess(self.test.x, self.alpha_bar[self.test.t])
        self.guess_loss = (guess - self.test.eps).square().mean().item()

        torch.manual_seed(mix_seed(config["seed"], "ldm-init"))
        with _fitting(state), limited(limit_for(state["net"]) if state else MAX_ELEMENTS):
            self.net = denoiser.build(config, data.latents.shape[1:]).to(device).train()
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config["lr"], betas=tuple(config["betas"]),
                                          foreach=True)
        self.collector = Collector()
        self.progress: dict[str, Any] = {"cur_nimg": 0, "cur_tick": 0, "tick_start_nimg": 0, "seconds": 0.0,
                                         "heldout": None}
        self.best: dict[str, Any] | None = None
        if state is not None:
            with _fitting(state):
                self._load(state)

    def describe(self) -> str:
        """Lines about latents, network and machine for the head of the log."""
        latents, count = self.data.latents, sum(parameter.numel() for parameter in self.net.parameters())
        return (f"Latents: {len(latents)} of shape {'x'.join(map(str, latents.shape[1:]))}, {len(self.train_latents)} "
                f"for training; whitening: {self.whitening.kind}, shrinkage {self.whitening.shrinkage:.2f}\n"
                f"Network: {self.config['cfg']}, {count / 1e6:.2f} M parameters\n"
                f"Device:  {device_description(self.device)}")

    def step(self) -> None:
        """One optimizer step on the mean squared error of the noise (Eq. 7, squared), or of v (`NoiseEstimator`).

        Every random number follows from (seed, latents seen); of several processes, each takes its share of the
        batch. A loss or gradient that isn't finite raises `UserError` before the weights are touched.
        """
        config, cur_nimg, seed = self.config, self.progress["cur_nimg"], self.config["seed"]
        rng = generator(seed, "ldm-step", cur_nimg)
        rows = batch_indices(len(self.train_latents), cur_nimg, config["batch"], seed)
        x_0 = self.train_latents[rows]
        t = draw_times(len(x_0), len(self.alpha_bar), config["time_sampling"], rng)
        eps = torch.randn(x_0.shape, generator=rng)
        x_t = add_noise(x_0, eps, self.alpha_bar[t])
        y = None if self.train_labels is None else sent(self._told(self.train_labels[rows], rng), self.device)
        torch.manual_seed(mix_seed(seed, "ldm-dropout", cur_nimg))  # the only global draws of a step
        own = distributed.share()
        x_t, x_0, eps, t = (sent(part[own], self.device) for part in (x_t, x_0, eps, t))
        with shared_draws(None):
            loss = self.net.loss(x_t, x_0, eps, t, None if y is None else y[own])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        # Several processes have to agree on losses before they share gradients; one asks the device once.
        several = distributed.world() > 1
        self._stop_if(exchange.average_gradients(gradients, _not_finite(loss=loss) if several else None))
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config["clip"])
        self._stop_if(_not_finite(loss=loss, gradient=norm))
        self.optimizer.step()
        self.progress["cur_nimg"] = cur_nimg + config["batch"]
        ema_update(self.ema, self.net,
                   ema_beta(config["batch"], self.progress["cur_nimg"], config["ema_kimg"], config["ema_rampup"]))
        self.collector.report("Loss/train", loss)
        if distributed.rank() == 0:  # the same everywhere
            self.collector.report("Grad/norm", norm)

    def _told(self, labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """`labels` ``[N]`` with a share of them replaced by "no class", for classifier-free guidance."""
        hidden = torch.rand(len(labels), generator=rng) < self.config["label_dropout"]
        return labels.masked_fill(hidden, self.classes)

    def _stop_if(self, problem: str | None) -> None:
        if problem is not None:
            raise UserError(
                f"Training stopped at {self.progress['cur_nimg']} latents: {problem}. The weights were not updated; "
                "resume from the last snapshot, or start anew with a lower --lr."
            )

    @torch.no_grad()
    def evaluate(self) -> float:
        """Noise error of the moving average on the held-out test, shared by all; remembers the best weights."""
        total, size = 0.0, self.config["batch"]
        for start in range(distributed.rank() * size, len(self.test.t), distributed.world() * size):
            x, t, eps = (part[start:start + size].to(self.device) for part in (self.test.x, self.test.t, self.test.eps))
            y = None if self.test.y is None else self.test.y[start:start + size].to(self.device)
            total += (self.ema(x, t, y) - eps).square().cpu().double().sum().item()
        loss = exchange.all_sum(torch.tensor(total, dtype=torch.float64)).item() / self.test.eps.numel()
        self.progress["heldout"] = loss
        if self.best is None or loss < self.best["loss"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.ema.state_dict().items()}
            self.best = {"loss": loss, "cur_nimg": self.progress["cur_nimg"], "ema": weights}
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The content of an ``ldm`` checkpoint: what sampling needs and what continuing needs."""
        return {
            **self._description(),
            "ema": self.ema.state_dict(), "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(),
            "progress": dict(self.progress), "collector": self.collector.state_dict(), "best": self.best,
            "latents_hash": self.latents_hash,
        }

    def best_state_dict(self) -> dict[str, Any]:
        """An ``ldm`` checkpoint of the weights with the lowest held-out loss, for sampling only."""
        assert self.best is not None
        progress = {**self.progress, "cur_nimg": self.best["cur_nimg"], "heldout": self.best["loss"]}
        return {**self._description(), "ema": self.best["ema"], "progress": progress}

    def sampling_state(self) -> dict[str, Any]:
        """What `ldm.prior.Prior` needs of the moving average as it is now; nothing is copied."""
        return {**self._description(), "ema": self.ema.state_dict(), "progress": self.progress}

    def _description(self) -> dict[str, Any]:
        return {
            "labels": self.data.labels, "config": self.config, "latent_shape": list(self.data.latents.shape[1:]),
            "whitening": self.whitening.state_dict(), "gaussian_guess": self.guess_loss, **self.data.info,
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "machine": platform.machine(), "threads": str(torch.get_num_threads())},
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.collector.load_state_dict(state["collector"])
        if distributed.rank():
            self.collector.pop()
        self.progress, self.best = dict(state["progress"]), state["best"]


@contextlib.contextmanager
def _fitting(state: dict[str, Any] | None) -> Iterator[None]:
    """Whatever the parts of a checkpoint that don't fit each other raise in the block is a `UserError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if state is None:
            raise
        raise UserError("The snapshot is damaged: its parts are missing or do not fit. Remove it to resume from the "
                        "one before.") from error


def _not_finite(**numbers: torch.Tensor) -> str | None:
    """What to say of the first of `numbers` by name that isn't finite."""
    values = torch.stack([number.detach() for number in numbers.values()]).tolist()
    found = (f"the {name} is {value}" for name, value in zip(numbers, values, strict=True) if not math.isfinite(value))
    return next(found, None)
