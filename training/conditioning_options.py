"""The flags of condition.py, and what goes with what. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from dnnlib import UserError

PRIORS = ("none", "mean", "cluster", "diffusion", "guided")
OF_DIFFUSION = ("diffusion", "guided")
SPACES = ("h", "w", "s")
POSITIVE = click.FloatRange(min=0, min_open=True)

# Flags that are fields of `ldm.guide_run.Settings` → priors that use them.
BELONGS: dict[str, tuple[str, ...]] = {
    "iterations": ("none", "mean", "cluster", "diffusion"),
    "lr": ("none", "mean", "cluster", "diffusion"),
    "mean_weight": ("mean",),
    "cluster_weight": ("cluster",),
    "clusters": ("cluster",),
    "noise": ("diffusion",),
    "prior_updates": ("diffusion",),
    "steps": ("guided",),
    "inner": ("guided",),
    "guidance_scale": ("guided",),
}

_OPTIONS = [
    click.option("--network", required=True, metavar="PKL", help="Checkpoint of train.py"),
    click.option("--ldm", metavar="PKL", help="Latent diffusion model of ldm/train.py for this network and space"),
    click.option("--prior", "priors", multiple=True, metavar="NAMES",
                 help=f"{', '.join(PRIORS)}, a list of these, or all; may be repeated  [default: all]"),
    click.option("--space", type=click.Choice(SPACES),
                 help="Latents that are changed: h (instance), or w or styles of StyleGAN2  [default: h, else w]"),
    click.option("--outdir", required=True, metavar="DIR", help="Where to put images, curves and the table"),
    click.option("--samples", type=click.IntRange(min=2), default=16, show_default=True, help="Samples per prior"),
    click.option("--seed", type=click.IntRange(min=0, max=2**31 - 1), default=0, show_default=True,
                 help="Seed of the first sample, the next has one more"),
    click.option("--iterations", type=click.IntRange(min=1), help="Task updates of a sample  [default: 60]"),
    click.option("--lr", type=POSITIVE, help="Learning rate of Adam on whitened latents  [default: 0.1]"),
    click.option("--mean-weight", type=POSITIVE, help="mean: weight of the distance to it  [default: 0.1]"),
    click.option("--cluster-weight", type=POSITIVE, help="cluster: weight of the distance to the nearest centre  "
                 "[default: 0.1]"),
    click.option("--clusters", type=click.IntRange(min=1), help="cluster: centres found by k-means  [default: 64]"),
    click.option("--latents", type=click.IntRange(min=2), help="Latents drawn for these, and for means and variances "
                 "without --ldm  [default: 50000]"),
    click.option("--noise", type=click.FloatRange(0, 100, min_open=True, max_open=True),
                 help="diffusion: noise in percent from which each series of updates comes down  [default: 5]"),
    click.option("--prior-updates", type=click.IntRange(min=1), help="diffusion: updates by the model for each by the "
                 "task  [default: 10]"),
    click.option("--steps", type=click.IntRange(min=1), help="guided: steps of DDIM  [default: 30]"),
    click.option("--inner", type=click.IntRange(min=1), help="guided: task updates in each of them  [default: 2]"),
    click.option("--guidance-scale", type=click.FloatRange(min=0), help="guided: size of these at full noise; 0 is "
                 "plain DDIM  [default: 0.2]"),
    click.option("--frames", type=click.IntRange(min=0), default=8, show_default=True,
                 help="States on the way that are shown of each prior; 0 for none"),
    click.option("--class", "class_idx", type=int, help="Class of class-conditional networks"),
    click.option("--sigma", type=float, help="DIC-GAN: noise scale of h  [default: as trained]"),
    click.option("--data", metavar="ZIP|DIR", help="Training set, to measure against  [default: as the checkpoint "
                 "names it]"),
    click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Samples at a time"),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps"),
]


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the flags that all tasks share to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_priors(texts: Sequence[str]) -> list[str]:
    """Values of ``--prior``, in the order of `PRIORS` and each once; all where none is given."""
    names = {name.strip() for text in texts or ("all",) for name in text.split(",")}
    unknown = sorted(names - {*PRIORS, "all"})
    if unknown:
        raise UserError(f"--prior {unknown[0]}: choose {', '.join(PRIORS)} or all.")
    return [name for name in PRIORS if name in names or "all" in names]


def check_flags(priors: Sequence[str], flags: dict[str, Any]) -> None:
    """Refuses what the priors that were chosen would ignore, and priors that lack something."""
    for key, owners in BELONGS.items():
        if flags[key] is not None and not set(owners) & set(priors):
            raise UserError(f"--{key.replace('_', '-')} belongs to --prior {', '.join(owners)}; leave it out.")
    lacking = [name for name in priors if name in OF_DIFFUSION]
    if lacking and flags["ldm"] is None:
        rest = ",".join(name for name in PRIORS if name not in OF_DIFFUSION)
        raise UserError(f"--prior {', '.join(lacking)}: needs --ldm FILE, a model of ldm/train.py --network "
                        f"{flags['network']} (for StyleGAN2 with --space w or s); without one say "
                        f"--prior {rest}.")
    if flags["latents"] is not None and flags["ldm"] is not None and "cluster" not in priors:
        raise UserError("--latents are drawn for --prior cluster, or where there is no --ldm; leave it out.")
    if flags["frames"] == 1:
        raise UserError("--frames 1: a state on the way needs a start and an end; give 2 or more, or 0 for none.")
