"""Configurations of latent diffusion as a table of plain data, and their resolution against the command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from dnnlib import UserError

# One row is everything that training needs; a flag that is not given means "as the row says".
#   net              class and its arguments (ldm.denoiser.MLP, ldm.unet.UNet)
#   parametrisation  gaussian | epsilon | v (ldm.denoiser.NoiseEstimator)
#   schedule         arguments of ldm.schedule.alpha_bars
#   whiten           auto | full | channel | diagonal | scalar (ldm.whitening.fit)
#   time_sampling    uniform | antithetic | stratified (ldm.batches.draw_times)
#   label_dropout    share of latents whose class is hidden, where the model is told classes
#   lr, betas, clip  Adam; clip is the largest norm of the gradient
#   ema_kimg         half-life of the weights' moving average, thousands of latents;
#   ema_rampup       it is at most this share of what has been seen (None: no ramp)
#   holdout          share of the images that only measures; eval_size noisy samples of it are the fixed test
#   kimg, tick       length of a run and of a tick, thousands of latents; snap: ticks between snapshots
#   patience         ticks without a lower held-out loss after which the run ends (None: never)
#   pictures         decoded samples in the picture of each snapshot (0: none)
_VECTOR: dict[str, Any] = {
    "net": {"class_name": "ldm.denoiser.MLP", "width": 256, "layers": 4, "groups": 1, "dropout": 0.1,
            "time_channels": 64},
    "parametrisation": "gaussian",
    "schedule": {"kind": "linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    "whiten": "auto",
    "time_sampling": "stratified", "label_dropout": 0.1,
    "batch": 256, "lr": 1e-3, "betas": [0.9, 0.999], "clip": 1.0,
    "ema_kimg": 100.0, "ema_rampup": 0.1,
    "holdout": 0.1, "eval_size": 2048,
    "kimg": 2000.0, "tick": 20.0, "snap": 10, "keep": 3, "patience": None, "pictures": 16,
}

_MAP: dict[str, Any] = {
    **_VECTOR,
    "net": {"class_name": "ldm.unet.UNet", "channels": 64, "mult": [1, 2, 2], "blocks": 2, "attention": [16, 8],
            "dropout": 0.1},
    "batch": 64, "lr": 4e-4, "eval_size": 256, "kimg": 1000.0, "tick": 2.0,
}

# What the DDIM code trains with: lr 2e-4, EMA .9999 (half of a weight is forgotten after 6931 steps of 128).
_PUBLISHED: dict[str, Any] = {
    **_MAP,
    "parametrisation": "epsilon", "time_sampling": "antithetic",
    "batch": 128, "lr": 2e-4, "ema_kimg": 887.0, "kimg": 25000.0, "tick": 4.0, "snap": 50,
}

PRESETS: dict[str, dict[str, Any]] = {
    "mlp": _VECTOR,
    "unet": _MAP,
    # The network planned for DIC-GAN: the published U-Net cut to latent size.
    "unet-dicgan": {
        **_PUBLISHED,
        "parametrisation": "gaussian",
        "net": {"class_name": "ldm.unet.UNet", "channels": 128, "mult": [1, 2, 2], "blocks": 2, "attention": [16, 8],
                "dropout": 0.1},
    },
    # The CIFAR-10 network of DDPM and DDIM.
    "unet-cifar": {
        **_PUBLISHED,
        "net": {"class_name": "ldm.unet.UNet", "channels": 128, "mult": [1, 2, 2, 2], "blocks": 2, "attention": [16],
                "dropout": 0.1},
    },
    # The prior over w of the work on test-time conditioning: 7 layers of 5000 units with group normalisation.
    "mlp-5000x7": {
        **_VECTOR,
        "net": {"class_name": "ldm.denoiser.MLP", "width": 5000, "layers": 7, "groups": 40, "dropout": 0.0,
                "time_channels": 128},
        "batch": 128, "lr": 2e-4, "ema_kimg": 887.0, "kimg": 25000.0, "tick": 4.0, "snap": 50,
    },
}


def resolve(cfg: str, shape: Sequence[int], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The row `cfg` (``auto``: ``mlp`` for vectors, ``unet`` for maps) with those `overrides` that are not None.

    `shape`: (C, H, W) of the latents. The result holds the key ``cfg`` too. An unknown row, an override that no
    row has, and a U-Net for vectors are `UserError`s.
    """
    is_vector = tuple(shape[1:]) == (1, 1)
    name = ("mlp" if is_vector else "unet") if cfg == "auto" else cfg
    if name not in PRESETS:
        raise UserError(f"--cfg {cfg}: no such configuration; choose auto, {', '.join(PRESETS)}.")
    config: dict[str, Any] = {"cfg": name, **copy.deepcopy(PRESETS[name])}
    for key, value in overrides.items():
        if key not in config:
            raise UserError(f"A latent diffusion run has no option {key}; it has {', '.join(config)}.")
        if value is not None:
            config[key] = value
    if config["net"]["class_name"] == "ldm.unet.UNet" and is_vector:
        raise UserError(f"--cfg {name} is for latent maps and this GAN's latents are vectors; use --cfg mlp.")
    return config


# Keys of a row that a flag of the same name overrides.
FLAGS = ("kimg", "batch", "lr", "tick", "snap", "keep", "patience", "pictures", "whiten")


def with_flags(flags: Mapping[str, Any], shape: Sequence[int], classes: int) -> dict[str, Any]:
    """The row that the flags of ``ldm/train.py`` name, with their values and the keys of every run: seed and minutes.

    classes: number of classes that the network is told of; 0 = none.
    """
    overrides = {key: flags[key] for key in FLAGS}
    config = resolve(flags["cfg"], shape, {**overrides, "parametrisation": flags["prediction"]})
    config |= {"seed": flags["seed"] or 0, "minutes": flags["minutes"]}
    if flags["schedule"] is not None:
        config["schedule"]["kind"] = flags["schedule"]
    if classes:
        config["net"]["classes"] = classes
    if flags["minutes"] is not None and flags["kimg"] is None:
        config["kimg"] = None
    return config
