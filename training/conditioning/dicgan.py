"""Diffused-instance conditioning (DIC-GAN): h is a noised latent of the real image."""

from __future__ import annotations

import torch

from dnnlib import UserError
from pg_modules.fastgan import Generator
from training.conditioning.base import Batch, Condition, Conditioning, one_hot
from training.diffused_instance import check_sigma, diffuse, sigma_for_perplexity


class DiffusedInstance(Conditioning):
    """h = √(1 − σ²) f(x_i) + σ ε (Eq. 1–2) with x_i as the real image for h (Eq. 5); c may add a class."""

    uses_latents = True

    def __init__(self, sigma: float | str = 0.3, c_dim: int = 0) -> None:
        """sigma: in [0, 1), or ``auto:P`` for the one that gives a posterior perplexity of P (Eq. 4)."""
        super().__init__(c_dim)
        self.perplexity: float | None = None
        self.sigma = 0.0
        if isinstance(sigma, str):
            self.perplexity = parse_auto_sigma(sigma)
        else:
            self.sigma = check_sigma(sigma)

    def prepare(self, latents: torch.Tensor | None, seed: int) -> None:
        if self.perplexity is not None:
            assert latents is not None
            self.sigma = sigma_for_perplexity(latents, self.perplexity, seed)

    def condition(self, batch: Batch, G: Generator, generator: torch.Generator) -> Condition:
        f = G.encoder(batch.img) if self.table is None else self.table[batch.indices]
        eps = torch.randn(f.shape, generator=generator).to(f.device)
        h = diffuse(f, self.sigma, eps)
        return Condition(c=one_hot(batch.labels, self.c_dim), h=h, f=f, sigma=self.sigma)

    def state_dict(self) -> dict:
        return {"sigma": self.sigma}

    def load_state_dict(self, state: dict) -> None:
        self.sigma = check_sigma(state["sigma"])


def parse_auto_sigma(text: str) -> float:
    """``auto:P`` → P; raises `UserError` for anything else."""
    name, _, number = text.partition(":")
    try:
        if name != "auto":
            raise ValueError
        return float(number)
    except ValueError as error:
        raise UserError(f"--sigma {text}: give a number in [0, 1), auto, or auto:P with a perplexity P > 1.") from error
