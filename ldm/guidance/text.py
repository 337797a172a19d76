"""Classes by name: the ImageNet classifier inside the guiding network says what an image shows."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence

import torch

from dnnlib import UserError
from ldm.guidance.perceptual import fitted, guiding_network

LEAST_SIDE = 128  # the classifier has learned at 224 pixels
_SUGGESTIONS = 5


@functools.cache
def _names() -> dict[str, list[int]]:
    """Names of the 1000 ImageNet classes, as timm lists them, in small letters -> the classes that are called so."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names: dict[str, list[int]] = {}
    for index in range(info.num_classes()):
        for name in str(info.index_to_description(index)).split(","):
            numbers = names.setdefault(name.strip().lower(), [])
            if index not in numbers:
                numbers.append(index)
    return names


def _plain(name: str) -> str:
    """`name` without capitals, spaces and signs, so that "racecar" finds "race car"."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_classes(text: str) -> list[int]:
    """Numbers of the ImageNet classes called `text`, two where a name has two meanings ("crane").

    `UserError` with similar names where there is none.
    """
    plain: dict[str, list[int]] = {}
    for name, numbers in _names().items():
        plain.setdefault(_plain(name), []).extend(n for n in numbers if n not in plain.get(_plain(name), []))
    wanted = _plain(text)
    if wanted in plain:
        return sorted(plain[wanted])
    shown = {_plain(name): name for name in _names()}
    near = difflib.get_close_matches(wanted, shown, _SUGGESTIONS)
    parts = [key for key in shown if wanted and wanted in key and key not in near]
    found = ", ".join(shown[key] for key in [*near, *sorted(parts, key=len)][:_SUGGESTIONS])
    similar = f" (similar: {found})" if found else ""
    raise UserError(f"--text {text!r} is none of the 1000 ImageNet classes{similar}; choose one of those, or give "
                    "--clip-weights FILE for free text.")


class NamedClass:
    """−log of the probability that the classifier gives to the named classes together."""

    num_targets = 1

    def __init__(self, text: str) -> None:
        """text: name of an ImageNet class; `UserError` as `find_classes`."""
        self.classes = find_classes(text)

    def select(self, rows: Sequence[int]) -> NamedClass:
        """See `ldm.guidance.base.Task`."""
        return self

    def loss(self, img: torch.Tensor) -> torch.Tensor:
        """See `ldm.guidance.base.Task`."""
        return class_loss(guiding_network().logits(fitted(img, LEAST_SIDE)), self.classes)


def class_loss(logits: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """−log of the summed softmax of `classes`: logits ``[N, K]`` -> ``[N]``."""
    return logits.logsumexp(1) - logits[:, list(classes)].logsumexp(1)
