"""The objective of StyleGAN2-ADA: R1, path length, style mixing, adaptive augmentation (Karras et al. 2020a, 2020b)."""

from __future__ import annotations

import math
from typing import Any

import torch

from dnnlib import UserError
from pg_modules.ada import AdaptiveAugment
from torch_utils import exchange
from torch_utils.device import autocast, sent_like
from training.conditioning.base import Batch, Condition, Conditioning
from training.d_noise.base import DNoise
from training.loader import split
from training.objective import BatchNoise, Objective, Phase, Terms, scores

R1_GAMMA = 2e-4  # per pixel, over the batch: the official heuristic


class StyleGAN2ADALoss(Objective):
    """Non-saturating losses with lazy regularisation, and augmentation that follows the signs of D's real logits.

    amp, info_weight, objective  as `Objective`
    batch         images per iteration, for the default of r1_gamma
    r1_gamma      weight γ of R1; None = 0.0002 · pixels / batch; 0 = off
    pl_weight     weight of the path length penalty; 0 = off
    pl_decay      how fast the mean path length follows
    pl_batch_shrink  the path length penalty takes one of so many images
    style_mixing  probability that a batch's styles are mixed from two z
    g_interval, d_interval  the path length penalty and R1 are steps of their own every so many iterations, and weigh
                  so much more; see `training.objectives.lazy_adam`
    ada_target, ada_kimg, ada_max  as `AdaptiveAugment`

    `UserError` when path length or style mixing are asked of a generator without a mapping network. D has `img_size`
    and `augment` (an `AdaAugment`, or None for no augmentation).
    """

    def __init__(self, G: Any, D: Any, conditioning: Conditioning, d_noise: DNoise, *, batch: int,
                 amp: str = "off", info_weight: float = 0.0, objective: str = "nonsaturating",
                 r1_gamma: float | None = None, pl_weight: float = 2.0, pl_decay: float = 0.01,
                 pl_batch_shrink: int = 2, style_mixing: float = 0.9, g_interval: int = 4, d_interval: int = 16,
                 ada_target: float = 0.6, ada_kimg: float = 500, ada_max: float = 1.0) -> None:
        super().__init__(G, D, conditioning, d_noise, amp=amp, info_weight=info_weight, objective=objective)
        if not G.has_mapping and (pl_weight or style_mixing):
            raise UserError("The path length penalty (--pl-weight) and style mixing need a mapping network; "
                            "choose --cfg stylegan2_ada.")
        self.r1_gamma = R1_GAMMA * math.prod(D.img_size) / batch if r1_gamma is None else r1_gamma
        self.pl_weight, self.pl_decay, self.pl_batch_shrink = pl_weight, pl_decay, pl_batch_shrink
        self.style_mixing, self.g_interval, self.d_interval = style_mixing, g_interval, d_interval
        self.ada = None if D.augment is None else AdaptiveAugment(D.augment, ada_target, ada_kimg, ada_max)
        self.pl_mean = torch.zeros(())

    def phases(self, step: int) -> list[Phase]:
        phases = [Phase("G", "G", lambda batch, rng: [self.generator_terms(batch, rng)])]
        if self.pl_weight and step % self.g_interval == 0:
            phases.append(Phase("G_path_length", "G", lambda batch, rng: [self.path_length_terms(batch, rng)]))
        phases.append(Phase("D", "D", self.discriminator_terms))
        if self.r1_gamma and step % self.d_interval == 0:
            phases.append(Phase("D_r1", "D", lambda batch, rng: [self.r1_terms(batch, rng)]))
        return phases

    # Generator.

    def mixed_styles(self, condition: Condition, z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Styles [N, num_ws, w_dim]; with probability `style_mixing` those from a random layer on belong to a second z
        (Karras et al. 2019, section 3.1)."""
        ws = self.G.map(z, condition.c)
        mix = torch.rand((), generator=rng).item() < self.style_mixing
        start = int(torch.randint(1, ws.shape[1], (), generator=rng))
        if not mix:
            return ws
        other = self.G.map(sent_like(torch.randn(z.shape, generator=rng), z), condition.c)
        return torch.cat([ws[:, :start], other[:, start:]], dim=1)

    def render(self, ws: torch.Tensor, condition: Condition, z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Images [N, C, H, W] of styles; z is what ĥ is made with. To be called under autocast."""
        h_hat = self.G.modulate(condition.h, z, condition.sigma)
        return self.G.synthesize(ws, h_hat, BatchNoise(rng, z.device)).to(z.dtype)

    def fake(self, condition: Condition, z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        if not self.style_mixing:
            return super().fake(condition, z, rng)
        with autocast(z.device, self.amp):
            return self.render(self.mixed_styles(condition, z, rng), condition, z, rng)

    def path_length_terms(self, batch: Batch, rng: torch.Generator) -> Terms:
        """(‖Jᵀy‖ − a)² with y ~ N(0, I / pixels), J the derivative of the image by w (Karras et al. 2020b, Eq. 4).

        a follows the mean of the lengths; f isn't trained by this.
        """
        batch = split(batch, max(len(batch.img) // self.pl_batch_shrink, 1))[0]
        with torch.no_grad():
            condition = self.conditioning.fake_condition(batch, self.G, rng)
        z = self.draw_z(batch, rng)
        with autocast(z.device, self.amp):
            ws = self.mixed_styles(condition, z, rng)
            img = self.render(ws, condition, z, rng)
        direction = sent_like(torch.randn(img.shape, generator=rng), img) / math.sqrt(img.shape[2] * img.shape[3])
        lengths = path_lengths(img, ws, direction)
        mean = sent_like(self.pl_mean, lengths).lerp(exchange.mean(lengths.mean()), self.pl_decay)
        self.pl_mean = mean.detach()
        penalty = (lengths - mean).square()
        return Terms(penalty.mean() * (self.pl_weight * self.g_interval), {"Loss/pl_penalty": penalty.detach()})

    # Discriminator.

    def discriminator_terms(self, batch: Batch, rng: torch.Generator) -> list[Terms]:
        condition, fake_condition, fake = self.conditions_and_fake(batch, rng)
        fake_logits = self.judge(fake, fake_condition, rng)
        fake_loss = self.adversarial.d_fake(fake_logits)
        real_logits = self.judge(batch.img, condition, rng)
        real_loss = self.adversarial.d_real(real_logits)
        self.observe(real_logits)
        return [Terms(fake_loss, scores("fake", fake_loss, fake_logits)),
                Terms(real_loss, scores("real", real_loss, real_logits))]

    def r1_terms(self, batch: Batch, rng: torch.Generator) -> Terms:
        """γ / 2 · ‖∂D(x) / ∂x‖² at reals, through their augmentation (Mescheder et al. 2018, Eq. 9)."""
        with torch.no_grad():
            condition = self.conditioning.condition(batch, self.G, rng)
        img = batch.img.detach().requires_grad_(True)
        logits = self.judge(img, condition, rng)
        gradient, = torch.autograd.grad(logits.sum(), img, create_graph=True)
        penalty = gradient.square().sum(dim=(1, 2, 3))
        loss = penalty.mean() * (self.r1_gamma / 2 * self.d_interval)
        return Terms(loss, {"Loss/r1_penalty": penalty.detach()})

    def observe(self, logits: torch.Tensor) -> None:
        super().observe(logits)
        if self.ada is not None:
            self.ada.observe(exchange.gather_rows(logits))

    # State.

    def after_step(self, batch: int) -> dict[str, float]:
        values = super().after_step(batch)
        if self.ada is not None:
            values["ADA/p"] = self.ada.after_step(batch)
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"pl_mean": self.pl_mean.cpu(), "ada": None if self.ada is None else self.ada.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pl_mean = state["pl_mean"]
        if self.ada is not None:
            self.ada.load_state_dict(state["ada"])


def path_lengths(img: torch.Tensor, ws: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """‖Jᵀy‖ [N] of images made from ``ws [N, num_ws, w_dim]``, the root of the mean over layers; y is `direction`."""
    gradient, = torch.autograd.grad((img * direction).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
