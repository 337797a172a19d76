"""Studies of references (``--vary``): along a row one thing changes, and all else stays.

The draft (section 3.2) names two controls, sampling per cluster (``z``: many z for one h) and cluster-wise (``h``: many
h for one image), and says that z matters more or less as σ does (``sigma``). ``path`` and the mixtures (``blocks``,
``channels``, ``space``) go from one reference to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dnnlib import UserError
from training.sampling import Gan, Sampler

STEPS, SIGMA_MAX = 7, 0.9  # where --steps and --sigma-max aren't given


@dataclass(frozen=True)
class Cell:
    """One image to be drawn.

    name of its file without ending; f [C, H, W]; reference: whose class it has; z, eps: seeds of z and ε;
    sigma: None = as the sampler says; other [C, H, W]: what all blocks but the first `own_blocks` are told in place
    of f, None where all are told f.
    """

    name: str
    f: torch.Tensor
    reference: int
    z: int
    eps: int
    sigma: float | None = None
    other: torch.Tensor | None = None
    own_blocks: int = 0


@dataclass(frozen=True)
class Row:
    """Cells that differ in one thing, and the references that stand in front (`first`) and at the end (`last`)."""

    label: str
    first: int
    last: int | None
    cells: list[Cell]


@dataclass(frozen=True)
class Study:
    """Rows with the headings of their cells."""

    columns: list[str]
    rows: list[Row]

    @property
    def cells(self) -> list[Cell]:
        """All cells, row by row."""
        return [cell for row in self.rows for cell in row.cells]


@dataclass(frozen=True)
class Mix:
    """A step from reference A to B: heading of the column, end of the file's name, and what `Cell` is told."""

    heading: str
    name: str
    f: torch.Tensor
    other: torch.Tensor | None = None
    own_blocks: int = 0


def make_study(vary: str, sampler: Sampler, seeds: Sequence[int], steps: int | None = None,
               sigma_max: float | None = None) -> Study:
    """The cells of ``--vary``. What stays the same in all of a picture has the first of `seeds`.

    steps, sigma_max: None = `STEPS`, `SIGMA_MAX`. Raises `UserError` where network, references and study don't fit.
    """
    _check(vary, sampler)
    if vary in ("z", "h"):
        return _over_seeds(vary, sampler, seeds)
    if vary == "sigma":
        count, end = steps or STEPS, sigma_max or SIGMA_MAX
        return _over_sigma(sampler, seeds, [end * k / (count - 1) for k in range(count)])
    return _over_pairs(vary, sampler, seeds, steps)


def _check(vary: str, sampler: Sampler) -> None:
    """Raises `UserError` for a study that shows nothing with this network and these references."""
    gan, references = sampler.gan, _references(sampler)
    if vary in ("h", "sigma") and gan.diffused is None:
        what = "has no noise scale σ" if vary == "sigma" else "adds no noise to an instance, so one image is one h"
        raise UserError(f"--vary {vary}: {gan.path} is no DIC-GAN and {what}; choose --vary z, path, blocks or "
                        "channels.")
    if vary == "h" and sampler.sigma == 0:
        raise UserError("--vary h: at σ = 0 one image has one h only; give --sigma above 0.")
    if vary in ("z", "h", "sigma"):
        return
    if len(references) < 2:
        raise UserError(f"--vary {vary} goes from one reference to the next and --ref holds one image only; give a "
                        "folder or zip of two or more.")
    if gan.conditioning.classes and sampler.class_idx is None:
        raise UserError(f"--vary {vary} mixes references, which may differ in class; say with --class 0 .. "
                        f"{gan.conditioning.classes - 1} what the mixtures are to be.")
    if vary == "space" and references.shape[3] == 1:
        raise UserError(f"--vary space: the latents of {gan.path} are {_shape(references)}, one column; choose --vary "
                        "channels, or train with --latent CxHxW.")


def _references(sampler: Sampler) -> torch.Tensor:
    assert isinstance(sampler.references, torch.Tensor), "--vary goes with --ref"
    return sampler.references


def _shape(f: torch.Tensor) -> str:
    return "x".join(map(str, f.shape[1:]))


