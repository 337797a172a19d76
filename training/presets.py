"""The preset table: ``--cfg`` names a row, every other flag overrides one of its keys.

A row lists what differs from `DEFAULTS`. `training.resolve` turns row, overrides and facts about the data set into
the nested configuration that is validated, printed by ``--dry-run``, saved and stored in checkpoints.
"""

from __future__ import annotations

from typing import Any

from dnnlib import UserError

DEFAULTS: dict[str, Any] = {
    # Generator.
    "generator": "fastgan",  # fastgan | fastgan_lite | fastgan_original | stylegan2
    "z_dim": None,  # this and the next as the generator says (GENERATORS)
    "ngf": None,  # FastGAN's channels at 128 px; other resolutions scale with it
    "w_dim": None,  # StyleGAN2
    "map_depth": 2,  # StyleGAN2's mapping layers
    "cbase": None,  # StyleGAN2's channels times resolution
    "cmax": None,  # StyleGAN2's most channels
    # Conditioning.
    "conditioning": "none",  # none | cluster | selfcond | icgan | disp | dicgan; labels come with cond
    "cond": False,
    "features": "tf_efficientnet_lite0",  # frozen network of f and of clusters
    "feature_weights": None,  # its file, for networks outside the manifest
    "f_input": None,  # short side that it sees images at; None = native, at least 128
    "instance_dim": 512,  # FastGAN: width of an embedded feature
    "neighbors": None,  # icgan: k; None = 50 from 100,000 images on, 5 below
    "clusters": None,  # cluster, selfcond: K
    "recluster": None,  # selfcond: thousands of images between two clusterings
    "encoder": None,  # dicgan: frozen | head | joint | constant
    "latent": None,  # dicgan: (C, H, W) of f
    "sigma": None,  # dicgan: number in [0, 1), auto:PERPLEXITY or uniform:MAX
    "target": None,  # dicgan: paired | resampled
    "info_weight": 0.0,
    # Discriminator.
    "discriminator": "projected",  # projected | fastgan | stylegan2, each with its objective
    "backbone": "tf_efficientnet_lite0",
    "d_input": None,  # short side that D resizes images to; None = 224 below 224 px, else native
    "d_width": 1.0,  # factor on the heads' channels
    "separable": None,  # separable convolutions in the heads; as the generator says
    "ndf": 64,  # channels of the original FastGAN's D
    "diffaug": "color,translation,cutout",
    "freeze_d": 0,  # FreezeD: blocks of D that aren't trained
    # Noise in front of D.
    "d_noise": "none",  # none | feature | pixel
    "d_noise_at": "first",  # feature: first (backbone maps) | last (projected maps)
    "d_noise_target": None,  # share of positive signs that T follows; None = 0.45 feature, 0.6 pixel
    "d_noise_kimg": 100.0,  # thousands of images in which p could go from 0 to 1
    "t_dist": "priority",  # priority | uniform
    # Objective.
    "objective": "hinge",  # hinge | nonsaturating | wasserstein
    "consistency": 0.0,  # weight of the consistency between plain and augmented images
    "reconstruction": 1.0,  # original FastGAN
    "gamma": None,  # StyleGAN2-ADA's R1; None = 0.0002 · resolution² / batch
    "pl_weight": 2.0,  # StyleGAN2-ADA's path length
    "style_mixing": 0.9,  # StyleGAN2-ADA
    "ada_target": 0.6,  # StyleGAN2-ADA
    "ada_kimg": 500.0,  # StyleGAN2-ADA
    # Optimisation.
    "glr": None,  # as the generator says
    "dlr": None,
    "betas": (0.0, 0.99),
    "batch": 64,
    "batch_gpu": "auto",
    "amp": "off",  # off | bf16 | fp16
    "compile": False,
    "ema_kimg": None,  # half-life; None = batch * 10 / 32
    "ema_rampup": 0.05,
    # Run.
    "mirror": False,
    "max_images": None,
    "holdout": 0.0,  # share of the images that never trains
    "kimg": 25000,
    "minutes": None,
    "tick": 4.0,
    "snap": 50,
    "snap_minutes": 10.0,
    "keep": 2,
    "metrics": "fid2k_full",
    "metrics_budget": None,  # most of the time that metrics may take; None = at every snapshot
    "patience": 0,  # evaluations without a better first metric after which the run ends; 0 = never
    "seed": 0,
    "workers": "auto",
    "cache_images": "auto",  # decoded images in memory: auto | on | off
    "on_nan": "stop",  # stop | rollback
    "nan_retries": 3,  # most rollbacks of a run
}

