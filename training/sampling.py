"""From a checkpoint and a source of conditions to images; sample k depends on its seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dnnlib import UserError, construct
from dnnlib.build_limit import limit_for, limited
from torch_utils.checkpoint import weights_hash
from torch_utils.exchange import Numbered, in_batches
from torch_utils.rng import generator, sample_normal
from training.conditioning.base import Conditioning
from training.conditioning.dicgan import DiffusedInstance
from training.config_checks import fits
from training.dataset import ImageDataset
from training.loader import to_uint8
from training.priors import pick
from training.run_state import RunState, image_shape, load_state
from training.tables import LatentTable, encoded

LatentSource = Callable[[Sequence[int]], torch.Tensor]  # seeds -> f [n, C, H, W]
Decode = Callable[[torch.Tensor, Any], torch.Tensor]  # latents [n, D, 1, 1], noise of the blocks -> img
References = torch.Tensor | LatentTable  # f [n, C, H, W] by index
NOISE_MODES = ("random", "none", "const")


@dataclass
class Gan:
    """A generator ready to sample, with what its checkpoint says about itself."""

    path: str
    config: dict[str, Any]
    G: Any
    conditioning: Conditioning
    dataset: dict[str, Any]
    hash: str
    progress: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where G is."""
        return next(self.G.parameters()).device

    @property
    def uses_latents(self) -> bool:
        """True for generators that are told of an instance, which need ``--ldm``, ``--ref`` or another source."""
        return self.conditioning.uses_latents

    @property
    def diffused(self) -> DiffusedInstance | None:
        """The diffused-instance conditioning of a DIC-GAN, None for others."""
        return self.conditioning if isinstance(self.conditioning, DiffusedInstance) else None

    @property
    def img_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return image_shape(self.config)


def load_gan(path: str | Path, device: torch.device) -> Gan:
    """G_ema of a checkpoint, in evaluation mode; `UserError` for a wrong or damaged file."""
    state = load_state(path)
    try:
        with limited(limit_for(state["G_ema"])):
            G = construct(state["config"]["G"]).eval().requires_grad_(False)
        G.load_state_dict(state["G_ema"])
        conditioning = construct(state["config"]["conditioning"])
        conditioning.load_state_dict(state["conditioning"])
        if not fits(state["config"]["G"], G, conditioning):
            raise ValueError("the generator takes other conditions")
    except UserError as error:
        raise UserError(f"{path}: {error.message}") from error
    except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError,
            AssertionError) as error:
        raise UserError(f"{path} is damaged: weights and configuration do not fit. Use another snapshot.") from error
    return Gan(str(path), state["config"], G.to(device), conditioning, state["config"]["data"],
               weights_hash(state["G_ema"]), state["progress"])


def live_gan(run: RunState, name: str) -> Gan:
    """The running G_ema as a `Gan`, for pictures and metrics during training."""
    return Gan(name, run.config, run.G_ema, run.conditioning, run.config["data"],
               weights_hash(run.G_ema.state_dict()), dict(run.progress))


def encode(encoder: nn.Module, dataset: ImageDataset, indices: Sequence[int], device: torch.device) -> torch.Tensor:
    """Latents f [len(indices), C, H, W] of images of a data set, on the CPU, in batches of fixed size."""
    return torch.cat(list(encoded(encoder, dataset, indices, device)))


def draw_z(seeds: Sequence[int], z_dim: int) -> torch.Tensor:
    """z ``[n, z_dim]`` on the CPU, as the official script draws it, so that its seeds keep their z."""
    return torch.from_numpy(np.stack([np.random.RandomState(seed % 2**32).randn(z_dim) for seed in seeds])).float()


