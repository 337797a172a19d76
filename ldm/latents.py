"""Where a generator's scripts get latents from: a latent diffusion checkpoint or a file of stored samples."""

from __future__ import annotations

import abc
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dnnlib import UserError
from dnnlib.build_limit import limit_for, limited
from dnnlib.cli import format_seeds
from ldm.checks import SPACES, check_model
from ldm.prior import Prior
from ldm.settings import Sampling
from torch_utils import checkpoint

# Parts that a file of stored latents has beside its seeds and classes.
_PARTS: dict[str, type] = {"latents": torch.Tensor, "settings": dict, "ldm": str, "provenance": dict}


class LatentSource(abc.ABC):
    """Seeds -> latents ``[n, C, H, W]`` on the CPU.

    space       ``f``, latents of the generator's encoder; ``w`` or ``s``, of StyleGAN2
    noisy       they are h / sqrt(1 - sigma^2), f with the noise of h already in it
    labels      classes that seeds draw from, where the latents belong to classes, else None
    provenance  where they come from (JSON types)
    """

    latent_shape: tuple[int, ...]
    space: str
    noisy = False
    labels: list[int] | None = None
    provenance: dict[str, Any]

    @abc.abstractmethod
    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        """The latent of each seed."""


class PriorSource(LatentSource):
    """Latents sampled when they are asked for."""

    def __init__(self, prior: Prior, settings: Sampling, batch_size: int = 64, sigma: float | None = None) -> None:
        """sigma: end the chain at this noise (`Prior.sample_noisy`); None = go to its end."""
        self.prior, self.settings, self.batch_size = prior, settings.resolve(prior.config), batch_size
        self.latent_shape, self.space = prior.latent_shape, prior.space
        self.sigma, self.noisy = sigma, sigma is not None
        if prior.labels is not None:
            chosen = self.settings.class_idx
            self.labels = prior.labels.tolist() if chosen is None else [chosen]
        self.provenance = {**prior.provenance(self.settings), "ldm_h": "truncated" if self.noisy else "renoised"}

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        if self.sigma is None:
            return self.prior.sample(seeds, self.settings, self.batch_size)
        return self.prior.sample_noisy(seeds, self.sigma, self.settings, self.batch_size) / (1 - self.sigma**2) ** 0.5


class FileSource(LatentSource):
    """Latents that ``ldm/sample.py`` stored, looked up by seed."""

    def __init__(self, path: str, state: dict[str, Any], asked: Mapping[str, Any]) -> None:
        """asked: sampler settings that the user gave; they must be those of the file."""
        if "seeds" not in state:
            raise UserError(f"{path} holds the latents that a model was trained on, not samples; give the *.pkl of a "
                            "latent diffusion run beside it, or a file of ldm/sample.py.")
        self._check(path, state)
        self.latents: torch.Tensor = state["latents"]
        self.rows = {seed: row for row, seed in enumerate(state["seeds"])}
        self.settings: dict[str, Any] = state["settings"]
        self.ldm: str = state["ldm"]
        self.space = state.get("space", "f")
        self.labels = state.get("labels")
        self.provenance = {**state["provenance"], "latents": path, "ldm_h": "renoised"}
        self.latent_shape = tuple(self.latents.shape[1:])
        differing = [key for key, value in asked.items() if value is not None and value != self.settings.get(key)]
        if differing:
            raise UserError(f"{path} was sampled with {', '.join(f'{k} {self.settings.get(k)}' for k in differing)}; "
                            f"leave out {', '.join(map(_flag, differing))}, or give the checkpoint {self.ldm} instead.")
        self.path = path

    @staticmethod
    def _check(path: str, state: Mapping[str, Any]) -> None:
        """`UserError` unless all parts are there, of their kinds and lengths."""
        seeds, labels = state["seeds"], state.get("labels")
        of_kind = [isinstance(state.get(key), kind) for key, kind in _PARTS.items()]
        if not all(of_kind) or not _are_numbers(seeds) or not (labels is None or _are_numbers(labels)):
            raise UserError(f"{path} is damaged: parts are missing or of another kind. Write it anew with "
                            "ldm/sample.py.")
        latents: torch.Tensor = state["latents"]
        if not latents.is_floating_point() or latents.ndim != 4 or not len(latents) == len(seeds) == len({*seeds}):
            raise UserError(f"{path} is damaged: latents and seeds do not fit. Write it anew with ldm/sample.py.")
        if set(state["settings"]) != set(Sampling().state()) or state.get("space", "f") not in SPACES:
            raise UserError(f"{path} has settings that this version doesn't know. Write it anew with ldm/sample.py.")

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        missing = [seed for seed in seeds if seed not in self.rows]
        if missing:
            wanted = format_seeds(sorted({*self.rows, *missing}))
            listed = wanted if len(wanted) <= 200 else f"0-{max(*self.rows, *missing)}"
            raise UserError(f"{self.path} has no latent for seed {format_seeds(sorted(set(missing)))[:80]}; make them: "
                            f"python ldm/sample.py --network {self.ldm} --seeds {listed} {self._flags()} "
                            f"--out {self.path}")
        return self.latents[[self.rows[seed] for seed in seeds]]

    def _flags(self) -> str:
        """Those of the file's settings that differ from the defaults, as ``ldm/sample.py`` takes them."""
        usual = Sampling().state()
        return " ".join(f"{_flag(key)} {value}" for key, value in self.settings.items() if value != usual[key])


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is int and value >= 0 for value in values)


def _flag(key: str) -> str:
    """The flag of a field of `Sampling`."""
    return "--class" if key == "class_idx" else "--" + key.replace("_", "-")


def open_latents(path: str | os.PathLike, gan_hash: str, device: torch.device, asked: Mapping[str, Any], *,
                 sigma: float | None = None, batch_size: int = 64) -> LatentSource:
    """Opens an ``ldm`` checkpoint or a latents file for the generator whose weights have `gan_hash`.

    asked: fields of `Sampling`, None for the default; a latents file has its own and another value is refused. A class
    goes to the model if it knows classes. sigma: end the chain at this noise (`PriorSource`).
    `UserError`: unreadable file, settings that don't exist, latents of another generator.
    """
    state = checkpoint.load(path, ("ldm", "latents"))
    if state.get("gan_hash") != gan_hash:
        raise UserError(
            f"--ldm {path} belongs to another GAN ({state.get('network', 'unknown')}, weights "
            f"{str(state.get('gan_hash'))[:12]}; given: {gan_hash[:12]}): its latents mean nothing to this one. Use "
            "that --network, or train a latent model for this one: python ldm/train.py --network PKL --outdir ldm-runs"
        )
    if state.get("labels") is None:
        asked = {key: value for key, value in asked.items() if key != "class_idx"}
    if "ema" in state:
        check_model(path, state)
        with limited(limit_for(state["ema"])):
            return PriorSource(Prior(str(path), state, device), Sampling.asked(asked), batch_size, sigma)
    if sigma is not None:
        raise UserError(f"--ldm-h truncated ends the chain early, but {path} holds finished latents; give the "
                        f"checkpoint {state.get('ldm', 'of ldm/train.py')} instead.")
    return FileSource(str(path), state, asked)
