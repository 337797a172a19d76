"""Where a generator's scripts get latents from: a latent diffusion checkpoint or a file of stored samples."""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from typing import Any

import torch

from dnnlib import UserError
from dnnlib.cli import format_seeds
from ldm.prior import Prior, check_sampling
from torch_utils import checkpoint

STEPS, ETA, SPACING = 50, 0.0, "uniform"


class LatentSource(abc.ABC):
    """Seeds -> latents f ``[n, C, H, W]`` on the CPU; `provenance` says where they come from (JSON types)."""

    latent_shape: tuple[int, ...]
    provenance: dict[str, Any]

    @abc.abstractmethod
    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        """f of each seed."""


class PriorSource(LatentSource):
    """Latents sampled when they are asked for."""

    def __init__(self, prior: Prior, steps: int, eta: float, spacing: str, batch_size: int) -> None:
        check_sampling(len(prior.alpha_bar), steps, eta, spacing)
        self.prior, self.settings, self.batch_size = prior, (steps, eta, spacing), batch_size
        self.latent_shape = prior.latent_shape
        self.provenance = prior.provenance(steps, eta, spacing)

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        return self.prior.sample(seeds, *self.settings, batch_size=self.batch_size)


class FileSource(LatentSource):
    """Latents that ``ldm/sample.py`` stored, looked up by seed."""

    def __init__(self, path: str, state: dict[str, Any], asked: dict[str, Any]) -> None:
        """asked: sampler settings that the user gave; they must be those of the file."""
        if "seeds" not in state:
            raise UserError(f"{path} holds the latents of training images, not samples; give the *.pkl of a latent "
                            "diffusion run beside it, or a file of ldm/sample.py.")
        try:
            self.latents: torch.Tensor = state["latents"]
            self.rows = {int(seed): row for row, seed in enumerate(state["seeds"])}
            self.settings: dict[str, Any] = state["settings"]
            self.ldm: str = state["ldm"]
            self.provenance = {**state["provenance"], "latents": path}
            self.latent_shape = tuple(self.latents.shape[1:])
            fits = len(self.latents) == len(state["seeds"])
            differing = [key for key, value in asked.items() if value is not None and value != self.settings[key]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged: parts are missing. Write it anew with ldm/sample.py.") from error
        if not fits:
            raise UserError(f"{path} is damaged: latents and seeds do not fit. Write it anew with ldm/sample.py.")
        if differing:
            raise UserError(f"{path} was sampled with {', '.join(f'{k} {self.settings[k]}' for k in differing)}; leave "
                            f"out {', '.join('--' + k for k in differing)}, or give the checkpoint {self.ldm} instead.")
        self.path = path

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        missing = [seed for seed in seeds if seed not in self.rows]
        if missing:
            wanted = format_seeds(sorted({*self.rows, *missing}))
            listed = wanted if len(wanted) <= 200 else f"0-{max(*self.rows, *missing)}"
            flags = " ".join(f"--{key} {value}" for key, value in self.settings.items())
            raise UserError(f"{self.path} has no latent for seed {format_seeds(sorted(set(missing)))[:80]}; make them: "
                            f"python ldm/sample.py --network {self.ldm} --seeds {listed} {flags} --out {self.path}")
        return self.latents[[self.rows[seed] for seed in seeds]]


def open_latents(path: str | os.PathLike, gan_hash: str, device: torch.device, steps: int | None = None,
                 eta: float | None = None, spacing: str | None = None, batch_size: int = 64) -> LatentSource:
    """Opens an ``ldm`` checkpoint or a latents file for the generator whose weights have `gan_hash`.

    Settings that are None are 50 steps, eta 0, uniform spacing; a latents file has its own and another value is
    refused. `UserError`: unreadable file, settings that don't exist, latents of another generator.
    """
    state = checkpoint.load(path, ("ldm", "latents"))
    if state.get("gan_hash") != gan_hash:
        raise UserError(
            f"--ldm {path} belongs to another GAN ({state.get('network', 'unknown')}, weights "
            f"{str(state.get('gan_hash'))[:12]}; given: {gan_hash[:12]}): its latents mean nothing to this one. Use "
            "that --network, or train a latent model for this one: python ldm/train.py --network PKL --outdir ldm-runs"
        )
    if "ema" in state:
        return PriorSource(Prior(str(path), state, device), STEPS if steps is None else steps,
                           ETA if eta is None else eta, SPACING if spacing is None else spacing, batch_size)
    return FileSource(str(path), state, {"steps": steps, "eta": eta, "spacing": spacing})
