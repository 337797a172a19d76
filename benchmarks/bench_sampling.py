"""Sampling speed of our path against the plain form of the published generators (benchmarks/reference).

\b
Example:
  python benchmarks/bench_sampling.py --cfg fastgan,fastgan_lite --resolution 256 --batch 16

Both sides go from seeds to 8-bit images, in float32, with fresh weights of the same configuration; ours through the
sampler of gen_images.py. Otherwise as bench_train.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rounds import IMAGES, Row, run, timed, two_sided  # noqa: E402  (found from the project's root)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def our_sampler(config: dict[str, Any], device: torch.device) -> Callable[[range], torch.Tensor]:
    """Seeds to images uint8; instances come from random latents."""
    import torch

    from dnnlib import construct
    from training.sampling import Gan, Sampler

    G = construct(config["G"]).eval().requires_grad_(False).to(device)
    gan = Gan("", config, G, construct(config["conditioning"]), config["data"], "", {})
    references = None
    if gan.uses_latents:
        references = G.encoder.normalize(torch.randn(IMAGES, *G.encoder.latent_shape).to(device)).cpu()
    return Sampler(gan, references=references).batch


def plain_sampler(config: dict[str, Any], device: torch.device) -> Callable[[range], torch.Tensor]:
    """The same of the reference, with all random numbers of a batch from one generator."""
    import torch

    from benchmarks.reference.backbone import Backbone
    from benchmarks.reference.instance import diffuse
    from benchmarks.reference.step import build_generator

    spec = config["G"]
    G = build_generator(spec, Backbone()).eval().to(device)
    sigma = config["conditioning"].get("sigma", 0.0)

    @torch.no_grad()
    def sample(seeds: range) -> torch.Tensor:
        rng = torch.Generator(device).manual_seed(seeds[0])

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=rng, device=device)

        c = h = None
        if spec["c_parts"]:
            c = torch.nn.functional.normalize(normal(len(seeds), *spec["c_parts"].values()), dim=1)
        if spec["h_channels"]:
            shape = (len(seeds), *spec["encoder"]["latent_shape"])
            h = diffuse(normal(*shape), sigma, normal(*shape))
        z = normal(len(seeds), spec["z_dim"])
        img = G(z, c, h, sigma, lambda n, height, width: normal(n, 1, height, width))
        return (img * 127.5 + 128).clamp(0, 255).to(torch.uint8)

    return sample


def measure(side: str, config: dict[str, Any], seconds: float, device: str) -> Row:
    """Speed and peak memory in this process, as `timed`."""
    import torch

    from torch_utils.device import select_device

    torch.manual_seed(0)
    batch = config["run"]["batch"]
    sample = (our_sampler if side == "fast" else plain_sampler)(config, select_device(device))
    return timed(lambda: sample(range(batch)), seconds, batch, device)


@click.command(help=__doc__)
@two_sided(resolution="256", batch=16, seconds=10)
def main(**options: Any) -> None:
    run(__file__, measure, **options)


if __name__ == "__main__":
    main()
