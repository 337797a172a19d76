"""Where conditions come from: reference images, a latent diffusion model, priors over the training images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dnnlib import UserError
from dnnlib.images import decode, is_image_name, open_source
from dnnlib.labels import read_labels
from training.alterations import alter, parse_alterations
from training.dataset import ImageDataset
from training.loader import to_float
from training.prior_files import fit_prior, open_prior
from training.priors import PRIORS, LatentPrior, Spec, parse_instances, parse_prior
from training.sampling import Gan, LatentSource, Sampler, encode
from training.source_options import SourceFlags
from training.spaces import decoder

TrainingSet = Callable[[str], ImageDataset]  # flag that needs the training images → them


class DiffusionLatents(Protocol):
    """`ldm.latents.LatentSource`, which this package doesn't import."""

    space: str
    noisy: bool
    labels: list[int] | None
    provenance: dict[str, Any]

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor: ...


class OpenLatents(Protocol):
    """`ldm.latents.open_latents`."""

    def __call__(self, path: str, gan_hash: str, device: torch.device, asked: Mapping[str, Any], *,
                 sigma: float | None = None) -> DiffusionLatents: ...


# Image sets.


def encode_images(gan: Gan, dataset: ImageDataset) -> torch.Tensor:
    """Latents of G_ema.encoder for every index of `dataset` (flips included if it is mirrored)."""
    if not gan.uses_latents:
        raise UserError(f"--network {gan.path}: this generator has no encoder and no latents; use one that is told of "
                        "instances, such as a dicgan network.")
    if dataset.shape != gan.img_shape:
        (_, height, width), (_, own_height, own_width) = dataset.shape, gan.img_shape
        raise UserError(f"{dataset.name} is {width}x{height} in {dataset.channels} channels, {gan.path} "
                        f"{own_width}x{own_height} in {gan.img_shape[0]}; convert it with dataset_tool.py "
                        f"--resolution {own_width}x{own_height}{' --color grey' if gan.img_shape[0] == 1 else ''}.")
    return encode(gan.G.encoder, dataset, range(len(dataset)), gan.device)


def is_picture(path: str | Path) -> bool:
    """Whether this is one image file, not a folder or zip of them."""
    return Path(path).is_file() and is_image_name(Path(path).name)


def read_references(path: str | Path, shape: Sequence[int]) -> torch.Tensor:
    """Reference images uint8 [n, *shape] from one image file, a folder or a zip, centre-cropped and resized.

    shape: (channels, height, width).
    """
    from PIL import Image, ImageOps

    channels, height, width = shape

    def fit(data: bytes, name: str) -> torch.Tensor:
        picture = ImageOps.fit(Image.fromarray(decode(data, name)), (width, height), Image.Resampling.LANCZOS)
        pixels = np.array(picture.convert("L"))[:, :, None] if channels == 1 else np.array(picture)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    path = Path(path)
    if is_picture(path):
        return fit(path.read_bytes(), str(path))[None]
    with open_source(path) as source:
        return torch.stack([fit(source.read(name), f"{path}:{name}") for name in source.names])


def reference_labels(path: str | Path) -> list[int]:
    """Classes of reference images, from the dataset.json beside them; `UserError` if there are none."""
    if not is_picture(path):
        with open_source(path) as source:
            labels = read_labels(source.json(), source.names, path)
            if labels is not None:
                return [labels[name] for name in source.names]
    raise UserError(f"--ref {path}: these images have no class labels and the network needs them; give --class K, or a "
                    "set that dataset_tool.py --labels made.")


def open_images(gan: Gan, path: str | None) -> tuple[ImageDataset, bool]:
    """The images at `path` or, if None, where the checkpoint says; and whether they are what `gan` was trained on."""
    trained = gan.dataset
    if path is None and not Path(trained["path"]).exists():
        raise UserError(f"{gan.path} was trained on {trained['path']}, which is not there any more; name its new place "
                        "with --data.")
    dataset = ImageDataset(path or trained["path"], use_labels=trained["use_labels"], max_images=trained["max_images"],
                           holdout=trained.get("holdout", 0.0))
    return dataset, dataset.fingerprint == trained["fingerprint"]


def training_set(gan: Gan, path: str | None, flag: str) -> ImageDataset:
    """The images that `gan` was trained on, which `flag` needs; `UserError` if these are others."""
    dataset, same = open_images(gan, path)
    if same:
        return dataset
    if path is None:
        raise UserError(f"{flag} needs the training images, but {gan.dataset['path']} has changed since {gan.path} was "
                        "trained on it; put the former set back, or name its place with --data.")
    raise UserError(f"{flag} needs the training images, but --data {path} is not what {gan.path} was trained on "
                    f"({gan.dataset['name']}, {gan.dataset['num_images']} images); name that set.")


# Samplers.


def open_sampler(gan: Gan, flags: SourceFlags, *, open_latents: OpenLatents, images: TrainingSet,
                 labels: Sequence[int] | None = None, noise_mode: str = "random",
                 alterations: str | None = None) -> Sampler:
    """The `Sampler` that the scripts' flags ask for; its `provenance` says where conditions come from.

    images: gives the training images to priors that are made of them. labels: classes to draw from where the source
    of latents has none. alterations: value of ``--alter``, which goes with ``--ref``. Raises `UserError` for flags that
    don't fit the network.
    """
    given = flags.latent_sources
    if given and not gan.uses_latents and not (given == ["--ldm"] and gan.G.has_mapping):
        raise UserError(f"{gan.path} takes no instance latents: leave out {' and '.join(given)}.")
    if len(given) > 1:
        raise UserError(f"{', '.join(given)} all say where latents come from; give one of them.")
    if flags.ldm is None and (odd := [flag for flag, value in flags.of_ldm.items() if value is not None]):
        raise UserError(f"{', '.join(odd)} belong to --ldm; give --ldm FILE or leave them out.")
    if flags.ldm is not None:
        return _diffusion_sampler(gan, flags, open_latents, labels, noise_mode)
    latents: LatentSource | None = None
    references: torch.Tensor | None = None
    source: dict[str, Any] = {}
    if flags.ref is not None:
        references, source = _encode_references(gan, flags.ref, alterations)
    elif given:
        latents = _open_prior(gan, flags, images)
    return Sampler(gan, latents=latents, references=references, class_idx=flags.class_idx,
                   labels=_labels(gan, flags, latents, labels), sigma=flags.sigma, noise_mode=noise_mode,
                   truncation=None if flags.trunc == 1 else flags.trunc,
                   source={**source, **getattr(latents, "provenance", {})})


