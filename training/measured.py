"""What the loop is told of a snapshot by its metrics, and when they show a collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """Metrics of a snapshot: values by name, the first one so that lower is better, and what has to be said."""

    values: dict[str, float]
    loss: float
    warnings: list[str]


FALLING = ("recall", "coverage", "diversity")  # metrics that fall when a generator collapses


def collapses(values: dict[str, float], progress: dict[str, Any]) -> list[str]:
    """A line for every metric that has fallen to less than half of what it was at its best, ``progress["peaks"]``."""
    peaks, lines = progress["peaks"], []
    for name, value in values.items():
        if not any(word in name for word in FALLING) or name.endswith("_real"):
            continue
        peaks[name] = max(value, peaks.get(name, value))
        if value < peaks[name] / 2:
            lines.append(f"{name} has fallen from {peaks[name]:.3g} to {value:.3g}: the generator loses variety. "
                         f"The best snapshot so far is that of {progress['best_nimg']} images.")
    return lines
