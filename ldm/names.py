"""Names that flags offer, for ``--help`` without heavy imports."""

from __future__ import annotations

SPACINGS = ("uniform", "quadratic")
SAMPLERS = ("ddim", "dpm2m", "pc", "gaussian")
SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("gaussian", "epsilon", "v")
WHITENINGS = ("auto", "full", "channel", "diagonal", "scalar")
