"""What every objective is made of: adversarial functions, and the base class that the loop works with.

Losses return tensors; the loop owns scaling, backward and steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from torch_utils import exchange
from torch_utils.device import at_least_float32, autocast, sent
from torch_utils.loss_scale import LossScale
from training.conditioning.base import Batch, Condition, Conditioning
from training.d_noise.base import DNoise


@dataclass(frozen=True)
class Adversarial:
    """A two-player loss as three scalar functions of logits of any shape.

    Softplus and hinge are the published forms; ``wasserstein`` has no penalty of its own and relies on the spectral
    norms of the discriminator.
    """

    generator: Callable[[torch.Tensor], torch.Tensor]
    d_fake: Callable[[torch.Tensor], torch.Tensor]
    d_real: Callable[[torch.Tensor], torch.Tensor]


def _minus_mean(logits: torch.Tensor) -> torch.Tensor:
    return -logits.mean()


ADVERSARIAL: dict[str, Adversarial] = {
    # Lim and Ye 2017; Projected GAN, BigGAN.
    "hinge": Adversarial(_minus_mean, lambda fake: F.relu(1 + fake).mean(), lambda real: F.relu(1 - real).mean()),
    # Goodfellow et al. 2014, the form that doesn't saturate; StyleGAN2.
    "nonsaturating": Adversarial(lambda fake: F.softplus(-fake).mean(), lambda fake: F.softplus(fake).mean(),
                                 lambda real: F.softplus(-real).mean()),
    # Arjovsky et al. 2017.
    "wasserstein": Adversarial(_minus_mean, lambda fake: fake.mean(), _minus_mean),
}


@dataclass
class Terms:
    """One backward pass: the loss and what is logged of it (name → values)."""

    loss: torch.Tensor
    log: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Phase:
    """One optimizer step: which network it is for, and the backward passes that make its gradient."""

    name: str
    net: Literal["G", "D"]
    terms: Callable[[Batch, torch.Generator], list[Terms]]


class BatchNoise:
    """Noise maps for a training step's generator pass, drawn in order from one generator.

    They are most of the numbers that a step draws. A GPU draws its own, from a seed that the generator gives.
    """

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device
        if device.type == "cuda":
            seed = int(torch.randint(2**62, (), generator=generator))
            self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, n: int, height: int, width: int) -> torch.Tensor:
        """Standard normal [n, 1, height, width]."""
        drawn = torch.randn(n, 1, height, width, generator=self.generator, device=self.generator.device)
        return sent(drawn, self.device)


class Objective:
    """Base of all objectives: passes of G and D with their conditions, and the information term.

    amp          ``off``, ``bf16`` or ``fp16``, precision of the forward passes
    info_weight  weight of `information`; 0 = off
    objective    key of `ADVERSARIAL`
    """

    def __init__(self, G: Any, D: nn.Module, conditioning: Conditioning, d_noise: DNoise, *,
                 amp: str = "off", info_weight: float = 0.0, objective: str = "hinge") -> None:
        self.G, self.D, self.conditioning, self.d_noise = G, D, conditioning, d_noise
        self.amp, self.info_weight = amp, info_weight
        self.adversarial = ADVERSARIAL[objective]
        self.scales = {net: LossScale() for net in ("G", "D")} if amp == "fp16" else {}

    # What the loop asks for.

    def phases(self, step: int) -> list[Phase]:
        """The optimizer steps of iteration number `step`."""
        return [Phase("G", "G", lambda batch, rng: [self.generator_terms(batch, rng)]),
                Phase("D", "D", self.discriminator_terms)]

    def generator_terms(self, batch: Batch, rng: torch.Generator) -> Terms:
        """The loss of G and f: they get gradient through h as G sees it, never as D sees it (Eq. 5)."""
        condition = self.conditioning.fake_condition(batch, self.G, rng)
        fake = self.fake(condition, self.draw_z(batch, rng), rng)
        loss = self.adversarial.generator(self.judge(fake, condition.detach(), rng))
        log = {"Loss/G/loss": loss.detach()}
        return Terms(self.add_information(loss, fake, condition, log), log)

    def discriminator_terms(self, batch: Batch, rng: torch.Generator) -> list[Terms]:
        """The losses of D on fakes and on reals, each with its own backward pass."""
        raise AssertionError("an objective says what D minimises")

    def after_step(self, batch: int) -> dict[str, float]:
        """Adaptation after an iteration of `batch` images; what is to be logged of it."""
        return self.d_noise.after_step(batch)

    def state_dict(self) -> dict[str, Any]:
        """Plain data that belongs into a checkpoint."""
        return {f"scale_{net}": scale.state_dict() for net, scale in self.scales.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        assert state.keys() == self.state_dict().keys(), "the state of another objective"
        for net, scale in self.scales.items():
            scale.load_state_dict(state[f"scale_{net}"])

    # Passes.

    def draw_z(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        """z [N, z_dim] for a batch."""
        return sent(torch.randn(len(batch.img), self.G.z_dim, generator=rng), batch.img.device)

    def fake(self, condition: Condition, z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """G(z, c, h): images [N, C, H, W]."""
        with autocast(z.device, self.amp):
            return self.G(z, c=condition.c, h=condition.h, sigma=condition.sigma, noise=BatchNoise(rng, z.device))

    def judge(self, img: torch.Tensor, condition: Condition, rng: torch.Generator) -> torch.Tensor:
        """D's logits [N, L], in float32 at least."""
        with autocast(img.device, self.amp):
            logits = self.D(img, c=condition.c, h=condition.h, generator=rng, d_noise=self.d_noise)
        return at_least_float32(logits)

    def observe(self, logits: torch.Tensor) -> None:
        """Shows D's logits [N, L] on reals, those of all processes, to what adapts to them."""
        self.d_noise.observe(exchange.gather_rows(logits))

    @torch.no_grad()
    def conditions_and_fake(self, batch: Batch, rng: torch.Generator) -> tuple[Condition, Condition, torch.Tensor]:
        """For a step of D: what it is told of the reals and of the fakes, and the fakes; none with a graph."""
        condition = self.conditioning.condition(batch, self.G, rng)
        fake_condition = condition
        if self.conditioning.draws_fakes:
            fake_condition = self.conditioning.fake_condition(batch, self.G, rng)
        return condition, fake_condition, self.fake(fake_condition, self.draw_z(batch, rng), rng)

    def add_information(self, loss: torch.Tensor, fake: torch.Tensor, condition: Condition,
                        log: dict[str, torch.Tensor]) -> torch.Tensor:
        """`loss` plus the weighted information term, if there is one."""
        if not self.info_weight:
            return loss
        info = self.information(fake, condition)
        log["Loss/G/information"] = info.detach()
        return loss + self.info_weight * info

    def information(self, fake: torch.Tensor, condition: Condition) -> torch.Tensor:
        """1 − cosine between f(G(z, h)) and sg(f(x_i)): G is paid for saying what its instance says. Scalar."""
        assert condition.f is not None
        encoder = self.G.encoder
        trained = [p for p in encoder.parameters() if p.requires_grad]
        encoder.eval()  # running statistics of f follow real images only
        for parameter in trained:  # G is paid, f isn't: it would learn to say the same of everything
            parameter.requires_grad_(False)
        with autocast(fake.device, self.amp):
            seen = encoder(fake)
        for parameter in trained:
            parameter.requires_grad_(True)
        encoder.train()
        return 1 - F.cosine_similarity(at_least_float32(seen).flatten(1), condition.f.detach().flatten(1)).mean()


def scores(kind: str, loss: torch.Tensor, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is logged of D on ``fake`` or ``real`` images."""
    return {f"Loss/D/{kind}": loss.detach(), f"Loss/scores/{kind}": logits.detach().mean(1),
            f"Loss/signs/{kind}": logits.detach().sign().mean(1)}
