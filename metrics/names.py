"""Metric names: FID and KID at any count, as the official command line writes them, and ``retrieval``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dnnlib import UserError

FORMS = ("fid50k_full, kid50k_full (any count: fid2k_full, kid500_full), fid_full, kid_full (as many as there are "
         "real images), fid50k, kid50k (reals capped to the count, with the training's x-flips), retrieval")
_PATTERN = re.compile(r"(?P<kind>fid|kid)(?:(?P<number>[1-9]\d{0,6})(?P<thousands>k)?)?(?P<full>_full)?", re.ASCII)
_ELSEWHERE = re.compile(r"(pr\d+k\d|is\d+k|ppl2?\d*_|ppl|eqt\d+k|eqr\d+k|swav|sfid|clip|lpips|prdc)", re.ASCII)


@dataclass(frozen=True)
class Metric:
    """A parsed name.

    name   as given
    kind   ``fid``, ``kid`` or ``retrieval``
    count  generated images; None = as many as there are to compare with
    full   against all reals without x-flips; otherwise at most `count` of reals and, if training had them, x-flips
    """

    name: str
    kind: str
    count: int | None
    full: bool


def parse_metric(name: str) -> Metric:
    """The `Metric` of one name; `UserError` listing the forms if it is none."""
    if name == "retrieval":
        return Metric(name, "retrieval", None, True)
    match = _PATTERN.fullmatch(name)
    if match and (match["number"] or match["full"]):
        count = int(match["number"]) * (1000 if match["thousands"] else 1) if match["number"] else None
        if count == 1:
            raise UserError(f"--metrics {name}: one image has no distribution; give a count of 2 or more.")
        return Metric(name, match["kind"], count, bool(match["full"]))
    if _ELSEWHERE.match(name):
        raise UserError(f"--metrics {name}: this version doesn't measure it; it knows {FORMS}.")
    raise UserError(f"--metrics {name!r} is unknown; use {FORMS}.")


def parse_metrics(names: str | Sequence[str]) -> list[Metric]:
    """All names of a comma-separated text or a list, each once."""
    parts = names.split(",") if isinstance(names, str) else names
    unique = dict.fromkeys(part.strip() for part in parts)
    return [parse_metric(name) for name in unique]
