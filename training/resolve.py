"""From a preset row, overrides and facts about the data set to the nested configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnnlib import UserError
from pg_modules.backbones import MANIFEST, load_backbone
from pg_modules.conditions import INSTANCE, LABEL, TIME
from training.meaning import check_meaning
from training.objectives import lazy_adam
from training.presets import preset

LATENT_METHODS = ("icgan", "disp", "dicgan")  # whose G has an encoder f
ENCODERS = {"frozen": "FrozenEncoder", "head": "HeadEncoder", "joint": "JointEncoder", "constant": "ConstantEncoder"}
LOSSES = {"projected": "training.loss.ProjectedGANLoss",
          "fastgan": "training.objectives.fastgan_original.FastGANLoss",
          "stylegan2": "training.objectives.stylegan2_ada.StyleGAN2ADALoss"}
D_INTERVAL, G_INTERVAL = 16, 4  # of StyleGAN2's lazy regularisation


def resolve(cfg: str, overrides: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The nested configuration of a run.

    overrides: keys of `DEFAULTS`; None means "as the preset says". data: ``path, name, resolution, aspect, channels,
    num_images, label_dim, fingerprint`` of the data set. Raises `UserError` on combinations without meaning.
    """
    row = preset(cfg, overrides.get("generator"))
    unknown = sorted(set(overrides) - set(row))
    if unknown:
        raise UserError(f"unknown option {', '.join(unknown)}.")
    given = {key: value for key, value in overrides.items() if value is not None}
    row.update(given)
    check_meaning(cfg, row, given, data)
    encoder = _encoder(row, data)
    c_parts = _c_parts(row, data)
    return {
        "cfg": cfg,
        "G": {**_generator(row, data), "encoder": encoder if row["conditioning"] in LATENT_METHODS else None,
              "c_parts": c_parts},
        "D": _discriminator(row, data, c_parts),
        "freeze_d": row["freeze_d"],
        "conditioning": _conditioning(row, data, encoder),
        "d_noise": _d_noise(row),
        "loss": _loss(row, data),
        "optim": _optim(row),
        "data": {**data, "mirror": row["mirror"], "use_labels": row["cond"], "max_images": row["max_images"],
                 "holdout": row["holdout"]},
        "run": {
            "class_name": "training.options.RunOptions",
            "ema_kimg": row["batch"] * 10 / 32 if row["ema_kimg"] is None else row["ema_kimg"],
            **_pick(row, "batch", "batch_gpu", "ema_rampup", "kimg", "minutes", "tick", "snap", "snap_minutes", "keep",
                    "metrics", "metrics_budget", "patience", "seed", "workers", "cache_images", "on_nan",
                    "nan_retries", "compile"),
        },
    }


def _pick(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys}


def _image(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"img_resolution": data["resolution"], "img_channels": data["channels"], "aspect": list(data["aspect"])}


def _h_channels(row: Mapping[str, Any]) -> int:
    return row["latent"][0] if row["conditioning"] == "dicgan" else 0


def _c_parts(row: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, int]:
    """Widths of what G is told in c; D may be told a diffusion time beside it."""
    parts = {}
    if row["cond"] or row["conditioning"] in ("cluster", "selfcond"):
        parts[LABEL] = row["clusters"] or data["label_dim"]
    if row["conditioning"] in ("icgan", "disp"):
        parts[INSTANCE] = load_backbone(row["features"], row["feature_weights"]).feature_dim
    return parts


