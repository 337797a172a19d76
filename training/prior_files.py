"""Priors over latents as files (``--save-source``), which need neither the training images nor another fit."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dnnlib import UserError
from torch_utils import checkpoint
from training.dataset import ImageDataset
from training.priors import FORMS, LatentPrior, Spec, fit
from training.sampling import Gan
from training.tables import LatentTable

MAX_ALPHA = 1e6
_PARTS = {"form": str, "prior": dict, "provenance": dict, "gan_hash": str, "encoder": dict}


def fit_prior(gan: Gan, spec: Spec, dataset: ImageDataset) -> LatentPrior:
    """The prior that `spec` asks for, over G's latents of the images of `dataset` (unflipped)."""
    labels = gan.conditioning.labels_of(dataset)
    with LatentTable.temporary(gan.G.encoder, dataset, gan.device) as table:
        prior = fit(spec, table, None if labels is None else torch.tensor(labels))
    prior.provenance = {
        "mode": "instances" if spec.kind == "instances" else "prior", "prior": str(spec),
        "prior_set": {"name": dataset.name, "num_images": dataset.num_images, "fingerprint": dataset.fingerprint},
    }
    return prior


def _encoder_identity(gan: Gan) -> dict[str, Any]:
    """What f is, besides the tensors that the network's hash covers."""
    backbone = getattr(gan.G.encoder, "backbone", None)
    return {"spec": gan.config["G"]["encoder"], "weights_hash": None if backbone is None else backbone.weights_hash}


def save_prior(path: str | os.PathLike, gan: Gan, prior: LatentPrior) -> None:
    """Writes a prior that `fit_prior` made for `gan`."""
    checkpoint.save(path, "prior", {
        "form": type(prior).__name__, "prior": prior.state_dict(), "provenance": prior.provenance,
        "gan_hash": gan.hash, "network": gan.path, "encoder": _encoder_identity(gan),
    })


def open_prior(path: str | os.PathLike, gan: Gan, flag: str) -> LatentPrior:
    """A prior that `save_prior` wrote for the same network.

    flag: ``--instances`` or ``--prior``, which takes all the others. Raises `UserError` for an unreadable file, one of
    another network, and the other flag's.
    """
    state = checkpoint.load(path, "prior")
    if not _PARTS.items() <= {key: type(value) for key, value in state.items()}.items():
        raise _damaged(path, "parts are missing or of another kind")
    if state["gan_hash"] != gan.hash:
        raise UserError(
            f"{flag} {path} belongs to another GAN ({state.get('network', 'unknown')}, weights "
            f"{state['gan_hash'][:12]}; given: {gan.hash[:12]}): its latents mean nothing to this one. Use "
            "that --network, or make the file anew with gen_images.py --save-source."
        )
    if _as_text(state["encoder"]) != _as_text(_encoder_identity(gan)):
        raise UserError(f"{flag} {path} was made with other weights of the network's frozen encoder; make it anew with "
                        "gen_images.py --save-source.")
    try:
        check_parts(state["form"], state["prior"], gan.G.encoder.latent_shape)
        prior = FORMS[state["form"]](**state["prior"])
        mode, name = state["provenance"]["mode"], state["provenance"]["prior"]
    except (KeyError, ValueError) as error:
        raise _damaged(path, "parts are missing or do not fit") from error
    if mode != flag.removeprefix("--"):
        raise UserError(f"{flag} {path}: this file holds {name}; give it to --{mode}.")
    prior.provenance = {**state["provenance"], "file": str(path)}
    return prior


def _as_text(nest: Any) -> str:
    """Plain data to compare: what a file holds may have tensors in it, or keys that can't be sorted."""
    try:
        return json.dumps(nest, default=str, sort_keys=True)
    except TypeError:
        return ""


def _damaged(path: str | os.PathLike, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}. Make it anew with gen_images.py --save-source.")


def check_parts(form: str, parts: Mapping[str, Any], shape: Sequence[int]) -> None:
    """ValueError unless `parts` can be the arguments of a prior of this form over latents of `shape` (C, H, W)."""
    keys = {"Rows": {"rows", "weights", "labels"}, "Vicinal": {"rows", "alpha"}, "Gaussians": {"mixture", "shape"}}
    if form not in keys or set(parts) != keys[form]:
        raise ValueError("no known form")
    if form == "Gaussians":
        mixture, size = parts["mixture"], math.prod(shape)
        if not isinstance(mixture, dict) or parts["shape"] != list(shape):
            raise ValueError("another shape")
        count = _shares(mixture.get("weights"))
        if any(_numbers(mixture.get(key)) != (count, size) for key in ("means", "variances")) or bool(
                (mixture["variances"] < 0).any()):
            raise ValueError("means or variances")
        return
    count, *rest = _numbers(parts["rows"]) or (0,)
    if not count or tuple(rest) != tuple(shape):
        raise ValueError("another shape")
    alpha, weights, labels = parts.get("alpha", 1.0), parts.get("weights"), parts.get("labels")
    if type(alpha) not in (int, float) or not 0 < alpha <= MAX_ALPHA:
        raise ValueError("alpha")
    if weights is not None and (labels is not None or _shares(weights) != count):
        raise ValueError("weights")
    if labels is not None and not (isinstance(labels, torch.Tensor) and labels.dtype == torch.int64
                                   and labels.shape == (count,) and int(labels.min()) >= 0):
        raise ValueError("labels")


def _numbers(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor of fractions, None for anything else."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) and value.is_floating_point() else None


def _shares(weights: Any) -> int:
    """How many weights there are; ValueError unless they can be drawn by."""
    shape = _numbers(weights)
    if shape is None or len(shape) != 1 or bool((weights < 0).any()) or not 0 < float(weights.sum()) < math.inf:
        raise ValueError("weights")
    return shape[0]
