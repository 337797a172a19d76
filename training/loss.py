"""The adversarial objective. Losses return tensors; the loop owns scaling, backward and steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from pg_modules.fastgan import Generator
from torch_utils.device import autocast
from training.conditioning.base import Batch, Condition, Conditioning


class BatchNoise:
    """Noise maps for a training step's generator pass, drawn in order from one generator."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device

    def __call__(self, n: int, height: int, width: int) -> torch.Tensor:
        """Standard normal [n, 1, height, width]."""
        return torch.randn(n, 1, height, width, generator=self.generator).to(self.device)


@dataclass
class Terms:
    """One backward pass: the loss and what is logged of it (name → values)."""

    loss: torch.Tensor
    log: dict[str, torch.Tensor]


class ProjectedGANLoss:
    """Hinge losses of Projected GAN (facts of its ``training/loss.py``); with h they are Eq. 5 of DIC-GAN.

    Eq. 5 is written with logarithms; as in the code base that the draft builds on, the hinge form is used:
    D: relu(1 − D(x_i, sg(h))) + relu(1 + D(G(z, h), sg(h))), G and f: −D(G(z, h), sg(h)).
    """

    def __init__(self, G: Generator, D: nn.Module, conditioning: Conditioning, *,
                 amp: str = "off", info_weight: float = 0.0) -> None:
        """amp: ``off`` or ``bf16``, precision of the forward passes. info_weight: weight of `information`."""
        self.G, self.D, self.conditioning = G, D, conditioning
        self.amp, self.info_weight = amp, info_weight

    def _fake(self, condition: Condition, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return self.G(z, c=condition.c, h=condition.h, sigma=condition.sigma,
                      noise=BatchNoise(generator, z.device))

    def _z(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(len(batch.img), self.G.z_dim, generator=generator).to(batch.img.device)

    def generator_terms(self, batch: Batch, generator: torch.Generator) -> Terms:
        """The loss of G and f: they get gradient through h as G sees it, never as D sees it."""
        z = self._z(batch, generator)
        condition = self.conditioning.condition(batch, self.G, generator)
        with autocast(z.device, self.amp):
            fake = self._fake(condition, z, generator)
            told = condition.detach()
            logits = self.D(fake, c=told.c, h=told.h, generator=generator)
        loss = -logits.float().mean()
        log = {"Loss/G/loss": loss.detach()}
        if self.info_weight:
            info = self.information(fake, condition)
            log["Loss/G/information"] = info.detach()
            loss = loss + self.info_weight * info
        return Terms(loss, log)

    def information(self, fake: torch.Tensor, condition: Condition) -> torch.Tensor:
        """1 − cosine between f(G(z, h)) and sg(f(x_i)): G is paid for saying what h says. Scalar."""
        assert condition.f is not None
        self.G.encoder.eval()  # running statistics of f follow real images only
        with autocast(fake.device, self.amp):
            seen = self.G.encoder(fake)
        self.G.encoder.train()
        return 1 - F.cosine_similarity(seen.float().flatten(1), condition.f.detach().flatten(1)).mean()

    def discriminator_terms(self, batch: Batch, generator: torch.Generator) -> list[Terms]:
        """The losses of D on fakes and on reals, each with its own backward pass; both are told the same h."""
        z = self._z(batch, generator)
        with torch.no_grad():
            condition = self.conditioning.condition(batch, self.G, generator)
            with autocast(z.device, self.amp):
                fake = self._fake(condition, z, generator)
        with autocast(z.device, self.amp):
            fake_logits = self.D(fake, c=condition.c, h=condition.h, generator=generator).float()
        fake_loss = F.relu(1 + fake_logits).mean()
        with autocast(z.device, self.amp):
            real_logits = self.D(batch.img, c=condition.c, h=condition.h, generator=generator).float()
        real_loss = F.relu(1 - real_logits).mean()
        return [
            Terms(fake_loss, {"Loss/D/fake": fake_loss.detach(), "Loss/scores/fake": fake_logits.detach().mean(1),
                              "Loss/signs/fake": fake_logits.detach().sign().mean(1)}),
            Terms(real_loss, {"Loss/D/real": real_loss.detach(), "Loss/scores/real": real_logits.detach().mean(1),
                              "Loss/signs/real": real_logits.detach().sign().mean(1)}),
        ]
