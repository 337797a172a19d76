"""Metric names as the official command line writes them, at any count, and this project's own beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dnnlib import UserError

FORMS = ("fid50k_full, kid50k_full (any count: fid2k_full, kid500_full), fid_full, kid_full (as many as there are "
         "real images), fid50k, kid50k (reals capped to the count, with the training's x-flips), the same for fidinf "
         "(FID extrapolated to infinitely many images), pr50k3_full and dc50k5_full (precision and recall, density and "
         "coverage with 3 or 5 neighbours; pr500n3_full for 500 images, pr3_full for as many as there are reals), "
         "is50k (Inception Score), diversity2k, retrieval, ivom100 (error of inverted held-out images)")
HIGHER_IS_BETTER = ("pr", "dc", "is", "diversity")
_COUNT = r"(?P<number>[1-9]\d{0,6})(?P<thousands>k)?"
_PATTERN = re.compile(rf"(?P<kind>fidinf|fid|kid)(?:{_COUNT})?(?P<full>_full)?", re.ASCII)
_MANIFOLD = re.compile(r"(?P<kind>pr|dc)(?:(?P<number>[1-9]\d{0,6})(?:(?P<thousands>k)|n))?(?P<k>[1-9]\d?)"
                       r"(?P<full>_full)?", re.ASCII)
_ALONE = re.compile(rf"(?P<kind>is|diversity|ivom){_COUNT}", re.ASCII)
_REFUSED = {
    re.compile(r"ppl"): "perceptual path lengths are measured in VGG-16's LPIPS features, whose weights this project "
                        "doesn't have, and only for generators with a mapping network",
    re.compile(r"eq[tr]\d"): "equivariance to translation and rotation is a property of StyleGAN3's alias-free "
                             "generators; those of this project don't have it",
    re.compile(r"(swav|sfid|clip)"): "SwAV-FID and CLIP-FID are fid50k_full with --detector swav or clip and --weights",
    re.compile(r"lpips"): "VGG-16's LPIPS weights are not part of this project; diversity2k measures mean distances in "
                          "the detector's features",
}


@dataclass(frozen=True)
class Metric:
    """A parsed name.

    name        as given
    kind        ``fid``, ``fidinf``, ``kid``, ``pr``, ``dc``, ``is``, ``diversity``, ``retrieval`` or ``ivom``
    count       generated images, of ``ivom`` held-out ones; None = as many as there are to compare with
    full        against all reals without x-flips; otherwise at most `count` of reals and, if training had them, x-flips
    neighbours  k of ``pr`` and ``dc``
    """

    name: str
    kind: str
    count: int | None
    full: bool
    neighbours: int | None = None


def parse_metric(name: str) -> Metric:
    """The `Metric` of one name; `UserError` listing the forms if it is none, or saying why it isn't measured."""
    if name == "retrieval":
        return Metric(name, "retrieval", None, True)
    if match := _PATTERN.fullmatch(name):
        if match["number"] or match["full"]:
            return Metric(name, match["kind"], _count(name, match), bool(match["full"]))
    elif match := _MANIFOLD.fullmatch(name):
        if match["number"] or match["full"]:
            metric = Metric(name, match["kind"], _count(name, match), bool(match["full"]), int(match["k"]))
            if metric.count is not None and metric.count <= int(match["k"]):
                raise UserError(f"--metrics {name}: {match['k']} neighbours need more than {metric.count} images.")
            return metric
    elif match := _ALONE.fullmatch(name):
        metric = Metric(name, match["kind"], _count(name, match), True)
        if metric.kind == "is" and (metric.count or 0) < 10:
            raise UserError(f"--metrics {name}: the score is a mean over 10 parts; give a count of 10 or more.")
        return metric
    for pattern, reason in _REFUSED.items():
        if pattern.match(name):
            raise UserError(f"--metrics {name}: this version doesn't measure it: {reason}. It knows {FORMS}.")
    raise UserError(f"--metrics {name!r} is unknown; use {FORMS}.")


def _count(name: str, match: re.Match[str]) -> int | None:
    if match["number"] is None:
        return None
    count = int(match["number"]) * (1000 if match["thousands"] else 1)
    if count == 1:
        raise UserError(f"--metrics {name}: one image has no distribution; give a count of 2 or more.")
    return count


def parse_metrics(names: str | Sequence[str]) -> list[Metric]:
    """All names of a comma-separated text or a list, each once."""
    parts = names.split(",") if isinstance(names, str) else names
    unique = dict.fromkeys(part.strip() for part in parts)
    return [parse_metric(name) for name in unique]
