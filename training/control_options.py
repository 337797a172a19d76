"""The flags of gen_images.py that vary one thing about references. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import click

from dnnlib import UserError
from training.source_options import SourceFlags

STUDIES = ("z", "h", "sigma", "path", "blocks", "channels", "space")
STEPPED = ("sigma", "path", "channels", "space")  # studies whose columns are steps

_OPTIONS = [
    click.option("--vary", type=click.Choice(STUDIES), help="Studies of --ref, a row per reference or pair of them: "
                 "z for one h, h for one image, sigma, path between two references, or two of them mixed by "
                 "the generator's blocks, the channels or the space of f"),
    click.option("--steps", type=click.IntRange(min=2), help="Columns of --vary sigma, path, channels and space  "
                 "[default: 7]"),
    click.option("--sigma-max", type=float, help="Last column of --vary sigma  [default: 0.9]"),
    click.option("--nearest", is_flag=True, help="Show the nearest training image below each sample of --vary, and "
                 "list them in a JSON file beside the picture"),
]


@dataclass(frozen=True)
class ControlFlags:
    """Values of `control_options`; None = not given."""

    vary: str | None = None
    steps: int | None = None
    sigma_max: float | None = None
    nearest: bool = False

    @classmethod
    def take(cls, flags: dict[str, Any]) -> ControlFlags:
        """Removes these flags from `flags`."""
        return cls(**{field.name: flags.pop(field.name) for field in fields(cls)})

    def check(self, source: SourceFlags, ref_grid: str | None) -> None:
        """Raises `UserError` for flags that mean nothing together."""
        if self.vary is None:
            given = [flag for flag, value in (("--steps", self.steps), ("--sigma-max", self.sigma_max)) if value]
            given += ["--nearest"] if self.nearest else []
            if given:
                raise UserError(f"{', '.join(given)} belong to --vary; give --vary {'|'.join(STUDIES)} or leave them "
                                "out.")
            return
        if source.ref is None:
            raise UserError(f"--vary {self.vary} shows what can be controlled about references; give --ref IMAGES or "
                            "leave it out.")
        if ref_grid is not None:
            raise UserError("--ref-grid and --vary are two pictures of references; ask for them in two calls.")
        if self.steps is not None and self.vary not in STEPPED:
            columns = "block of the generator" if self.vary == "blocks" else "seed"
            raise UserError(f"--steps {self.steps}: --vary {self.vary} has one column per {columns}; leave it out.")
        if self.sigma_max is not None and self.vary != "sigma":
            raise UserError(f"--sigma-max belongs to --vary sigma, not to --vary {self.vary}; leave it out.")
        if self.sigma_max is not None and not 0 < self.sigma_max < 1:
            raise UserError(f"--sigma-max {self.sigma_max:g}: the noise scale must be above 0 and below 1, for example "
                            "0.9.")
        if source.sigma is not None and self.vary == "sigma":
            raise UserError(f"--sigma {source.sigma:g} fixes what --vary sigma varies; leave it out, or give "
                            "--sigma-max.")


def control_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the flags to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
