"""Latents that a latent diffusion model trains on: of images by an encoder, or of a mapping network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dnnlib import UserError
from training.dataset import ImageDataset
from training.logs import save_grid
from training.sampling import Gan, LatentSource, Sampler
from training.sources import encode_images
from training.spaces import SPACES, check_space, decoder, draw_latents, space_width


def latent_shape(gan: Gan, space: str) -> tuple[int, ...]:
    """(C, H, W) of the latents of `space`, ``f`` or one of `SPACES`; `UserError` where `gan` hasn't got it."""
    if space in SPACES:
        check_space(gan, space)
        return (space_width(gan, space), 1, 1)
    if not gan.uses_latents:
        instead = "use --space w or s" if gan.G.has_mapping else "use a network that is told of instances"
        raise UserError(f"--network {gan.path}: this generator has no encoder and no latents f; {instead}.")
    return tuple(gan.G.encoder.latent_shape)


def open_dataset(gan: Gan, space: str, path: str | None, mirror: bool | None) -> ImageDataset | None:
    """The images to encode, or to take classes from: those of the GAN's own training unless `path` names others.

    None where draws of the mapping network need neither.
    """
    own = gan.dataset
    if space != "f":
        if mirror is not None:
            raise UserError(f"--mirror flips images; --space {space} has none, leave it out.")
        if not gan.conditioning.classes:
            if path is not None:
                raise UserError(f"--data {path}: --space {space} of {gan.path} needs no images; leave it out.")
            return None
    if path is None and not os.path.exists(own["path"]):
        raise UserError(f"{gan.path} was trained on {own['path']}, which is not there; give its place with --data.")
    dataset = ImageDataset(path or own["path"], use_labels=own["use_labels"],
                           mirror=own["mirror"] if mirror is None else mirror,
                           max_images=own.get("max_images") if path is None else None,
                           holdout=own.get("holdout", 0.0) if path is None else 0.0, cache="off")
    if dataset.resolution != own["resolution"]:
        raise UserError(f"--data {dataset.path}: {dataset.resolution} px, but {gan.path} has {own['resolution']} px; "
                        f"convert it with dataset_tool.py --resolution {own['resolution']}.")
    return dataset


def describe_dataset(gan: Gan, dataset: ImageDataset | None) -> dict[str, Any]:
    """What options and checkpoints say about the images, None for those that `gan` knew; JSON types."""
    if dataset is None:
        return {key: gan.dataset[key] for key in ("path", "name", "num_images", "resolution", "fingerprint")}
    return {"path": os.path.abspath(dataset.path), "name": dataset.name, "num_images": dataset.num_images,
            "resolution": dataset.resolution, "mirror": len(dataset) > dataset.num_images,
            "fingerprint": dataset.fingerprint}


def collect(gan: Gan, space: str, dataset: ImageDataset | None, samples: int | None,
            seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Latents ``[M, C, H, W]``, the number ``[M]`` of the image or draw that each is of, and their classes ``[M]``.

    ``f``: of all images and flips of `dataset`; else `samples` draws of the mapping network. Classes are None where
    `gan` knows none.
    """
    labels = None
    if gan.conditioning.classes:
        assert dataset is not None
        labels = gan.conditioning.labels_of(dataset)
    if space != "f":
        assert samples is not None
        latents, classes = draw_latents(gan, space, labels, samples, seed)
        return latents, torch.arange(samples), classes
    assert dataset is not None
    index = torch.arange(len(dataset)) % dataset.num_images
    return encode_images(gan, dataset), index, None if labels is None else torch.tensor(labels)[index]


def picture_writer(gan: Gan, space: str, labels: list[int] | None, count: int) -> Callable[[Path, LatentSource], None]:
    """(path, latents) -> a picture of `count` decoded samples.

    labels: classes to draw from where `gan` knows classes.
    """
    decode = None if space == "f" else decoder(gan, space)
    noise_mode = "const" if gan.G.has_mapping else "random"

    def write(path: Path, latents: LatentSource) -> None:
        sampler = Sampler(gan, latents=latents, labels=labels, noise_mode=noise_mode, decode=decode)
        columns = next(n for n in (8, 4, 2, 1) if n <= count)
        save_grid(path, torch.cat(list(sampler.images(range(count)))), columns)

    return write
