"""The objective of Projected GAN, of everything that conditions it, and of DIC-GAN (Eq. 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_utils.device import at_least_float32, autocast
from training.conditioning.base import Batch, Condition, Conditioning
from training.d_noise.base import DNoise
from training.objective import Objective, Terms, scores


class ProjectedGANLoss(Objective):
    """Losses of Projected GAN (facts of its ``training/loss.py``); with h they are Eq. 5 of DIC-GAN.

    Eq. 5 is written with logarithms; as in the code base that the draft builds on, the hinge form is the default:
    D: relu(1 − D(x_i, sg(h))) + relu(1 + D(G(z, h), sg(h))), G and f: −D(G(z, h), sg(h)).
    """

    def __init__(self, G: Any, D: nn.Module, conditioning: Conditioning, d_noise: DNoise, *,
                 amp: str = "off", info_weight: float = 0.0, objective: str = "hinge",
                 consistency: float = 0.0) -> None:
        """consistency: weight of the consistency term (`_consistency`); 0 = off. The rest as `Objective`."""
        super().__init__(G, D, conditioning, d_noise, amp=amp, info_weight=info_weight, objective=objective)
        self.consistency = consistency

    def discriminator_terms(self, batch: Batch, rng: torch.Generator) -> list[Terms]:
        condition, fake_condition, fake = self.conditions_and_fake(batch, rng)
        return [self._side("fake", fake, fake_condition, rng), self._side("real", batch.img, condition, rng)]

    def _side(self, kind: str, img: torch.Tensor, condition: Condition, rng: torch.Generator) -> Terms:
        """D's loss on fakes or on reals, with the consistency term where that is on."""
        logits = self.judge(img, condition, rng)
        loss = self.adversarial.d_real(logits) if kind == "real" else self.adversarial.d_fake(logits)
        if kind == "real":
            self.observe(logits)
        log = scores(kind, loss, logits)
        if self.consistency:
            term = self._consistency(img, logits, condition)
            log[f"Loss/D/consistency_{kind}"] = term.detach()
            loss = loss + self.consistency * term
        return Terms(loss, log)

    def _consistency(self, img: torch.Tensor, logits: torch.Tensor, condition: Condition) -> torch.Tensor:
        """‖D(T(x)) − D(x)‖² per logit: D should not notice the augmentation T (Zhang et al. 2020; as in DISP,
        on reals and fakes, with DiffAug as T)."""
        with autocast(img.device, self.amp):
            plain = self.D(img, c=condition.c, h=condition.h, augment=False)
        return (logits - at_least_float32(plain)).square().mean()