def _encoder(row: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Spec of f: of G's encoder, or of the network whose features are clustered."""
    if row["conditioning"] == "none":
        return None
    network = {"backbone": row["features"], "weights": row["feature_weights"], "input_size": row["f_input"],
               "img_resolution": data["resolution"]}
    if row["encoder"] not in ("joint", "constant") and (row["feature_weights"] or row["features"] not in MANIFEST):
        network["sha256"] = load_backbone(row["features"], row["feature_weights"]).weights_hash
    if row["conditioning"] != "dicgan":
        return {"class_name": "pg_modules.encoder.FeatureEncoder", **network}
    spec = {"class_name": f"pg_modules.encoder.{ENCODERS[row['encoder']]}", "latent_shape": list(row["latent"])}
    if row["encoder"] == "joint":
        return {**spec, **_image(data)}
    return spec if row["encoder"] == "constant" else {**spec, **network}


def _generator(row: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    common = {**_pick(row, "z_dim"), **_image(data), "h_channels": _h_channels(row),
              "sigma_input": str(row["sigma"]).startswith("uniform")}
    if row["generator"] == "stylegan2":
        return {"class_name": "pg_modules.stylegan2.Generator", **common, "w_dim": row["w_dim"],
                "map_layers": row["map_depth"], "channel_base": row["cbase"], "channel_max": row["cmax"]}
    return {"class_name": "pg_modules.fastgan.Generator", **common, **_pick(row, "instance_dim", "ngf"),
            "lite": row["generator"] == "fastgan_lite", "original": row["generator"] == "fastgan_original"}


def _discriminator(row: Mapping[str, Any], data: Mapping[str, Any], c_parts: Mapping[str, int]) -> dict[str, Any]:
    parts = dict(c_parts)
    if row["d_noise"] == "pixel":
        from training.d_noise.pixel import PixelDiffusion

        parts[TIME] = PixelDiffusion.t_dim
    common = {**_image(data), "c_parts": parts, "h_channels": _h_channels(row)}
    if row["discriminator"] == "fastgan":
        return {"class_name": "pg_modules.fastgan_discriminator.Discriminator", **common,
                **_pick(row, "ndf", "diffaug")}
    if row["discriminator"] == "stylegan2":
        return {"class_name": "pg_modules.stylegan2_discriminator.Discriminator", **common,
                "channel_base": row["cbase"], "channel_max": row["cmax"]}
    return {"class_name": "pg_modules.discriminator.ProjectedDiscriminator", **common,
            **_pick(row, "backbone", "diffaug", "separable"), "input_size": row["d_input"], "width": row["d_width"]}


def _conditioning(row: Mapping[str, Any], data: Mapping[str, Any], encoder: dict[str, Any] | None) -> dict[str, Any]:
    package, c_dim = "training.conditioning", data["label_dim"] if row["cond"] else 0
    if row["conditioning"] == "dicgan":
        return {"class_name": f"{package}.dicgan.DiffusedInstance", **_pick(row, "sigma", "target"), "c_dim": c_dim}
    if row["conditioning"] == "icgan":
        neighbors = row["neighbors"] or (50 if data["num_images"] >= 100_000 else 5)
        return {"class_name": f"{package}.icgan.InstanceNeighbors", "neighbors": neighbors, "c_dim": c_dim}
    if row["conditioning"] == "disp":
        return {"class_name": f"{package}.disp.InstancePrior", "c_dim": c_dim}
    if row["conditioning"] == "cluster":
        return {"class_name": f"{package}.cluster.ClusterLabels", "clusters": row["clusters"], "encoder": encoder}
    if row["conditioning"] == "selfcond":
        return {"class_name": f"{package}.selfcond.SelfConditioned", "clusters": row["clusters"], "encoder": encoder,
                "recluster_kimg": row["recluster"]}
    return {"class_name": f"{package}.base.Conditioning", "c_dim": c_dim}


def _d_noise(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["d_noise"] == "none":
        return {"class_name": "training.d_noise.base.DNoise"}
    spec = {"class_name": "training.d_noise.pixel.PixelDiffusion", "ada_kimg": row["d_noise_kimg"],
            "t_distribution": row["t_dist"], "seed": row["seed"]}
    if row["d_noise"] == "feature":
        spec |= {"class_name": "training.d_noise.feature.FeatureDiffusion", "position": row["d_noise_at"]}
    if row["d_noise_target"] is not None:
        spec["target"] = row["d_noise_target"]
    return spec


def _loss(row: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    spec = {"class_name": LOSSES[row["discriminator"]], **_pick(row, "amp", "info_weight", "objective")}
    if row["discriminator"] == "fastgan":
        return {**spec, **_pick(row, "reconstruction")}
    if row["discriminator"] == "stylegan2":
        return {**spec, "batch": row["batch"], "r1_gamma": row["gamma"], "g_interval": G_INTERVAL,
                "d_interval": D_INTERVAL, **_pick(row, "pl_weight", "style_mixing", "ada_target", "ada_kimg")}
    return {**spec, **_pick(row, "consistency")}


def _optim(row: Mapping[str, Any]) -> dict[str, Any]:
    """Adam of G and D. The official Projected GAN scales D's rate by 16/17 for a regulariser that it doesn't have;
    that is left out. Where there is lazy regularisation, rates and betas make up for its extra steps."""
    result: dict[str, Any] = {"eps": 1e-8}
    for net, interval, regularised in (("g", G_INTERVAL, row["pl_weight"] > 0), ("d", D_INTERVAL, row["gamma"] != 0)):
        lr, betas = row[f"{net}lr"], list(row["betas"])
        if row["discriminator"] == "stylegan2" and regularised:
            lr, betas = lazy_adam(lr, betas, interval)
        result |= {f"{net}lr": lr, f"{net}_betas": betas}
    return result