def _diffusion_sampler(gan: Gan, flags: SourceFlags, open_latents: OpenLatents, labels: Sequence[int] | None,
                       noise_mode: str) -> Sampler:
    """The `Sampler` of ``--ldm``: latents f, h itself (``--ldm-h truncated``), or w and styles of StyleGAN2."""
    sigma = None
    if flags.ldm_h is not None:
        if gan.diffused is None:
            raise UserError(f"--ldm-h: {gan.path} has no diffused-instance condition h; leave it out.")
        sigma = gan.diffused.check_sampling_sigma(flags.sigma) if flags.ldm_h == "truncated" else None
    assert flags.ldm is not None
    latents = open_latents(flags.ldm, gan.hash, gan.device, {
        "sampler": flags.ldm_sampler, "steps": flags.ldm_steps, "eta": flags.eta, "cfg_scale": flags.cfg_scale,
        "class_idx": flags.class_idx}, sigma=sigma)
    if latents.space == "f":
        told = labels if latents.labels is None else latents.labels
        return Sampler(gan, latents=latents, class_idx=flags.class_idx,
                       labels=None if flags.class_idx is not None else told, sigma=flags.sigma, noise_mode=noise_mode,
                       truncation=None if flags.trunc == 1 else flags.trunc, source=latents.provenance,
                       noisy=latents.noisy)
    if flags.class_idx is not None and latents.labels is None:
        raise UserError(f"--class {flags.class_idx}: this latent model was trained without classes; leave it out, or "
                        "train one with ldm/train.py --cond 1.")
    if flags.trunc not in (None, 1):
        raise UserError(f"--trunc {flags.trunc:g} acts on the mapping network, whose place --ldm takes; leave it out.")
    return Sampler(gan, latents=latents, class_idx=flags.class_idx, sigma=flags.sigma, noise_mode=noise_mode,
                   source=latents.provenance, decode=decoder(gan, latents.space))


def altered_references(gan: Gan, ref: str, alterations: str | None) -> torch.Tensor:
    """Reference images uint8 [n, C, H, W] as the encoder sees them."""
    names = [] if alterations is None else parse_alterations(alterations)
    return alter(read_references(ref, gan.img_shape), names)


def _encode_references(gan: Gan, ref: str, alterations: str | None) -> tuple[torch.Tensor, dict[str, Any]]:
    pictures = altered_references(gan, ref, alterations)
    with torch.no_grad():
        parts = [gan.G.encoder(to_float(part.to(gan.device))).float().cpu() for part in pictures.split(64)]
    altered = {} if alterations is None else {"alter": alterations}
    return torch.cat(parts), {"ref": str(ref), "ref_images": len(pictures), **altered}


def prior_spec(flags: SourceFlags) -> Spec | None:
    """What ``--instances`` or ``--prior`` makes of the training images; None for neither and for files."""
    if flags.instances is not None:
        return parse_instances(flags.instances)
    return None if flags.prior is None else parse_prior(flags.prior)


def _open_prior(gan: Gan, flags: SourceFlags, images: TrainingSet) -> LatentPrior:
    spec = prior_spec(flags)
    if spec is not None:
        return fit_prior(gan, spec, images(spec.flag))
    if flags.instances is not None:
        return open_prior(flags.instances, gan, "--instances")
    assert flags.prior is not None
    if not Path(flags.prior).exists():
        raise UserError(f"--prior {flags.prior}: choose {', '.join(PRIORS)}, or a file of gen_images.py --save-source "
                        "(there is none of this name).")
    return open_prior(flags.prior, gan, "--prior")


def _labels(gan: Gan, flags: SourceFlags, latents: LatentSource | None,
            default: Sequence[int] | None) -> Sequence[int] | None:
    """Classes that belong to the source of latents: of the references, or of the images that a prior draws."""
    classes = gan.conditioning.classes
    if not classes or flags.class_idx is not None:
        return None
    labels = default
    if flags.ref is not None:
        labels = reference_labels(flags.ref)
    elif isinstance(latents, LatentPrior):
        if latents.labels is None:
            raise UserError(f"{flags.latent_sources[0]} {flags.instances or flags.prior} draws no classes and "
                            f"{gan.path} needs them; give --class 0 .. {classes - 1}, or --prior train or --instances "
                            "K, whose images bring theirs.")
        labels = latents.labels.tolist()
    if labels is not None and max(labels) >= classes:
        raise UserError(f"Class {max(labels)} of {flags.ref or 'the data set'}: {gan.path} knows classes 0 .. "
                        f"{classes - 1}; give --class K.")
    return labels


def at_reference(sampler: Sampler, index: int) -> Sampler:
    """`sampler` with all seeds at its reference number `index`."""
    assert isinstance(sampler.references, torch.Tensor)
    one = copy.copy(sampler)
    one.references = sampler.references[index:index + 1]
    one.labels = None if sampler.labels is None else [sampler.labels[index]]
    return one
