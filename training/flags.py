"""The flags of train.py that override keys of the preset table. Nothing heavy is imported here, for ``--help``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click


class Latent(click.ParamType):
    """``16`` → (16, 1, 1); ``16x8x8`` → (16, 8, 8)."""

    name = "C|CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if re.fullmatch(r"[1-9]\d*", str(value)):
            return (int(value), 1, 1)
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", str(value)):
            self.fail(f"{value}: give channels (16) or channels x height x width (16x8x8).", param, ctx)
        return tuple(int(part) for part in value.split("x"))


class NumberOr(click.ParamType):
    """A number, or one of some words, which may end in ``:…``."""

    def __init__(self, number: type, *words: str) -> None:
        self.number, self.words = number, words
        self.name = "|".join(["INT" if number is int else "FLOAT", *words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and re.fullmatch(rf"({'|'.join(self.words)})(:.*)?", value):
            return value
        try:
            return self.number(value)
        except ValueError:
            self.fail(f"{value}: give a number or {' or '.join(self.words)}.", param, ctx)


class Share(click.ParamType):
    """``10%`` or ``0.1`` → 0.1."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value}: give a share such as 10% or 0.1.", param, ctx)


def choice(*values: str) -> click.Choice:
    """Short for `click.Choice`."""
    return click.Choice(list(values))


CONDITION = [
    click.option("--cond", type=bool, metavar="BOOL", help="Train with the labels of the data set"),
    click.option("--sigma", type=NumberOr(float, "auto", "uniform"),
                 help="DIC-GAN: noise scale of h in [0, 1), auto[:PERPLEXITY] or uniform:MAX (one per sample)"),
    click.option("--encoder", type=choice("frozen", "head", "joint", "constant"), help="DIC-GAN: form of f"),
    click.option("--latent", type=Latent(), help="DIC-GAN: shape of f"),
    click.option("--target", type=choice("paired", "resampled"),
                 help="DIC-GAN: the real image for h is x_i, or drawn by Eq. 4"),
    click.option("--info-weight", type=float, help="Weight of the information term (instance conditioning)"),
    click.option("--features", metavar="NAME", help="Frozen network that instances and clusters are features of"),
    click.option("--feature-weights", metavar="FILE", help="Its weights, for networks that no package brings"),
    click.option("--neighbors", type=click.IntRange(min=1), help="IC-GAN: nearest neighbours of an instance"),
    click.option("--clusters", type=click.IntRange(min=2), help="Logo-GAN, Self-Conditioned GAN: number of clusters"),
    click.option("--recluster", type=float, help="Self-Conditioned GAN: thousands of images between clusterings"),
]
NETWORKS = [
    click.option("--generator", type=choice("fastgan", "fastgan_lite", "stylegan2"), help="Network of G"),
    click.option("--ngf", type=click.IntRange(min=1), help="FastGAN: channels of G at 128 px"),
    click.option("--cbase", type=click.IntRange(min=1), help="StyleGAN2: channels times resolution"),
    click.option("--cmax", type=click.IntRange(min=1), help="StyleGAN2: most channels"),
    click.option("--map-depth", type=click.IntRange(min=1), help="StyleGAN2: layers of the mapping network"),
    click.option("--freeze-d", type=click.IntRange(min=0), help="Blocks of D, from the image on, that aren't trained"),
    click.option("--diffaug", metavar="POLICY", help="Augmentation in front of D: of color,translation,cutout"),
]
NOISE = [
    click.option("--d-noise", type=choice("none", "feature", "pixel"), help="Diffusion in front of D (Diffusion-GAN)"),
    click.option("--d-noise-at", type=choice("first", "last"), help="On backbone maps or on projected ones"),
    click.option("--d-noise-target", type=float, help="Mean sign of D's real logits that the noise follows"),
    click.option("--t-dist", type=choice("priority", "uniform"), help="Distribution of diffusion times"),
]
OBJECTIVE = [
    click.option("--objective", type=choice("hinge", "nonsaturating", "wasserstein"), help="Adversarial loss"),
    click.option("--consistency", type=float, help="Weight of the consistency of D under DiffAug"),
    click.option("--gamma", type=float, help="StyleGAN2-ADA: weight of R1"),
    click.option("--pl-weight", type=float, help="StyleGAN2-ADA: weight of the path length"),
    click.option("--ada-target", type=float, help="StyleGAN2-ADA: mean sign of D's real logits that p follows"),
    click.option("--glr", type=float, help="Learning rate of G"),
    click.option("--dlr", type=float, help="Learning rate of D"),
    click.option("--amp", type=choice("off", "bf16", "fp16"), help="Mixed precision"),
    click.option("--compile", type=bool, metavar="BOOL", help="FastGAN: compile G's up-blocks; takes minutes once"),
]
RUN = [
    click.option("--mirror", type=bool, metavar="BOOL", help="Add x-flipped images"),
    click.option("--max-images", type=click.IntRange(min=1), help="Use at most this many images"),
    click.option("--holdout", type=float, help="Share of the images that never trains, near duplicates kept together"),
    click.option("--batch", type=int, help="Images per step"),
    click.option("--batch-gpu", type=NumberOr(int, "auto"), help="Images per pass; auto fits the free memory"),
    click.option("--kimg", type=float, help="Length of the run in thousands of images"),
    click.option("--minutes", type=float, help="Length of the run in minutes of training"),
    click.option("--tick", type=float, help="Thousands of images between two lines of stats.jsonl"),
    click.option("--snap", type=int, help="Ticks between two snapshots"),
    click.option("--snap-minutes", type=float, help="Minutes until a snapshot is due in any case"),
    click.option("--keep", type=int, help="Newest snapshots that are kept; 0 = all"),
    click.option("--metrics", metavar="NAMES", help="Comma-separated metrics at every snapshot, or none"),
    click.option("--metrics-budget", type=Share(), help="Most of the time that metrics may take, such as 10%"),
    click.option("--patience", type=int, help="End after so many evaluations without a better first metric; 0 = never"),
    click.option("--seed", type=int, help="Random seed"),
    click.option("--workers", type=NumberOr(int, "auto"),
                 help="Loader processes; auto: 0 if images are cached or the run has one core, else 1 on the CPU, and "
                      "beside a GPU the cores of the process less one, at most 8"),
    click.option("--cache-images", type=choice("auto", "on", "off"),
                 help="Decoded images stay in memory; auto: if they take a quarter of what is free at most"),
    click.option("--on-nan", type=choice("stop", "rollback"),
                 help="A loss or gradient that isn't finite ends the run, or takes it back to the newest snapshot"),
    click.option("--nan-retries", type=click.IntRange(min=1), help="Most rollbacks of a run"),
]


def preset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds every flag that overrides a key of the preset table; unset ones are None."""
    for option in reversed([*CONDITION, *NETWORKS, *NOISE, *OBJECTIVE, *RUN]):
        command = option(command)
    return command