# Which images make up a study.


def _over_seeds(vary: str, sampler: Sampler, seeds: Sequence[int]) -> Study:
    """A row per reference; its columns differ in z alone, or in ε alone."""
    rows = []
    for r, f in enumerate(_references(sampler)):
        pairs = [(seed, seeds[0]) if vary == "z" else (seeds[0], seed) for seed in seeds]
        rows.append(Row(f"ref {r}", r, None, [
            Cell(f"ref{r:03d}_z{z:04d}_eps{eps:04d}", f, r, z, eps) for z, eps in pairs]))
    return Study([f"{'z' if vary == 'z' else 'eps'} {seed}" for seed in seeds], rows)


def _over_sigma(sampler: Sampler, seeds: Sequence[int], sigmas: Sequence[float]) -> Study:
    """A row per reference and z, all of one ε, so that the rows of a column differ in z alone."""
    eps = seeds[0]
    rows = [Row(f"ref {r}, z {z}", r, None, [
        Cell(f"ref{r:03d}_z{z:04d}_eps{eps:04d}_sigma{sigma:.3f}", f, r, z, eps, sigma) for sigma in sigmas])
        for r, f in enumerate(_references(sampler)) for z in seeds]
    return Study([f"sigma {sigma:.2f}" for sigma in sigmas], rows)


def _over_pairs(vary: str, sampler: Sampler, seeds: Sequence[int], steps: int | None) -> Study:
    """A row per pair of consecutive references and seed, with the seed's z and ε all along it."""
    references = _references(sampler)
    rows: list[Row] = []
    headings: list[str] = []
    for a, b in zip(range(len(references)), range(1, len(references)), strict=False):
        mixes = _mixes(vary, sampler.gan, references[a], references[b], steps)
        headings = [mix.heading for mix in mixes]
        rows += [Row(f"ref {a} to {b}, seed {seed}", a, b, [
            Cell(f"ref{a:03d}-{b:03d}_seed{seed:04d}_{mix.name}", mix.f, a, seed, seed, None, mix.other, mix.own_blocks)
            for mix in mixes]) for seed in seeds]
    return Study(headings, rows)


def _mixes(vary: str, gan: Gan, a: torch.Tensor, b: torch.Tensor, steps: int | None) -> list[Mix]:
    """From the latent a [C, H, W] to b; the first is all of a, the last all of b."""
    if vary == "path":
        times = [k / ((steps or STEPS) - 1) for k in range(steps or STEPS)]
        return [Mix(f"t {t:.2f}", f"t{t:.3f}", gan.G.encoder.normalize(slerp(a, b, t)[None])[0]) for t in times]
    if vary == "blocks":
        sides = list(gan.G.blocks)
        own = range(len(sides) - 1, -1, -1)
        return [Mix("all A", "A", a, b, len(sides)),
                *(Mix(f"B from {sides[k]}", f"B-from-{int(sides[k]):04d}", a, b, k) for k in own)]
    axis, what = (0, "channels") if vary == "channels" else (2, "columns")
    size = a.shape[axis]
    if steps is not None and steps > size + 1:
        raise UserError(f"--steps {steps}: the latents of {gan.path} have {size} {what} to exchange, so at most "
                        f"{size + 1} steps; give fewer.")
    count = min(steps or STEPS, size + 1)
    mixes = []
    for taken in [round(size * k / (count - 1)) for k in range(count)]:
        f = torch.cat([b.narrow(axis, 0, taken), a.narrow(axis, taken, size - taken)], dim=axis)
        mixes.append(Mix(f"B {taken}/{size}", f"B-{what}-{taken:0{len(str(size))}d}-of-{size}",
                         gan.G.encoder.normalize(f[None])[0]))
    return mixes


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Spherical interpolation from a to b, which have one shape and length (Shoemake 1985).

    Latents f lie on a sphere. Linear mixtures scaled back to it lie on the same path, but wider apart in the middle.
    """
    cosine = (a.flatten() @ b.flatten()) / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).acos()
    if angle.sin() < 1e-4:  # (nearly) one direction: the chord is the arc
        return torch.lerp(a, b, t)
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
