"""Latents of a trained generator as variables: spaces in which images are searched for, edited and inverted.

`ldm.guide` and `training.inversion` change latents by gradients; what a latent is, where it starts and how it becomes
an image stands here. A sample's z, noise and noise maps are a function of its seed and stay as they are meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dnnlib import UserError
from torch_utils.rng import sample_normal
from training.conditioning.base import one_hot
from training.sampling import Gan, LatentSource, SampleNoise, draw_z
from training.spaces import check_space, decoder, space_width, styles_of

EDIT_SPACES = ("h", "z", "w", "s")


class EditSpace:
    """One of the spaces of `gan`; latents are ``[N, *shape]``, three-dimensional as those of `ldm` are.

    ``h``  the instance latent f that h (DIC-GAN, Eq. 1) or c (IC-GAN, DISP) is made of, normalised by `decode`
    ``z``  the noise of a generator that is told of no instance
    ``w``, ``s``  of StyleGAN2, see `training.spaces`
    """

    def __init__(self, gan: Gan, name: str, *, sigma: float | None = None, class_idx: int | None = None) -> None:
        """sigma: of h, None = as trained. class_idx: for class-conditional networks; in ``w`` and ``s`` it only says
        what `start` draws. Raises `UserError` where network and space or class don't fit.
        """
        assert name in EDIT_SPACES, name
        self.gan, self.name = gan, name
        classes = gan.conditioning.classes
        if class_idx is not None and not 0 <= class_idx < classes:
            known = f"knows classes 0 .. {classes - 1}" if classes else "was trained without classes; leave it out"
            raise UserError(f"--class {class_idx}: {gan.path} {known}.")
        if classes and class_idx is None:
            raise UserError(f"{gan.path} is class-conditional: give --class 0 .. {classes - 1}.")
        self.class_idx = class_idx
        self.shape = self._shape()
        self.sigma = gan.diffused.check_sampling_sigma(sigma) if gan.diffused is not None else None
        if sigma is not None and (self.sigma is None or name != "h"):
            raise UserError("--sigma: it belongs to h of networks with a diffused-instance condition; leave it out.")

    def _shape(self) -> tuple[int, int, int]:
        gan = self.gan
        if self.name in ("w", "s"):
            check_space(gan, self.name)
            self._decode = decoder(gan, self.name)
            return space_width(gan, self.name), 1, 1
        if self.name == "h":
            if not gan.uses_latents:
                raise UserError(f"--space h: {gan.path} is told of no instance; use --space w, s or z.")
            return tuple(gan.G.encoder.latent_shape)
        if gan.uses_latents:
            raise UserError(f"--space z: {gan.path} is told of an instance, which says more than z; use --space h.")
        return gan.G.z_dim, 1, 1

    @torch.no_grad()
    def start(self, seeds: Sequence[int], latents: LatentSource | None = None) -> torch.Tensor:
        """Latents ``[n, *shape]`` of random images, on the device of the network.

        latents: where f comes from in space ``h`` (a prior, or the training set), not used in the others.
        """
        gan = self.gan
        if self.name == "h":
            assert latents is not None, "f has no distribution of its own"
            return gan.G.encoder.normalize(latents(seeds)).to(gan.device)
        z = draw_z(seeds, gan.G.z_dim).to(gan.device)
        if self.name == "z":
            return z[:, :, None, None]
        w = gan.G.mapping(z, self._class(len(seeds)))
        return (w if self.name == "w" else styles_of(gan.G, w))[:, :, None, None]

    def decode(self, latents: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Images ``[n, C, H, W]``, nominally in [-1, 1], of latents ``[n, *shape]``; differentiable in the latents."""
        gan = self.gan
        noise: Any = "const" if gan.G.has_mapping else SampleNoise(seeds, gan.device)
        if self.name in ("w", "s"):
            return self._decode(latents, noise)
        if self.name == "z":
            return gan.G(latents.flatten(1), c=self._class(len(seeds)), noise=noise)
        f = gan.G.encoder.normalize(latents)
        labels = None if self.class_idx is None else torch.full((len(seeds),), self.class_idx)
        told = gan.conditioning.told(f, labels, self.sigma, sample_normal(seeds, f.shape[1:], "eps").to(gan.device))
        z = draw_z(seeds, gan.G.z_dim).to(gan.device)
        c = None if told.c is None else told.c.to(gan.device)
        return gan.G(z, c=c, h=told.h, sigma=told.sigma, noise=noise)

    def _class(self, n: int) -> torch.Tensor | None:
        if self.class_idx is None:
            return None
        labels = torch.full((n,), self.class_idx)
        return one_hot(labels, self.gan.conditioning.classes).to(self.gan.device)  # type: ignore[union-attr]