# What belongs to a generator, wherever it is used: a row's own generator, or that of ``--generator``.
_FASTGAN = {"z_dim": 256, "ngf": 128, "separable": False, "glr": 2e-4, "dlr": 2e-4}
_STYLEGAN2 = {"z_dim": 64, "w_dim": 128, "cbase": 32768, "cmax": 512, "separable": True, "glr": 2e-3, "dlr": 2e-3}
GENERATORS: dict[str, dict[str, Any]] = {
    "fastgan": _FASTGAN,
    "fastgan_lite": _FASTGAN,
    "fastgan_original": {**_FASTGAN, "ngf": 64},
    "stylegan2": _STYLEGAN2,
}
# The same at the size of a demo on a CPU.
DEMO_GENERATORS: dict[str, dict[str, Any]] = {
    "fastgan": {**_FASTGAN, "ngf": 16, "glr": 5e-4, "dlr": 5e-4},
    "fastgan_lite": {**_FASTGAN, "ngf": 16, "glr": 5e-4, "dlr": 5e-4},
    "fastgan_original": {**_FASTGAN, "ngf": 16, "ndf": 16},
    "stylegan2": {**_STYLEGAN2, "cbase": 2048, "cmax": 128},
}

_DICGAN = {"conditioning": "dicgan", "encoder": "frozen", "latent": (16, 1, 1), "sigma": "auto:5",
           "target": "paired", "info_weight": 5.0, "mirror": True}

PRESETS: dict[str, dict[str, Any]] = {
    # Projected GAN (Sauer et al. 2021) and its generators.
    "fastgan": {},
    "fastgan_lite": {"generator": "fastgan_lite"},
    "stylegan2": {"generator": "stylegan2"},
    # DIC-GAN.
    "dicgan": {**_DICGAN},
    "dicgan_lite": {"generator": "fastgan_lite", **_DICGAN},
    # What it is compared with, on Projected GAN.
    "icgan": {"conditioning": "icgan", "mirror": True},  # Casanova et al. 2021
    "disp": {"conditioning": "disp", "instance_dim": 128, "mirror": True},  # DISP
    "logogan": {"conditioning": "cluster", "clusters": 10},  # Sage et al. 2018
    "selfcond": {"conditioning": "selfcond", "clusters": 10, "recluster": 25.0},  # Liu et al. 2020
    "diffusiongan": {"d_noise": "feature"},  # Wang et al. 2023, in feature space
    "diffusiongan_pixel": {"d_noise": "pixel"},  # the same on images, D is told the time
    # Baselines with discriminators and objectives of their own.
    # Liu et al. 2021.
    "fastgan_original": {"generator": "fastgan_original", "discriminator": "fastgan", "diffaug": "color,translation",
                         "betas": (0.5, 0.999), "batch": 8},
    # Karras et al. 2020, with rates, widths and weights of the official "auto" configuration for 256 pixels.
    "stylegan2_ada": {"generator": "stylegan2", "discriminator": "stylegan2", "z_dim": 512, "w_dim": 512,
                      "cbase": 16384, "objective": "nonsaturating", "glr": 2.5e-3, "dlr": 2.5e-3, "diffaug": "",
                      "mirror": True},
}

# Size of a demo on a CPU, from a first study: small D input, few images per step, high learning rates.
_DEMO = {"f_input": 64, "d_input": 64, "d_width": 0.5, "batch": 16, "amp": "bf16", "kimg": 200, "tick": 0.5, "snap": 8,
         "metrics": "none", "mirror": True}


def _demo(row: dict[str, Any]) -> dict[str, Any]:
    """The row at the size of a demo; FastGAN becomes FastGAN-lite."""
    own = row.get("generator", DEFAULTS["generator"])
    generator = "fastgan_lite" if own == "fastgan" else own
    small = {**row, **_DEMO, **DEMO_GENERATORS[generator], "generator": generator}
    if "recluster" in row:
        small["recluster"] = 4.0
    if row.get("discriminator") == "fastgan":
        small["batch"] = 8
    return small


PRESETS |= {f"{cfg}_demo": _demo(row) for cfg, row in PRESETS.items() if not cfg.endswith("_lite")}


def preset(cfg: str, generator: str | None = None) -> dict[str, Any]:
    """The full row of a preset; `UserError` for an unknown name.

    generator: another one than the row's brings along what belongs to it (`GENERATORS`), such as its learning rates.
    """
    if cfg.startswith(("biggan", "sngan")):
        raise UserError(f"--cfg {cfg}: SNGAN and BigGAN backbones are not part of this version; choose one of "
                        f"{', '.join(PRESETS)}.")
    if cfg not in PRESETS:
        raise UserError(f"--cfg {cfg}: unknown; choose one of {', '.join(PRESETS)}.")
    row = PRESETS[cfg]
    own = row.get("generator", DEFAULTS["generator"])
    sizes = DEMO_GENERATORS if cfg.endswith("_demo") else GENERATORS
    if generator is None or generator == own or generator not in sizes:
        return {**DEFAULTS, **GENERATORS[own], **row}
    return {**DEFAULTS, **row, **sizes[generator], "generator": generator}
