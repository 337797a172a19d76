"""Costly layers of the generators by torch's convolutions, by sums in torch's operations, and by sums in C kernels.

\b
Examples:
  python benchmarks/bench_layers.py
  python benchmarks/bench_layers.py --threads 1 --repeats 9 --layer up

Milliseconds of a forward pass + a backward pass (inputs and weights), the least of some repeats in turns, float32, maps
with the channels last. `up`: nearest ×2 and a 3×3 convolution, torch's form being a transposed convolution of 4×4 and
stride 2. `conv`: a 3×3 convolution. `gate`: noise, batch norm and gated linear unit. Of StyleGAN2, `transposed`: the
convolution of enlarging layers, `styled`: demodulation, noise, bias and activation.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dnnlib.tuning import tune_process  # noqa: E402  (found from the project's root)

# Batch, input channels, side of the input, output channels.
UP = [(8, 2048, 4, 2048), (8, 1024, 8, 1024), (8, 512, 16, 512), (8, 256, 32, 512), (8, 256, 64, 256),
      (8, 128, 128, 128), (16, 256, 4, 256), (16, 128, 8, 128), (16, 64, 16, 64), (16, 32, 32, 64)]
CONV = [(8, 1024, 8, 2048), (8, 512, 16, 1024), (8, 256, 32, 512), (8, 256, 64, 512), (8, 128, 128, 256),
        (8, 64, 256, 128), (8, 512, 64, 512), (16, 64, 16, 128), (16, 32, 32, 64), (16, 32, 64, 64)]
GATE = [(8, 1024, 16, 512), (8, 512, 64, 256), (8, 256, 128, 128), (8, 128, 256, 64), (16, 64, 64, 32)]
TRANSPOSED = [(8, 512, 16, 512), (8, 512, 32, 512), (8, 512, 64, 256), (8, 256, 128, 128)]
STYLED = [(8, 512, 64, 512), (8, 256, 128, 256), (8, 128, 256, 128)]
SHAPES = {"up": UP, "conv": CONV, "gate": GATE, "transposed": TRANSPOSED, "styled": STYLED}
Shape = tuple[int, int, int, int]
Pass = Callable[[], object]
Way = tuple[str, Callable[..., "torch.Tensor"], bool]  # name, form, whether with kernels


def ways_of(layer: str, shape: Shape) -> tuple[list[Way], list[torch.Tensor]]:
    """All ways to make a layer, and their inputs."""
    import torch

    from pg_modules import styled_activation, transposed_conv, upsample_conv, winograd
    from pg_modules.conditional_norm import ConditionalNorm
    from pg_modules.layers import NoiseInjection

    n, channels, side, out = shape
    x = torch.randn(n, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    if layer == "gate":
        norm, noise, drawn = ConditionalNorm(channels), NoiseInjection(), torch.randn(n, 1, side, side)

        def gate(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return norm.gated(x, None, None, noise, lambda *size: drawn)

        return [("torch", gate, False), ("kernels", gate, True)], [x, *norm.parameters(), noise.weight]

    if layer == "styled":
        drawn, rest = torch.randn(n, 1, side, side), [torch.rand(n, channels), torch.ones(1), torch.zeros(channels)]

        def styled(form: Any, x: torch.Tensor, factors: torch.Tensor, weight: torch.Tensor,
                   bias: torch.Tensor) -> torch.Tensor:
            return form(x, factors, drawn, weight, bias, 256.0)

        return [("torch", functools.partial(styled, styled_activation.plain), False),
                ("kernels", functools.partial(styled, styled_activation.styled_activation), True)], [
                    x, *(tensor.requires_grad_() for tensor in rest)]
    if layer == "transposed":
        return [("torch", transposed_conv._plain, False), ("products", transposed_conv._Transposed.apply, False)], [
            x, torch.randn(out, channels, 3, 3, requires_grad=True)]

    def few(x: torch.Tensor, weight: torch.Tensor, kernels: bool) -> torch.Tensor:
        if layer == "conv":
            return winograd._Winograd.apply(x, weight)
        step = 1 if side**2 < upsample_conv.MANY_PIXELS[kernels] else 2
        return upsample_conv._FewerProducts.apply(x, weight, step)

    plain = winograd._plain if layer == "conv" else upsample_conv.transposed_form
    ways: list[Way] = [("torch", plain, False), ("sums", functools.partial(few, kernels=False), False),
                       ("kernels", functools.partial(few, kernels=True), True)]
    return ways, [x, torch.randn(out, channels, 3, 3, requires_grad=True)]


def passes(way: Way, inputs: list[torch.Tensor]) -> tuple[Pass, Pass]:
    """A forward pass, and a backward pass of all inputs."""
    import torch

    from pg_modules import kernels

    _, form, fast = way
    usable = kernels.usable

    def switched(work: Pass) -> Pass:
        def run() -> object:
            kernels.usable = usable if fast else lambda x: False
            try:
                return work()
            finally:
                kernels.usable = usable
        return run

    y: Any = switched(lambda: form(*inputs))()
    target = torch.randn_like(y)
    return (switched(lambda: form(*inputs).detach()),
            switched(lambda: torch.autograd.grad(y, inputs, target, retain_graph=True)))


def least(works: Sequence[Pass], repeats: int) -> list[float]:
    """The least milliseconds of each, in turns, after one that isn't counted."""
    best = [float("inf")] * len(works)
    for turn in range(repeats + 1):
        for place, work in enumerate(works):
            begun = time.perf_counter()
            work()
            if turn:
                best[place] = min(best[place], 1000 * (time.perf_counter() - begun))
    return best


@click.command(help=__doc__)
@click.option("--layer", type=click.Choice(list(SHAPES)), multiple=True, default=list(SHAPES), show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
def main(layer: tuple[str, ...], threads: int, repeats: int) -> None:
    tune_process()
    import torch

    from pg_modules import kernels

    torch.set_num_threads(threads)
    for name in layer:
        for shape in SHAPES[name]:
            ways, inputs = ways_of(name, shape)
            ways = [way for way in ways if not way[2] or not kernels.missing()]
            forward, backward = zip(*(passes(way, inputs) for way in ways), strict=True)
            times = zip(ways, least(forward, repeats), least(backward, repeats), strict=True)
            n, channels, side, out = shape
            click.echo(f"{name:10} {f'{n}, {channels}, {side}², {out}':18} "
                       + "  ".join(f"{way[0]} {one:6.1f} + {two:6.1f}" for way, one, two in times))


if __name__ == "__main__":
    main()
