"""The preset table: ``--cfg`` names a row, every other flag overrides one of its keys.

A row lists what differs from `DEFAULTS`. `resolve` turns row, overrides and facts about the data set into
the nested configuration that is validated, printed by ``--dry-run``, saved and stored in checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnnlib import UserError

DEFAULTS: dict[str, Any] = {
    # Generator.
    "generator": "fastgan",  # fastgan | fastgan_lite
    "z_dim": 256,
    "ngf": 128,  # channels at 128 px; other resolutions scale with it
    # Conditioning.
    "conditioning": "none",  # none | dicgan; labels come with cond
    "cond": False,
    "encoder": None,  # frozen | head | joint | constant
    "latent": None,  # (C, H, W) of f
    "f_input": None,  # side that a frozen network in f sees images at; None = native, at least 128
    "sigma": None,  # number in [0, 1) or auto:PERPLEXITY
    "info_weight": 0.0,
    # Discriminator.
    "backbone": "tf_efficientnet_lite0",
    "d_input": None,  # side that D resizes images to; None = 224 below 224 px, else native
    "d_width": 1.0,  # factor on the heads' channels
    "diffaug": "color,translation,cutout",
    # Optimisation.
    "glr": 2e-4,
    "dlr": 2e-4,
    "batch": 64,
    "batch_gpu": "auto",
    "amp": "off",  # off | bf16
    "ema_kimg": None,  # half-life; None = batch * 10 / 32
    "ema_rampup": 0.05,
    # Run.
    "mirror": False,
    "max_images": None,
    "kimg": 25000,
    "minutes": None,
    "tick": 4.0,
    "snap": 50,
    "snap_minutes": 10.0,
    "keep": 2,
    "metrics": "fid2k_full",
    "seed": 0,
    "workers": "auto",
}

_DICGAN = {"conditioning": "dicgan", "encoder": "frozen", "latent": (16, 1, 1), "sigma": "auto:5",
           "info_weight": 5.0, "mirror": True}
# Settings of a first CPU study: thin blocks, small D input, few images per step, high learning rates.
_DEMO = {"generator": "fastgan_lite", "ngf": 16, "f_input": 64, "d_input": 64, "d_width": 0.5, "glr": 5e-4, "dlr": 5e-4,
         "batch": 16, "amp": "bf16", "kimg": 200, "tick": 1.0, "snap": 4, "metrics": "none", "mirror": True}

PRESETS: dict[str, dict[str, Any]] = {
    "fastgan": {},
    "fastgan_lite": {"generator": "fastgan_lite"},
    "dicgan": {**_DICGAN},
    "dicgan_lite": {"generator": "fastgan_lite", **_DICGAN},
    "fastgan_demo": {**_DEMO},
    "dicgan_demo": {**_DICGAN, **_DEMO},
}


def preset(cfg: str) -> dict[str, Any]:
    """The full row of a preset; `UserError` for an unknown name."""
    if cfg not in PRESETS:
        raise UserError(f"--cfg {cfg}: unknown; choose one of {', '.join(PRESETS)}.")
    return {**DEFAULTS, **PRESETS[cfg]}


def resolve(cfg: str, overrides: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The nested configuration of a run.

    overrides: keys of `DEFAULTS`; None means "as the preset says". data: ``path, name, resolution,
    num_images, label_dim, fingerprint`` of the data set. Raises `UserError` on combinations without meaning.
    """
    row = preset(cfg)
    unknown = sorted(set(overrides) - set(row))
    if unknown:
        raise UserError(f"unknown option {', '.join(unknown)}.")
    given = {key: value for key, value in overrides.items() if value is not None}
    row.update(given)
    _check_meaning(cfg, row, given, data)
    return {
        "cfg": cfg,
        "G": _generator(row, data),
        "D": {
            "class_name": "pg_modules.discriminator.ProjectedDiscriminator",
            "img_resolution": data["resolution"],
            "c_dim": data["label_dim"] if row["cond"] else 0,
            "h_channels": row["latent"][0] if row["encoder"] else 0,
            "backbone": row["backbone"],
            "input_size": row["d_input"],
            "width": row["d_width"],
            "diffaug": row["diffaug"],
        },
        "conditioning": _conditioning(row, data),
        "loss": {"class_name": "training.loss.ProjectedGANLoss", "amp": row["amp"], "info_weight": row["info_weight"]},
        # The official loop scales D's rate by 16/17 for a regulariser that it doesn't have; that is left out.
        "optim": {"glr": row["glr"], "dlr": row["dlr"], "betas": [0.0, 0.99], "eps": 1e-8},
        "data": {**data, "mirror": row["mirror"], "use_labels": row["cond"], "max_images": row["max_images"]},
        "run": {
            "class_name": "training.options.RunOptions",
            "ema_kimg": row["batch"] * 10 / 32 if row["ema_kimg"] is None else row["ema_kimg"],
            **{key: row[key] for key in ("batch", "batch_gpu", "ema_rampup", "kimg", "minutes", "tick", "snap",
                                         "snap_minutes", "keep", "metrics", "seed", "workers")},
        },
    }


def _generator(row: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    encoder = None
    if row["encoder"]:
        name = {"frozen": "FrozenEncoder", "head": "HeadEncoder", "joint": "JointEncoder",
                "constant": "ConstantEncoder"}[row["encoder"]]
        encoder = {"class_name": f"pg_modules.encoder.{name}", "latent_shape": list(row["latent"])}
        if row["encoder"] != "constant":
            encoder["img_resolution"] = data["resolution"]
        if row["encoder"] in ("frozen", "head"):
            encoder["input_size"] = row["f_input"]
    return {
        "class_name": "pg_modules.fastgan.Generator",
        "z_dim": row["z_dim"],
        "c_dim": data["label_dim"] if row["cond"] else 0,
        "img_resolution": data["resolution"],
        "ngf": row["ngf"],
        "lite": row["generator"] == "fastgan_lite",
        "encoder": encoder,
    }


def _conditioning(row: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {"c_dim": data["label_dim"] if row["cond"] else 0}
    if row["conditioning"] == "dicgan":
        return {"class_name": "training.conditioning.dicgan.DiffusedInstance", "sigma": row["sigma"], **spec}
    return {"class_name": "training.conditioning.base.Conditioning", **spec}


def _check_meaning(cfg: str, row: Mapping[str, Any], given: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    if row["conditioning"] != "dicgan":
        for key, flag in (("sigma", "--sigma"), ("encoder", "--encoder"), ("latent", "--latent"),
                          ("info_weight", "--info-weight")):
            if key in given:
                raise UserError(f"{flag} belongs to diffused-instance conditioning; --cfg {cfg} has none. "
                                "Use --cfg dicgan or leave the flag out.")
    if row["cond"] and not data["label_dim"]:
        raise UserError("--cond 1: the data set has no labels; make it with dataset_tool.py --labels folders "
                        "or leave --cond out.")
    if row["info_weight"] and row["encoder"] == "constant":
        if "info_weight" in given:
            raise UserError("--info-weight: a constant encoder holds no information to keep; leave it out.")
        row["info_weight"] = 0.0  # type: ignore[index]
    if row["info_weight"] < 0:
        raise UserError(f"--info-weight {row['info_weight']:g}: must not be negative.")
    if row["amp"] not in ("off", "bf16"):
        raise UserError(f"--amp {row['amp']}: choose off or bf16.")
    for key in ("glr", "dlr"):
        if not row[key] > 0:
            raise UserError(f"--{key} {row[key]}: the learning rate must be above 0.")
