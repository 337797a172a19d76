"""``--compile``: FastGAN's up-blocks as kernels that torch.compile writes, for what lies between their convolutions."""

from __future__ import annotations

from typing import Any

import torch

from dnnlib import UserError
from pg_modules.batch_norm import BatchNorm2d
from pg_modules.conditional_norm import ConditionalNorm
from pg_modules.layers import SNConv3x3, SNUpConv2d

_VARIANTS = 128  # of one piece of code: by block, batch size, and whether weights want a gradient


def check_compile(generator: str, device: torch.device, processes: int) -> None:
    """`UserError` where nothing can be compiled: found out by compiling something small.

    generator: dotted name of G's class.
    """
    if generator != "pg_modules.fastgan.Generator":
        raise UserError("--compile is for FastGAN's up-blocks, which this run's generator doesn't have; leave it out.")
    if processes > 1:
        raise UserError("--compile: batch normalisation over several processes isn't compiled; use one process, or "
                        "leave --compile out.")
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # compilers fail in many ways, and none of them is ours
        raise UserError(f"--compile: torch.compile doesn't work here ({_reason(error)}); install a C++ compiler (g++) "
                        "and Python's header files, or leave --compile out.") from error


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def compile_parts(G: Any) -> None:
    """Compiles the up-blocks of a FastGAN generator in place, at their next pass; their names and weights stay."""
    torch._dynamo.config.recompile_limit = _VARIANTS  # the default of 8 would leave most blocks as they are
    for module in G.modules():  # sums and products of our own, in functions that can't be looked into
        if isinstance(module, SNUpConv2d | SNConv3x3):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
        if isinstance(module, BatchNorm2d):
            module.normalized_by_parts = torch.compiler.disable(module.normalized_by_parts)  # type: ignore[method-assign]
        if isinstance(module, ConditionalNorm):
            module.by_kernels = torch.compiler.disable(module.by_kernels)  # type: ignore[method-assign]
    for block in G.blocks.values():
        block.compile(dynamic=False)
