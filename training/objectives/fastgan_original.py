"""The objective of the original FastGAN: hinge with random margins, and reconstruction of reals (Liu et al. 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pg_modules.backbones import load_backbone
from pg_modules.resize import bilinear
from torch_utils.device import autocast, sent_like
from training.conditioning.base import Batch, Condition, Conditioning
from training.d_noise.base import DNoise
from training.objective import BatchNoise, Objective, Terms, scores

SLACK = 0.2  # margins are drawn from 1 − SLACK to 1
PERCEPTUAL_NET = "tf_efficientnet_lite0"
PERCEPTUAL_SIDE = 64


def perceptual_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distances [N] of images a and b [N, C, H, W] in [-1, 1], in the manner of LPIPS (Zhang et al. 2018).

    Features at four depths, each pixel's of length 1; squared differences, averaged over pixels, added over depths.
    The official code takes LPIPS itself: VGG features and learned channel weights, neither of which is at hand
    without a download; here it is EfficientNet-Lite0, unweighted. Images below 64 px are enlarged to it first.
    """
    net = load_backbone(PERCEPTUAL_NET)
    both = torch.cat([a, b])
    short = min(both.shape[2:])
    if short < PERCEPTUAL_SIDE:
        height, width = (side * PERCEPTUAL_SIDE // short for side in both.shape[2:])
        both = bilinear(both, (height, width))
    total = torch.zeros(len(a), device=a.device, dtype=a.dtype)
    for maps in net.features(both):
        first, second = F.normalize(maps.to(a.dtype), dim=1, eps=1e-5).chunk(2)
        total = total + (first - second).square().sum(dim=1).mean(dim=(1, 2))
    return total


class FastGANLoss(Objective):
    """Losses of FastGAN (Liu et al. 2021, section 3.2 and the official ``train.py``).

    D: E relu(m − D(x)) + E relu(m + D(G(z))) with margins m uniform in 0.8 … 1 for each logit, plus the perceptual
    distance of each of three decoders' outputs to its (augmented) real image; G: −E D(G(z)). G and D need a second,
    smaller image: ``G.pair`` and the argument ``small`` of D. A margin of m is a shift of the logit by 1 − m, which is
    how other adversarial functions than the hinge get it.
    """

    def __init__(self, G: Any, D: nn.Module, conditioning: Conditioning, d_noise: DNoise, *, amp: str = "off",
                 info_weight: float = 0.0, objective: str = "hinge", reconstruction: float = 1.0) -> None:
        """reconstruction: weight of the mean distance of the three decoders together. The rest as `Objective`.

        The official code adds the distances up over its batch of 8, against a mean over logits; LPIPS stays below 1,
        while two unrelated satellite tiles are 5.2 apart here, so that 1 is about the same weight.
        """
        super().__init__(G, D, conditioning, d_noise, amp=amp, info_weight=info_weight, objective=objective)
        self.reconstruction = reconstruction

    def generator_terms(self, batch: Batch, rng: torch.Generator) -> Terms:
        condition = self.conditioning.fake_condition(batch, self.G, rng)
        fake, small = self._pair(condition, self.draw_z(batch, rng), rng)
        loss = self.adversarial.generator(self._judge_pair(fake, small, condition.detach(), rng))
        log = {"Loss/G/loss": loss.detach()}
        return Terms(self.add_information(loss, fake, condition, log), log)

    def discriminator_terms(self, batch: Batch, rng: torch.Generator) -> list[Terms]:
        with torch.no_grad():
            condition = self.conditioning.condition(batch, self.G, rng)
            fake_condition = condition
            if self.conditioning.draws_fakes:
                fake_condition = self.conditioning.fake_condition(batch, self.G, rng)
            fake, small = self._pair(fake_condition, self.draw_z(batch, rng), rng)
        logits = self._judge_pair(fake, small, fake_condition, rng)
        loss = self.adversarial.d_fake(logits - self._slack(logits, rng))
        return [Terms(loss, scores("fake", loss, logits)), self._real_terms(batch.img, condition, rng)]

    def _real_terms(self, img: torch.Tensor, condition: Condition, rng: torch.Generator) -> Terms:
        with autocast(img.device, self.amp):
            logits, reconstructions = self.D.reconstruct(  # type: ignore[operator]
                img, c=condition.c, h=condition.h, generator=rng, d_noise=self.d_noise)
            distances = [perceptual_distance(made.to(target.dtype), target) for made, target in reconstructions]
        logits = logits.to(img.dtype)
        self.observe(logits)
        loss = self.adversarial.d_real(logits + self._slack(logits, rng))
        distance = torch.stack(distances).sum(dim=0).mean()
        log = {**scores("real", loss, logits), "Loss/D/reconstruction": distance.detach()}
        return Terms(loss + self.reconstruction * distance, log)

    def _slack(self, logits: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """1 − m for each logit."""
        return SLACK * sent_like(torch.rand(logits.shape, generator=rng), logits)

    def _pair(self, condition: Condition, z: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """G's two images."""
        with autocast(z.device, self.amp):
            return self.G.pair(z, c=condition.c, h=condition.h, sigma=condition.sigma,
                               noise=BatchNoise(rng, z.device))

    def _judge_pair(self, img: torch.Tensor, small: torch.Tensor, condition: Condition,
                    rng: torch.Generator) -> torch.Tensor:
        """D's logits [N, L] of G's two images."""
        with autocast(img.device, self.amp):
            logits = self.D(img, c=condition.c, h=condition.h, generator=rng, d_noise=self.d_noise, small=small)
        return logits.to(img.dtype)