class SampleNoise:
    """Noise maps of the generator's blocks, a stream per sample, so that batches don't matter."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [generator("sample", seed, "noise") for seed in seeds]
        self.device = device

    def __call__(self, n: int, height: int, width: int) -> torch.Tensor:
        """Standard normal [n, 1, height, width]."""
        assert n == len(self.generators)
        return torch.stack([torch.randn(1, height, width, generator=g) for g in self.generators]).to(self.device)


class Sampler:
    """Seeds → images, with the conditions that the network needs."""

    def __init__(self, gan: Gan, *, latents: LatentSource | None = None, references: References | None = None,
                 class_idx: int | None = None, labels: Sequence[int] | None = None, sigma: float | None = None,
                 noise_mode: str = "random", truncation: float | None = None,
                 source: dict[str, Any] | None = None, decode: Decode | None = None, noisy: bool = False) -> None:
        """latents: f per seed, from a prior. references: f [n, C, H, W]; seed k takes number k mod n.

        class_idx: the class of all samples; labels: or classes to draw from, for metrics (those of the references
        where there are some). sigma: None = that of the checkpoint. noise_mode: ``random`` (per seed), ``none``, or
        ``const``, the stored maps of StyleGAN2. truncation: ψ, for networks with a mapping network.
        source: provenance of the conditions. decode: makes images of `latents` that are no f and stand for all that G
        is told (`training.spaces`). noisy: `latents` are h / √(1 − σ²), to which no noise is added. Raises `UserError`
        where network and conditions don't fit.
        """
        self.gan, self.latents, self.references = gan, latents, references
        self.class_idx, self.labels = class_idx, labels
        self.noise_mode, self.decode, self.noisy = noise_mode, decode, noisy
        if decode is None:
            self._check_latents()
            self._check_class()
        self._check_generator(noise_mode, truncation)
        self.options = {} if truncation is None else {"truncation": truncation}
        self.sigma = self._check_sigma(sigma)
        kinds = (source or {}).get("mode") or ("ldm" if latents else "ref")
        self.provenance = {"mode": kinds if gan.uses_latents or decode else "unconditional", "sigma": self.sigma,
                           "class": class_idx, **self.options, **(source or {})}

    def _check_latents(self) -> None:
        given = (self.latents is not None) + (self.references is not None)
        if self.gan.uses_latents and given != 1:
            raise UserError(
                f"{self.gan.path} draws each image from an instance latent; say where latents come from, with one of: "
                "--ldm FILE (new latents from a latent diffusion model: python ldm/train.py --network "
                f"{self.gan.path} --outdir ldm-runs), --ref IMAGES (latents of your reference images: a file, "
                "folder or zip), --instances K or --prior NAME (from the training images)."
            )
        if not self.gan.uses_latents and given:
            raise UserError(f"{self.gan.path} takes no instance latents: leave out --ldm, --ref, --instances and "
                            "--prior.")

    def _check_class(self) -> None:
        classes = self.gan.conditioning.classes
        if not classes and self.class_idx is not None:
            raise UserError(f"--class {self.class_idx}: {self.gan.path} was trained without classes; leave it out.")
        known = self.labels is not None or self.gan.conditioning.draw_classes([0]) is not None
        if classes and self.class_idx is None and not known:
            raise UserError(f"{self.gan.path} is class-conditional: give --class 0 .. {classes - 1}.")
        if self.class_idx is not None and not 0 <= self.class_idx < classes:
            raise UserError(f"--class {self.class_idx}: this network knows classes 0 .. {classes - 1}.")

    def _check_generator(self, noise_mode: str, truncation: float | None) -> None:
        has_mapping = self.gan.G.has_mapping
        if noise_mode not in NOISE_MODES:
            raise UserError(f"--noise-mode {noise_mode}: choose {', '.join(NOISE_MODES)}.")
        if noise_mode == "const" and not has_mapping:
            raise UserError("--noise-mode const: FastGAN stores no noise maps; choose random or none.")
        if truncation is not None and not has_mapping:
            raise UserError(f"--trunc {truncation:g}: FastGAN has no mapping network to truncate; leave it out.")

    def _check_sigma(self, sigma: float | None) -> float | None:
        if self.gan.diffused is not None:
            return self.gan.diffused.check_sampling_sigma(sigma)
        if sigma is not None:
            raise UserError("--sigma: this network has no diffused-instance condition; leave it out.")
        return None

    def _labels(self, seeds: Sequence[int]) -> torch.Tensor | None:
        if not self.gan.conditioning.classes:
            return None
        if self.class_idx is not None:
            return torch.full((len(seeds),), self.class_idx, dtype=torch.int64)
        if self.labels is None:
            return torch.tensor(self.gan.conditioning.draw_classes(seeds))
        if self.references is not None:  # label k belongs to reference k
            return torch.tensor([self.labels[seed % len(self.references)] for seed in seeds])
        return torch.tensor([self.labels[pick(seed, len(self.labels))] for seed in seeds])

    def condition_latents(self, seeds: Sequence[int]) -> torch.Tensor | None:
        """f [n, C, H, W] for the seeds, on the CPU, or None for networks without."""
        if self.latents is not None:
            f = self.latents(seeds).cpu()
            return f if self.noisy else self.gan.G.encoder.normalize(f)
        if self.references is not None:
            return self.references[[seed % len(self.references) for seed in seeds]]
        return None

    def _noise(self, seeds: Sequence[int]) -> Any:
        """Where the noise maps of the generator's blocks come from."""
        return {"random": SampleNoise(seeds, self.gan.device), "const": "const", "none": None}[self.noise_mode]

    @torch.no_grad()
    def batch(self, seeds: Sequence[int]) -> torch.Tensor:
        """Images uint8 [n, C, H, W] on the CPU, one per seed."""
        if self.decode is not None:
            assert self.latents is not None
            latents = self.latents(seeds).to(self.gan.device)
            return to_uint8(self.decode(latents, self._noise(seeds))).cpu()
        return self.draw(self.condition_latents(seeds), self._labels(seeds), seeds, seeds)

    @torch.no_grad()
    def draw(self, f: torch.Tensor | None, labels: torch.Tensor | None, z_seeds: Sequence[int],
             eps_seeds: Sequence[int]) -> torch.Tensor:
        """Images uint8 [n, C, H, W] on the CPU for latents f [n, ...] and classes [n]; z and ε have seeds of their own.

        Noise maps go with z.
        """
        G, device = self.gan.G, self.gan.device
        z = draw_z(z_seeds, G.z_dim)
        eps = None if f is None else torch.zeros_like(f) if self.noisy else sample_normal(eps_seeds, f.shape[1:], "eps")
        told = self.gan.conditioning.told(f, labels, self.sigma, eps)
        img = G(z.to(device), c=None if told.c is None else told.c.to(device),
                h=None if told.h is None else told.h.to(device), sigma=told.sigma, noise=self._noise(z_seeds),
                **self.options)
        return to_uint8(img).cpu()

    def images(self, seeds: Sequence[int], batch_size: int = 32) -> Numbered[torch.Tensor]:
        """Batches uint8 [n, C, H, W] over all seeds, in order."""
        return in_batches(seeds, batch_size, self.batch)


def training_sampler(gan: Gan, dataset: ImageDataset) -> Sampler:
    """Samples with the conditions of the training images (no flips), for metrics during training."""
    references: References | None = None
    if gan.uses_latents:
        table = gan.conditioning.table
        references = table.first(dataset.num_images) if table is not None else encode(
            gan.G.encoder, dataset, range(dataset.num_images), gan.device)
    return Sampler(gan, references=references, labels=gan.conditioning.labels_of(dataset),
                   source={"ref": "training set"} if gan.uses_latents else None)


def grid(images: torch.Tensor, columns: int) -> np.ndarray:
    """uint8 [n, C, H, W] → one picture [rows·H, columns·W, C]; missing cells are white."""
    rows = -(-len(images) // columns)
    cells = torch.full((rows * columns, *images.shape[1:]), 255, dtype=torch.uint8)
    cells[:len(images)] = images
    cells = cells.reshape(rows, columns, *images.shape[1:]).permute(0, 3, 1, 4, 2)
    return cells.reshape(rows * images.shape[2], columns * images.shape[3], -1).numpy()
