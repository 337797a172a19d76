"""Latent spaces of StyleGAN2 behind its mapping network: w, and the style space of Wu et al. (2021).

Latents are ``[N, D, 1, 1]``, as instance latents are. ``w``: one style vector for all layers. ``s``: what the layers'
affine maps make of w, one after another in the order of synthesis.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dnnlib import UserError
from torch_utils.rng import generator
from training.conditioning.base import one_hot
from training.sampling import Decode, Gan

SPACES = ("w", "s")


def check_space(gan: Gan, space: str) -> None:
    """`UserError` unless `gan` has this space and nothing else that it would have to be told of an image."""
    assert space in SPACES, space
    if not gan.G.has_mapping:
        raise UserError(f"--space {space}: {gan.path} has no mapping network; w and s are spaces of StyleGAN2.")
    if gan.uses_latents:
        raise UserError(f"--space {space}: {gan.path} is told of an instance besides w; use --space f.")


def affines(G: nn.Module) -> list[nn.Module]:
    """The affine maps of w to styles, in the order in which synthesis calls them."""
    layers: list[nn.Module] = []
    for block in G.blocks.values():  # type: ignore[operator, union-attr]
        layers += [layer.affine for layer in (block.conv0, block.conv1, block.to_rgb) if layer is not None]
    return layers


def space_width(gan: Gan, space: str) -> int:
    """D."""
    widths = [layer.weight.shape[0] for layer in affines(gan.G)]  # type: ignore[union-attr, index]
    return gan.G.w_dim if space == "w" else sum(widths)  # type: ignore[arg-type]


def styles_of(G: nn.Module, w: torch.Tensor) -> torch.Tensor:
    """Style space ``[N, D]`` of ``w [N, w_dim]``."""
    return torch.cat([layer(w) for layer in affines(G)], dim=1)


@contextlib.contextmanager
def _told_styles(G: nn.Module, styles: torch.Tensor) -> Iterator[None]:
    """Within this, the affine maps of G give `styles` ``[N, D]``, whatever they are asked."""
    layers = affines(G)
    parts = styles.split([layer.weight.shape[0] for layer in layers], dim=1)  # type: ignore[union-attr, index, misc]
    handles = [layer.register_forward_hook(lambda module, args, output, part=part: part)  # type: ignore[misc]
               for layer, part in zip(layers, parts, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decoder(gan: Gan, space: str) -> Decode:
    """Latents ``[N, D, 1, 1]`` of `space` to images; builds a graph if gradients are on. `UserError`: `check_space`."""
    check_space(gan, space)
    G = gan.G

    def from_w(latents: torch.Tensor, noise: Any) -> torch.Tensor:
        return G.synthesize(latents.flatten(1)[:, None].repeat(1, G.num_ws, 1), noise=noise)

    def from_s(latents: torch.Tensor, noise: Any) -> torch.Tensor:
        with _told_styles(G, latents.flatten(1)):
            return G.synthesize(latents.new_zeros(len(latents), G.num_ws, G.w_dim), noise=noise)

    return from_w if space == "w" else from_s


@torch.no_grad()
def draw_latents(gan: Gan, space: str, labels: Sequence[int] | None, count: int, seed: int,
                 batch_size: int = 1024) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`count` latents ``[count, D, 1, 1]`` on the CPU as the mapping network makes them of random z; their classes.

    labels: classes to draw from, for class-conditional networks. `UserError`: `check_space`.
    """
    check_space(gan, space)
    G, rng = gan.G, generator(seed, "mapping samples")
    rows, classes = [], []
    for start in range(0, count, batch_size):
        n = min(batch_size, count - start)
        z, c = torch.randn(n, G.z_dim, generator=rng), None
        if labels is not None:
            classes.append(torch.tensor(labels)[torch.randint(len(labels), (n,), generator=rng)])
            c = one_hot(classes[-1], gan.conditioning.classes)
        w = G.mapping(z.to(gan.device), None if c is None else c.to(gan.device))
        rows.append((w if space == "w" else styles_of(G, w)).float().cpu())
    return torch.cat(rows)[:, :, None, None], torch.cat(classes) if classes else None
