"""Free text through CLIP (Radford et al. 2021), where open_clip and a weights file are there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F

from dnnlib import UserError

DEFAULT_MODEL = "ViT-B-32"


def _open_clip() -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise UserError("--clip-weights needs open_clip; run: pip install open_clip_torch, or name an ImageNet class "
                        "without it.") from error
    return open_clip


class ClipText:
    """1 − cos(image embedding, text embedding), the loss of the work on test-time conditioning."""

    num_targets = 1

    def __init__(self, text: str, weights: str, model: str, device: torch.device) -> None:
        """weights: file of open_clip's `model`. `UserError` where the package, the file or the model isn't there."""
        open_clip = _open_clip()
        if not os.path.isfile(weights):
            raise UserError(f"--clip-weights {weights} does not exist; give the weights file of open_clip's {model}.")
        if model not in open_clip.list_models():
            raise UserError(f"--clip-model {model}: open_clip knows no such model; see open_clip.list_models().")
        try:
            net = open_clip.create_model(model, pretrained=weights, device=device)
        except (RuntimeError, OSError, ValueError, KeyError, AssertionError, AttributeError, TypeError, EOFError,
                pickle.UnpicklingError) as error:  # open_clip asserts shapes
            raise UserError(f"--clip-weights {weights} does not fit {model}; give the weights of that model, or name "
                            "theirs with --clip-model.") from error
        self.net: Any = net.eval().requires_grad_(False)
        visual = self.net.visual
        size = visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.mean, self.std = (torch.tensor(values, device=device).reshape(1, 3, 1, 1)
                               for values in (visual.image_mean, visual.image_std))
        with torch.no_grad():
            tokens = open_clip.get_tokenizer(model)([text]).to(device)
            self.embedding = F.normalize(self.net.encode_text(tokens), dim=1)

    def select(self, rows: Sequence[int]) -> ClipText:
        """See `ldm.guidance.base.Task`."""
        return self

    def loss(self, img: torch.Tensor) -> torch.Tensor:
        """See `ldm.guidance.base.Task`."""
        x = F.interpolate(img.expand(-1, 3, -1, -1), size=self.size, mode="bicubic", antialias=True)
        embedding = F.normalize(self.net.encode_image((x * 0.5 + 0.5 - self.mean) / self.std), dim=1)
        return 1 - (embedding * self.embedding).sum(1)
