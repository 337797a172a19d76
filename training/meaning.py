"""Which options go together: every combination without meaning is refused with the reason, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnnlib import UserError
from pg_modules.diffaug import parse_policy
from training.conditioning.dicgan import parse_sigma

# Option → (axis, values of that axis it belongs to, what these are called).
BELONGS: dict[str, tuple[str, tuple[str, ...], str]] = {
    **dict.fromkeys(("sigma", "encoder", "latent", "target"),
                    ("conditioning", ("dicgan",), "diffused-instance conditioning (--cfg dicgan)")),
    "neighbors": ("conditioning", ("icgan",), "IC-GAN (--cfg icgan)"),
    "clusters": ("conditioning", ("cluster", "selfcond"), "cluster conditioning (--cfg logogan or selfcond)"),
    "recluster": ("conditioning", ("selfcond",), "Self-Conditioned GAN (--cfg selfcond)"),
    "info_weight": ("conditioning", ("dicgan", "icgan", "disp"),
                    "instance conditioning (--cfg dicgan, icgan or disp)"),
    **dict.fromkeys(("features", "feature_weights"),
                    ("conditioning", ("dicgan", "icgan", "disp", "cluster", "selfcond"),
                     "methods that look at features of images (--cfg dicgan, icgan, disp, logogan or selfcond)")),
    "ngf": ("generator", ("fastgan", "fastgan_lite", "fastgan_original"), "FastGAN's channels"),
    "compile": ("generator", ("fastgan", "fastgan_lite", "fastgan_original"), "FastGAN's up-blocks"),
    "map_depth": ("generator", ("stylegan2",), "a mapping network, which FastGAN doesn't have"),
    **dict.fromkeys(("cbase", "cmax"),
                    ("generator", ("stylegan2",), "StyleGAN2's channels; FastGAN's are set by --ngf")),
    "d_noise_at": ("d_noise", ("feature",), "--d-noise feature"),
    **dict.fromkeys(("d_noise_target", "t_dist"), ("d_noise", ("feature", "pixel"), "--d-noise feature or pixel")),
    "consistency": ("discriminator", ("projected",), "the projected discriminator"),
    "diffaug": ("discriminator", ("projected", "fastgan"),
                "discriminators with DiffAug; StyleGAN2-ADA augments by itself"),
    **dict.fromkeys(("gamma", "pl_weight", "ada_target"), ("discriminator", ("stylegan2",), "--cfg stylegan2_ada")),
}
CHOICES = {
    "generator": ("fastgan", "fastgan_lite", "fastgan_original", "stylegan2"),
    "encoder": ("frozen", "head", "joint", "constant"),
    "d_noise": ("none", "feature", "pixel"),
    "d_noise_at": ("first", "last"),
    "t_dist": ("priority", "uniform"),
    "objective": ("hinge", "nonsaturating", "wasserstein"),
    "target": ("paired", "resampled"),
    "amp": ("off", "bf16", "fp16"),
}
# Generators that a discriminator's objective works with.
PARTNERS = {"projected": ("fastgan", "fastgan_lite", "stylegan2"), "fastgan": ("fastgan_original",),
            "stylegan2": ("stylegan2",)}


def flag(key: str) -> str:
    """The command-line flag of an option."""
    return "--" + key.replace("_", "-")


def check_meaning(cfg: str, row: dict[str, Any], given: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raises `UserError` for a row whose parts don't go together.

    row: the full row with overrides, corrected where a preset's own value loses its meaning; given: the overrides.
    """
    for key, choices in CHOICES.items():
        if row[key] is not None and row[key] not in choices:
            raise UserError(f"{flag(key)} {row[key]}: choose one of {', '.join(choices)}.")
    for key, (axis, values, what) in BELONGS.items():
        if key in given and row[axis] not in values:
            raise UserError(f"{flag(key)} belongs to {what}; --cfg {cfg} has none. Leave the flag out.")
    _check_networks(cfg, row)
    _check_labels(cfg, row, data)
    _check_instances(row, given, data)
    _check_noise_and_objective(row)
    _check_precision(row)
    try:
        parse_policy(row["diffaug"])
    except ValueError as error:
        raise UserError(f"--diffaug {row['diffaug']}: {error}.") from error
    _check_numbers(row)


def _check_networks(cfg: str, row: Mapping[str, Any]) -> None:
    partners = PARTNERS[row["discriminator"]]
    if row["generator"] not in partners:
        raise UserError(f"--generator {row['generator']}: the discriminator of --cfg {cfg} works with "
                        f"{' and '.join(partners)} only; use --cfg fastgan or fastgan_original as it fits.")


