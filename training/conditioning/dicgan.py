"""Diffused-instance conditioning (DIC-GAN): h is a noised latent of the real image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dnnlib import UserError
from torch_utils.device import sent
from torch_utils.rng import generator, sample_normal
from training.conditioning.base import Batch, Condition, Conditioning, Prepared, one_hot
from training.diffused_instance import check_sigma, diffuse, posterior_log_prob, sigma_for_perplexity

TARGETS = ("paired", "resampled")


class DiffusedInstance(Conditioning):
    """h = √(1 − σ²) f(x_i) + σ ε (Eq. 1–2); the real image for h is x_i (Eq. 5) or drawn anew; c may add a class.

    Since p(x_i) p(h | x_i) = p(h) p(x_i | h), both targets sample the same joint distribution of image and h.
    """

    uses_latents = True

    def __init__(self, sigma: float | str = 0.3, c_dim: int = 0, target: str = "paired") -> None:
        """sigma: in [0, 1); ``auto:P`` for the one that gives a posterior perplexity of P (Eq. 4);
        ``uniform:MAX`` for one per sample from U(0, MAX), of which G is told.
        target: ``paired`` = x_i, ``resampled`` = drawn from p(x | h, σ) (Eq. 4); that needs an f that is never trained.
        """
        super().__init__(c_dim)
        if target not in TARGETS:
            raise UserError(f"--target {target}: choose {' or '.join(TARGETS)}.")
        self.target = target
        self.sigma, self.perplexity, self.per_sample = parse_sigma(sigma)
        self.seed = 0

    def prepare(self, data: Prepared) -> None:
        super().prepare(data)
        self.seed = data.seed
        if self.perplexity is not None and not data.resumed:
            assert data.sample is not None
            self.sigma = sigma_for_perplexity(data.sample, self.perplexity, data.seed)

    def _diffuse(self, f: torch.Tensor, sigma: torch.Tensor | float, eps: torch.Tensor) -> torch.Tensor:
        return diffuse(f, sigma, sent(eps, f.device))

    def pair(self, indices: Sequence[int], draws: Sequence[int]) -> list[int]:
        if self.target == "paired" or self.sigma == 0:
            return list(indices)
        assert self.table is not None, "Eq. 4 needs the latents of the whole set"
        h = self._diffuse(self.table[torch.as_tensor(indices)], self.sigma, self._stream_noise(draws))
        chosen = []
        for draw, row in zip(draws, posterior_log_prob(h, self.table.everything(), self.sigma).exp(), strict=True):
            rng = generator(self.seed, "target", draw)
            chosen.append(int(torch.multinomial(row, 1, generator=rng)))
        return chosen

    def _stream_noise(self, draws: Sequence[int]) -> torch.Tensor:
        """ε that depends on the place in the stream alone, for the h that a target was drawn for."""
        assert self.table is not None
        return sample_normal([int(draw) for draw in draws], self.table.shape, self.seed, "target noise")

    def condition(self, batch: Batch, G: Any, generator: torch.Generator) -> Condition:
        f = self.latents(batch, G)
        if self.target == "resampled":
            return self._told(batch, f, self._stream_noise(batch.draws.tolist()), self.sigma)
        return self.fake_condition(batch, G, generator, f)

    def fake_condition(self, batch: Batch, G: Any, generator: torch.Generator,
                       f: torch.Tensor | None = None) -> Condition:
        f = self.latents(batch, G) if f is None else f
        sigma: float | torch.Tensor = self.sigma
        if self.per_sample:
            sigma = sent(self.sigma * torch.rand(len(f), generator=generator), f.device)
        return self._told(batch, f, torch.randn(f.shape, generator=generator), sigma)

    def _told(self, batch: Batch, f: torch.Tensor, eps: torch.Tensor, sigma: float | torch.Tensor) -> Condition:
        return Condition(c=one_hot(batch.labels, self.c_dim), h=self._diffuse(f, sigma, eps), f=f, sigma=sigma)

    def told(self, f: torch.Tensor | None, labels: torch.Tensor | None, sigma: float | None,
             eps: torch.Tensor | None) -> Condition:
        assert f is not None
        assert eps is not None
        sigma = self.check_sampling_sigma(sigma)
        return Condition(c=None if labels is None else one_hot(labels, self.c_dim),
                         h=self._diffuse(f, sigma, eps), f=f, sigma=sigma)

    def check_sampling_sigma(self, sigma: float | None) -> float:
        """The noise scale to sample with: `sigma`, or as trained (the largest of a uniform one)."""
        return self.sigma if sigma is None else check_sigma(sigma)

    def state_dict(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sigma = check_sigma(state["sigma"])


def parse_sigma(sigma: float | str) -> tuple[float, float | None, bool]:
    """(σ or its maximum, perplexity that it is to be found by, whether it is drawn per sample).

    Raises `UserError` for anything but a number in [0, 1), ``auto:P`` and ``uniform:MAX``.
    """
    if not isinstance(sigma, str):
        return check_sigma(sigma), None, False
    name, _, number = sigma.partition(":")
    try:
        value = float(number)
    except ValueError:
        name, value = "", 0.0
    if name == "auto" and value > 1:
        return 0.0, value, False
    if name == "uniform" and value > 0:
        return check_sigma(value), None, True
    raise UserError(f"--sigma {sigma}: give a number in [0, 1), auto, auto:P with a perplexity P > 1, or uniform:MAX.")
