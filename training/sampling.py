"""From a checkpoint and a source of conditions to images; sample k depends on its seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dnnlib import UserError, construct
from dnnlib.images import decode, is_image_name, open_source
from pg_modules.fastgan import Generator
from torch_utils.checkpoint import weights_hash
from torch_utils.rng import generator, mix_seed, sample_normal
from training.conditioning.base import one_hot
from training.dataset import ImageDataset
from training.diffused_instance import check_sigma, diffuse
from training.loader import to_float, to_uint8
from training.run_state import RunState, load_state

LatentSource = Callable[[Sequence[int]], torch.Tensor]  # seeds -> f [n, C, H, W]


@dataclass
class Gan:
    """A generator ready to sample, with what its checkpoint says about itself."""

    path: str
    config: dict[str, Any]
    G: Generator
    dataset: dict[str, Any]
    hash: str
    progress: dict[str, Any]
    sigma: float | None

    @property
    def device(self) -> torch.device:
        """Where G is."""
        return next(self.G.parameters()).device

    @property
    def uses_latents(self) -> bool:
        """True for diffused-instance generators, which need ``--ldm`` or ``--ref``."""
        return self.config["G"]["encoder"] is not None


def load_gan(path: str | Path, device: torch.device) -> Gan:
    """G_ema of a checkpoint, in evaluation mode; `UserError` for a wrong or damaged file."""
    state = load_state(path)
    try:
        G = construct(state["config"]["G"]).eval().requires_grad_(False)
        G.load_state_dict(state["G_ema"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: weights and configuration do not fit. Use another snapshot.") from error
    return Gan(str(path), state["config"], G.to(device), state["config"]["data"], weights_hash(state["G_ema"]),
               state["progress"], state["conditioning"].get("sigma"))


def live_gan(run: RunState, name: str) -> Gan:
    """The running G_ema as a `Gan`, for pictures and metrics during training."""
    return Gan(name, run.config, run.G_ema, run.config["data"], weights_hash(run.G_ema.state_dict()),
               dict(run.progress), run.conditioning.state_dict().get("sigma"))


@torch.no_grad()
def encode(encoder: nn.Module, dataset: ImageDataset, indices: Sequence[int], device: torch.device,
           batch_size: int = 64) -> torch.Tensor:
    """Latents f [len(indices), C, H, W] of images of a data set, on the CPU, in batches of fixed size."""
    rows = []
    for start in range(0, len(indices), batch_size):
        images = torch.stack([dataset[i][0] for i in indices[start:start + batch_size]])
        rows.append(encoder(to_float(images.to(device))).float().cpu())
    return torch.cat(rows)


def encode_images(gan: Gan, dataset: ImageDataset, batch_size: int = 64) -> torch.Tensor:
    """Latents of G_ema.encoder for every index of `dataset` (flips included if it is mirrored)."""
    if not gan.uses_latents:
        raise UserError(f"--network {gan.path}: this generator has no encoder and no latents; use a dicgan network.")
    if dataset.resolution != gan.dataset["resolution"]:
        raise UserError(f"{dataset.name} has {dataset.resolution} px, {gan.path} {gan.dataset['resolution']} px; "
                        f"convert it with dataset_tool.py --resolution {gan.dataset['resolution']}.")
    return encode(gan.G.encoder, dataset, range(len(dataset)), gan.device, batch_size)


def read_references(path: str | Path, resolution: int) -> torch.Tensor:
    """Reference images uint8 [n, 3, R, R] from one image file, a folder or a zip, centre-cropped and resized."""
    from PIL import Image, ImageOps

    def fit(data: bytes, name: str) -> torch.Tensor:
        picture = ImageOps.fit(Image.fromarray(decode(data, name)), (resolution, resolution), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    path = Path(path)
    if path.is_file() and is_image_name(path.name):
        return fit(path.read_bytes(), str(path))[None]
    with open_source(path) as source:
        return torch.stack([fit(source.read(name), f"{path}:{name}") for name in source.names])


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

    def __init__(self, gan: Gan, *, latents: LatentSource | None = None, references: torch.Tensor | None = None,
                 class_idx: int | None = None, labels: Sequence[int] | None = None, sigma: float | None = None,
                 noise_mode: str = "random", source: dict[str, Any] | None = None) -> None:
        """latents: f per seed, from a prior. references: f [n, C, H, W]; seed k takes number k mod n.

        class_idx: the class of all samples; labels: or classes to draw from, for metrics (those of the references
        where there are some). sigma: None = that
        of the checkpoint. noise_mode: ``random`` (per seed) or ``none``. source: provenance of the conditions.
        Raises `UserError` where network and conditions don't fit.
        """
        self.gan, self.latents, self.references = gan, latents, references
        self.class_idx, self.labels = class_idx, labels
        self.noise_mode = noise_mode
        if noise_mode not in ("random", "none"):
            raise UserError(f"--noise-mode {noise_mode}: choose random or none.")
        self._check_latents()
        self._check_class()
        if sigma is not None and not gan.uses_latents:
            raise UserError("--sigma: this network has no diffused-instance condition; leave it out.")
        self.sigma = check_sigma(sigma if sigma is not None else gan.sigma or 0.0)
        self.provenance = {"mode": "unconditional" if not gan.uses_latents else "ldm" if latents else "ref",
                           "sigma": self.sigma if gan.uses_latents else None, "class": class_idx, **(source or {})}

    def _check_latents(self) -> None:
        given = (self.latents is not None) + (self.references is not None)
        if self.gan.uses_latents and given != 1:
            raise UserError(
                f"{self.gan.path} draws each image from an instance latent; say where latents come from, with one of: "
                "--ldm FILE (new latents from a latent diffusion model: python ldm/train.py --network "
                f"{self.gan.path} --outdir ldm-runs) or --ref IMAGES (latents of your reference images: a file, "
                "folder or zip)."
            )
        if not self.gan.uses_latents and given:
            raise UserError(f"{self.gan.path} takes no instance latents: leave out --ldm and --ref.")

    def _check_class(self) -> None:
        classes = self.gan.config["G"]["c_dim"]
        if not classes and self.class_idx is not None:
            raise UserError(f"--class {self.class_idx}: {self.gan.path} was trained without classes; leave it out.")
        if classes and self.class_idx is None and self.labels is None:
            raise UserError(f"{self.gan.path} is class-conditional: give --class 0 .. {classes - 1}.")
        if self.class_idx is not None and not 0 <= self.class_idx < classes:
            raise UserError(f"--class {self.class_idx}: this network knows classes 0 .. {classes - 1}.")

    def _labels(self, seeds: Sequence[int]) -> torch.Tensor | None:
        if self.class_idx is not None:
            return torch.full((len(seeds),), self.class_idx, dtype=torch.int64)
        if self.labels is not None and self.gan.config["G"]["c_dim"]:
            if self.references is not None:  # label k belongs to reference k
                return torch.tensor([self.labels[seed % len(self.references)] for seed in seeds])
            return torch.tensor([self.labels[mix_seed(seed, "class") % len(self.labels)] for seed in seeds])
        return None

    def condition_latents(self, seeds: Sequence[int]) -> torch.Tensor | None:
        """f [n, C, H, W] for the seeds, on the CPU, or None for networks without."""
        if self.latents is not None:
            return self.gan.G.encoder.normalize(self.latents(seeds).cpu())
        if self.references is not None:
            return self.references[[seed % len(self.references) for seed in seeds]]
        return None

    @torch.no_grad()
    def batch(self, seeds: Sequence[int]) -> torch.Tensor:
        """Images uint8 [n, 3, R, R] on the CPU, one per seed."""
        G, device = self.gan.G, self.gan.device
        # z as the official script draws it, so that its seeds keep their z.
        z = np.stack([np.random.RandomState(seed % 2**32).randn(G.z_dim) for seed in seeds])
        f, h = self.condition_latents(seeds), None
        if f is not None:
            h = diffuse(f, self.sigma, sample_normal(seeds, f.shape[1:], "eps")).to(device)
        labels = self._labels(seeds)
        c = None if labels is None else one_hot(labels, self.gan.config["G"]["c_dim"])
        noise = SampleNoise(seeds, device) if self.noise_mode == "random" else None
        img = G(torch.from_numpy(z).float().to(device), c=None if c is None else c.to(device), h=h,
                sigma=self.sigma, noise=noise)
        return to_uint8(img).cpu()

    def images(self, seeds: Sequence[int], batch_size: int = 32) -> Iterator[torch.Tensor]:
        """Batches uint8 [n, 3, R, R] over all seeds, in order."""
        for start in range(0, len(seeds), batch_size):
            yield self.batch(seeds[start:start + batch_size])


def open_sampler(gan: Gan, *, latents: LatentSource | None = None, latents_path: str | None = None,
                 ref: str | Path | None = None, class_idx: int | None = None, labels: Sequence[int] | None = None,
                 sigma: float | None = None, noise_mode: str = "random") -> Sampler:
    """What the scripts' flags ask for: `Sampler` with latents from ``--ldm`` or from the images of ``--ref``.

    latents: the opened ``--ldm`` with a ``provenance``; latents_path: the flag's value.
    """
    if not gan.uses_latents and (latents_path or ref):
        raise UserError(f"{gan.path} takes no instance latents: leave out --ldm and --ref.")
    if latents_path and ref:
        raise UserError("--ldm and --ref both say where latents come from; give one of them.")
    references, source = None, dict(getattr(latents, "provenance", {}))
    if ref is not None:
        images = read_references(ref, gan.config["G"]["img_resolution"])
        with torch.no_grad():
            parts = [gan.G.encoder(to_float(part.to(gan.device))).float().cpu() for part in images.split(64)]
        references, source = torch.cat(parts), {"ref": str(ref), "ref_images": len(images)}
    return Sampler(gan, latents=latents, references=references, class_idx=class_idx, labels=labels, sigma=sigma,
                   noise_mode=noise_mode, source=source)


def training_sampler(gan: Gan, dataset: ImageDataset) -> Sampler:
    """Samples with the conditions of the training images (no flips), for metrics during training."""
    labels = None if dataset.labels is None or not gan.config["G"]["c_dim"] else dataset.labels.tolist()
    references = None
    if gan.uses_latents:
        references = encode(gan.G.encoder, dataset, range(dataset.num_images), gan.device)
    return Sampler(gan, references=references, labels=labels)


def grid(images: torch.Tensor, columns: int) -> np.ndarray:
    """uint8 [n, 3, R, R] → one picture [rows·R, columns·R, 3]; missing cells are white."""
    rows = -(-len(images) // columns)
    cells = torch.full((rows * columns, *images.shape[1:]), 255, dtype=torch.uint8)
    cells[:len(images)] = images
    cells = cells.reshape(rows, columns, *images.shape[1:]).permute(0, 3, 1, 4, 2)
    return cells.reshape(rows * images.shape[2], columns * images.shape[3], 3).numpy()