def _check_labels(cfg: str, row: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    if row["cond"] and row["conditioning"] in ("cluster", "selfcond"):
        raise UserError(f"--cond 1: in --cfg {cfg} the cluster is the label; leave --cond out, or use another --cfg.")
    if row["cond"] and not data["label_dim"]:
        raise UserError("--cond 1: the data set has no labels; make it with dataset_tool.py --labels folders "
                        "or leave --cond out.")
    if row["clusters"] is not None and not 2 <= row["clusters"] <= data["num_images"]:
        raise UserError(f"--clusters {row['clusters']}: must be from 2 to the number of images, {data['num_images']}.")


def _check_instances(row: dict[str, Any], given: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    if row["conditioning"] == "icgan" and not 1 <= (row["neighbors"] or 5) < data["num_images"]:
        raise UserError(f"--neighbors {row['neighbors'] or 5}: must be from 1 to one less than the number of images, "
                        f"{data['num_images']}.")
    if row["info_weight"] and row["encoder"] == "constant":
        if "info_weight" in given:
            raise UserError("--info-weight: a constant encoder holds no information to keep; leave it out.")
        row["info_weight"] = 0.0
    _check_perplexity(row, data)
    if row["target"] == "resampled":
        if row["encoder"] not in ("frozen", "constant"):
            raise UserError(f"--target resampled: Eq. 4 needs the latents of all images at every step, which --encoder "
                            f"{row['encoder']} changes; use --encoder frozen or --target paired.")
        if str(row["sigma"]).startswith("uniform"):
            raise UserError("--target resampled: Eq. 4 is for one sigma; use --target paired with --sigma uniform:MAX.")
    if row["encoder"] in ("frozen", "head"):
        channels, height, width = row["latent"]
        vectors = data["num_images"] * (2 if row["mirror"] else 1) * height * width
        if channels >= vectors:
            raise UserError(f"--latent {channels}: the data set has {vectors} features to whiten (flips included), too "
                            f"few for {channels} dimensions; use --latent {max(2, vectors // 4)} or more images.")
    if row["encoder"] in ("joint", "constant") and ("features" in given or "feature_weights" in given):
        raise UserError(f"--features: --encoder {row['encoder']} looks through no frozen network; leave it out.")


def _check_perplexity(row: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """No σ shares a cluster among more images than there are; a constant f shares it among all."""
    perplexity = parse_sigma(row["sigma"])[1] if row["conditioning"] == "dicgan" else None
    if perplexity is not None and not perplexity < data["num_images"]:
        raise UserError(f"--sigma {row['sigma']}: the perplexity must be below the number of images, "
                        f"{data['num_images']}.")


def _check_noise_and_objective(row: Mapping[str, Any]) -> None:
    if row["d_noise"] == "feature" and row["discriminator"] != "projected":
        raise UserError("--d-noise feature: only the projected discriminator has features of a frozen network to add "
                        "noise to; use --d-noise pixel.")
    if row["consistency"] and row["d_noise"] != "none":
        raise UserError("--consistency: D's answers differ by the noise of --d-noise already; use one of the two.")
    if row["consistency"] and not row["diffaug"]:
        raise UserError("--consistency compares plain and augmented images; it needs a --diffaug policy.")
    if row["objective"] == "wasserstein" and row["discriminator"] == "stylegan2":
        raise UserError("--objective wasserstein: StyleGAN2's discriminator has no spectral norms to bound it; use "
                        "nonsaturating or hinge.")


def _check_precision(row: Mapping[str, Any]) -> None:
    if row["amp"] == "fp16" and row["generator"] == "stylegan2":
        raise UserError("--amp fp16: sums in front of StyleGAN2's demodulation, and gradients of gradients, leave "
                        "float16's range; use --amp bf16 or off.")


def _check_numbers(row: Mapping[str, Any]) -> None:
    for key in ("glr", "dlr", "recluster", "d_noise_kimg", "ada_kimg", "map_depth", "cbase", "cmax"):
        if row[key] is not None and not row[key] > 0:
            raise UserError(f"{flag(key)} {row[key]}: must be above 0.")
    for key in ("info_weight", "consistency", "freeze_d", "gamma", "pl_weight", "reconstruction"):
        if row[key] is not None and not row[key] >= 0:  # nor NaN
            raise UserError(f"{flag(key)} {row[key]:g}: must not be negative.")
    for key in ("d_noise_target", "ada_target"):
        if row[key] is not None and not 0 <= row[key] < 1:
            raise UserError(f"{flag(key)} {row[key]:g}: give a mean sign of D's logits from 0 to 1, such as 0.6.")
