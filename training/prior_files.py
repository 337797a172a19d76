"""Priors over latents as files (``--save-source``), which need neither the training images nor another fit."""

from __future__ import annotations

import os
from typing import Any

import torch

from dnnlib import UserError
from torch_utils import checkpoint
from training.dataset import ImageDataset
from training.priors import FORMS, LatentPrior, Spec, fit
from training.sampling import Gan
from training.tables import LatentTable


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
    if state.get("gan_hash") != gan.hash:
        raise UserError(
            f"{flag} {path} belongs to another GAN ({state.get('network', 'unknown')}, weights "
            f"{str(state.get('gan_hash'))[:12]}; given: {gan.hash[:12]}): its latents mean nothing to this one. Use "
            "that --network, or make the file anew with gen_images.py --save-source."
        )
    if state.get("encoder") != _encoder_identity(gan):
        raise UserError(f"{flag} {path} was made with other weights of the network's frozen encoder; make it anew with "
                        "gen_images.py --save-source.")
    try:
        prior = FORMS[state["form"]](**state["prior"])
        mode, fits = state["provenance"]["mode"], prior([0]).shape[1:] == tuple(gan.G.encoder.latent_shape)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError) as error:
        raise UserError(f"{path} is damaged: parts are missing or do not fit. Make it anew with gen_images.py "
                        "--save-source.") from error
    if not fits:
        raise UserError(f"{path} is damaged: its latents have another shape. Make it anew with gen_images.py "
                        "--save-source.")
    if mode != flag.removeprefix("--"):
        raise UserError(f"{flag} {path}: this file holds {state['provenance']['prior']}; give it to --{mode}.")
    prior.provenance = {**state["provenance"], "file": str(path)}
    return prior
