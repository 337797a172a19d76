"""Spaces in which an image is inverted: what is optimised, where that starts, and how it becomes an image.

Variables are named tensors ``[n, …]``, a row per image. What isn't optimised (z, ε, noise maps) is a function of the
row's seed, as in sampling.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any

import torch

from dnnlib import UserError
from pg_modules.whitening import rms_normalize
from torch_utils.rng import sample_normal
from training.conditioning.base import Condition
from training.editing import EditSpace
from training.sampling import Gan, SampleNoise, draw_z

Variables = dict[str, torch.Tensor]

# Space: Adam's learning rate. That of `blocks` is DISP's; all variables start at a root mean square of about 1.
SPACES = {"feed-forward": 0.0, "h": 0.1, "hz": 0.1, "blocks": 0.1, "z": 0.1, "w": 0.1, "w+": 0.1, "s": 0.05}
STORED = {"feed-forward": "f", "h": "f", "w": "w", "s": "s"}  # spaces whose latents gen_images.py --ldm takes
MEAN_SAMPLES = 1000  # draws of the mapping network that the mean w is of


class InversionSpace(abc.ABC):
    """A space of `edit.gan`; `seeded`: whether the image at the start depends on the seed."""

    seeded = True

    def __init__(self, name: str, edit: EditSpace) -> None:
        self.name, self.edit, self.gan, self.lr = name, edit, edit.gan, SPACES[name]

    @abc.abstractmethod
    def start(self, img: torch.Tensor, seeds: Sequence[int]) -> Variables:
        """Where the inversion of images ``[n, C, H, W]`` in [-1, 1] begins, on the device of the network."""

    @abc.abstractmethod
    def decode(self, variables: Variables, seeds: Sequence[int]) -> torch.Tensor:
        """Images ``[n, C, H, W]``, nominally in [-1, 1]; differentiable in the variables."""

    @functools.cached_property
    def _mean(self) -> torch.Tensor:
        """The mean w or s ``[D, 1, 1]`` of the network, or of its class."""
        return self.edit.start(range(MEAN_SAMPLES)).mean(0)

    def _noise(self, seeds: Sequence[int]) -> Any:
        return "const" if self.gan.G.has_mapping else SampleNoise(seeds, self.gan.device)

    def _z(self, seeds: Sequence[int]) -> torch.Tensor:
        return draw_z(seeds, self.gan.G.z_dim).to(self.gan.device)

    def _told(self, f: torch.Tensor, seeds: Sequence[int]) -> Condition:
        """What the network is told for latents f ``[n, C, H, W]``, on its device."""
        labels = None if self.edit.class_idx is None else torch.full((len(seeds),), self.edit.class_idx)
        eps = sample_normal(seeds, f.shape[1:], "eps").to(self.gan.device)
        told = self.gan.conditioning.told(self.gan.G.encoder.normalize(f), labels, self.edit.sigma, eps)
        return Condition(None if told.c is None else told.c.to(self.gan.device), told.h, told.f, told.sigma)


class Latents(InversionSpace):
    """h, z, w or s: one latent per image. h starts from the encoder, z at random, w and s at their mean."""

    def __init__(self, name: str, edit: EditSpace) -> None:
        super().__init__(name, edit)
        self.seeded = edit.name in ("h", "z")

    def start(self, img: torch.Tensor, seeds: Sequence[int]) -> Variables:
        if self.edit.name == "h":
            # Decoding normalises f in its own way; at this size one learning rate suits features of any length.
            return {"latents": rms_normalize(self.gan.G.encoder(img))}
        if self.edit.name == "z":
            return {"latents": self.edit.start(seeds)}
        return {"latents": self._mean.repeat(len(seeds), 1, 1, 1)}

    def decode(self, variables: Variables, seeds: Sequence[int]) -> torch.Tensor:
        return self.edit.decode(variables["latents"], seeds)


class Joint(InversionSpace):
    """hz: the instance latent f and the noise z."""

    def start(self, img: torch.Tensor, seeds: Sequence[int]) -> Variables:
        return {"f": rms_normalize(self.gan.G.encoder(img)), "z": self._z(seeds)}

    def decode(self, variables: Variables, seeds: Sequence[int]) -> torch.Tensor:
        told = self._told(variables["f"], seeds)
        return self.gan.G(variables["z"], c=told.c, h=told.h, sigma=told.sigma, noise=self._noise(seeds))


class Blocks(InversionSpace):
    """What each up-block of a FastGAN is told, its embedded c and ĥ, apart from the others (DISP, image inversion).

    ``embeds [n, blocks, E]`` and ``h_hats [n, blocks, C, H, W]``, as far as the network has them, start at what the
    encoder's latent makes of them, equal for all blocks.
    """

    def start(self, img: torch.Tensor, seeds: Sequence[int]) -> Variables:
        told = self._told(self.gan.G.encoder(img), seeds)
        parts = self.gan.G.block_conditions(self._z(seeds), told.c, told.h, told.sigma)
        return {name: torch.stack(list(part), dim=1)
                for name, part in zip(("embeds", "h_hats"), parts, strict=True) if part[0] is not None}

    def decode(self, variables: Variables, seeds: Sequence[int]) -> torch.Tensor:
        nothing = [None] * len(self.gan.G.blocks)
        embeds, h_hats = (variables[name].unbind(1) if name in variables else nothing for name in ("embeds", "h_hats"))
        return self.gan.G.synthesize(self._z(seeds), embeds, h_hats, self._noise(seeds))


class Layers(InversionSpace):
    """w+ of StyleGAN2, a w for each layer: ``ws [n, num_ws, w_dim]``, from the mean w.

    As `blocks` of a StyleGAN2 that is told of an instance, from what the mapping network makes of z and the encoder's
    c; ``h_hat``, which all layers share, is then a variable beside them where the network has one.
    """

    def __init__(self, name: str, edit: EditSpace) -> None:
        super().__init__(name, edit)
        self.seeded = name == "blocks"

    def start(self, img: torch.Tensor, seeds: Sequence[int]) -> Variables:
        G = self.gan.G
        if not self.seeded:
            return {"ws": self._mean.flatten().repeat(len(seeds), G.num_ws, 1)}
        told, z = self._told(G.encoder(img), seeds), self._z(seeds)
        h_hat = G.modulate(told.h, z, told.sigma)
        return {"ws": G.map(z, told.c), **({} if h_hat is None else {"h_hat": h_hat})}

    def decode(self, variables: Variables, seeds: Sequence[int]) -> torch.Tensor:
        return self.gan.G.synthesize(variables["ws"], variables.get("h_hat"), self._noise(seeds))


def fitting_spaces(gan: Gan) -> list[str]:
    """Names of the spaces that `gan` has, the one without optimisation first."""
    if gan.uses_latents:
        return ["feed-forward", "h", "hz", "blocks"]
    return ["z", "w", "w+", "s"] if gan.G.has_mapping else ["z"]


def richest_space(gan: Gan) -> str:
    """The space of `gan` with the most freedom that its paper inverts in: per block, per layer, else z."""
    return "blocks" if gan.uses_latents else "w+" if gan.G.has_mapping else "z"


def open_space(gan: Gan, name: str, *, sigma: float | None = None, class_idx: int | None = None) -> InversionSpace:
    """The space `name`; `UserError` if `gan` has none of this name, or for a σ or class that it doesn't know."""
    fitting = fitting_spaces(gan)
    if name not in fitting:
        unknown = "" if name in SPACES else "there is none of this name; "
        raise UserError(f"--space {name}: {unknown}{gan.path} {_nature(gan)}; choose {', '.join(fitting)} or all.")
    latents = {"feed-forward": "h", "hz": "h", "blocks": "h", "w+": "w"}.get(name, name)
    edit = EditSpace(gan, latents, sigma=sigma, class_idx=class_idx)
    if name == "hz":
        return Joint(name, edit)
    if name in ("blocks", "w+"):
        return (Layers if gan.G.has_mapping else Blocks)(name, edit)
    return Latents(name, edit)


def _nature(gan: Gan) -> str:
    told = "is told of an instance" if gan.uses_latents else "is told of no instance"
    return told + (" and has a mapping network" if gan.G.has_mapping else " and has no mapping network")
