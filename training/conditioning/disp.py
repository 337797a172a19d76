"""Instance-prior conditioning (DISP): G and D are told the feature of the real image itself."""

from __future__ import annotations

from typing import Any

import torch

from training.conditioning.base import Batch, Condition, Conditioning, join, one_hot


class InstancePrior(Conditioning):
    """c = C(x), the last features of a frozen network, beside the class if there is one (DISP, Eq. 1–3).

    G's conditional normalisation and D's projection embed it. When sampling, C(x) comes from reference images or from
    a prior over the training images' features (`training.priors`).
    """

    uses_latents = True

    def condition(self, batch: Batch, G: Any, generator: torch.Generator) -> Condition:
        return self._join(self.latents(batch, G), batch.labels)

    def _join(self, f: torch.Tensor, labels: torch.Tensor | None) -> Condition:
        label = None if labels is None else one_hot(labels, self.c_dim)
        return Condition(c=join(None if label is None else label.to(f), f.flatten(1)), f=f)

    def told(self, f: torch.Tensor | None, labels: torch.Tensor | None, sigma: float | None,
             eps: torch.Tensor | None) -> Condition:
        assert f is not None
        return self._join(f, labels)
