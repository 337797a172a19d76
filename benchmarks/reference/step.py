"""One iteration of training, plainly: G's step, D's step on fakes and reals, the moving average (facts of the official
``training/loss.py`` and ``training/training_loop.py``; Eq. 5 for DIC-GAN)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference import fastgan, stylegan2
from benchmarks.reference.backbone import Backbone
from benchmarks.reference.discriminator import Discriminator
from benchmarks.reference.instance import Encoder, diffuse
from torch_utils.ema import ema_beta
from torch_utils.rng import generator


@dataclass
class Told:
    """What G and D are told: c ``[N, c_dim]``, h ``[N, C, H, W]``, and f in front of h's noise; or None."""

    c: torch.Tensor | None = None
    h: torch.Tensor | None = None
    f: torch.Tensor | None = None


def build_generator(spec: dict[str, Any], backbone: Backbone) -> nn.Module:
    """G of a resolved configuration."""
    def pick(*keys: str) -> dict[str, Any]:
        return {key: spec[key] for key in keys}

    if spec["class_name"] == "pg_modules.stylegan2.Generator":
        return stylegan2.Generator(**pick("z_dim", "w_dim", "img_resolution", "channel_base", "channel_max",
                                          "map_layers"))
    encoder = None
    if spec["h_channels"]:
        input_size = spec["encoder"]["input_size"] or max(spec["img_resolution"], 128)
        encoder = Encoder(backbone, spec["h_channels"], input_size)
    return fastgan.Generator(**pick("z_dim", "c_parts", "instance_dim", "h_channels", "img_resolution", "ngf", "lite"),
                             encoder=encoder)


def build_discriminator(spec: dict[str, Any], backbone: Backbone) -> Discriminator:
    """D of a resolved configuration."""
    return Discriminator(backbone, spec["c_parts"], spec["h_channels"],
                         spec["input_size"] or max(spec["img_resolution"], 224), spec["separable"], spec["width"],
                         augment=bool(spec["diffaug"]), cout=spec.get("cout", 64))


def build_trainer(config: dict[str, Any], device: torch.device | None = None) -> Trainer:
    """With fresh weights, drawn from torch's global random state; on the CPU unless a `device` is given."""
    backbone = Backbone().to(device)
    G, D = build_generator(config["G"], backbone), build_discriminator(config["D"], backbone)
    return Trainer(config, G.to(device), D.to(device))


class Trainer:
    """The loop's iteration for a resolved configuration of `training.resolve`.

    features  ``[M, D]`` of length 1, of the data set, which IC-GAN is conditioned on; to be set from outside
    log       of the last iteration: losses of G, of D on fakes and on reals, mean logits of fakes and of reals
    """

    def __init__(self, config: dict[str, Any], G: Any, D: Any) -> None:
        self.config, self.cur_nimg = config, 0
        self.G, self.D = G.train(), D.train()
        self.G_ema = copy.deepcopy(G).eval().requires_grad_(False)
        self.weights = {net: [p for p in net.parameters() if p.requires_grad] for net in (self.G, self.D)}
        optim = config["optim"]
        self.adam_G, self.adam_D = (
            torch.optim.Adam(self.weights[net], lr=optim[f"{key}lr"], betas=tuple(optim[f"{key}_betas"]),
                             eps=optim["eps"], foreach=False, fused=False)
            for net, key in ((self.G, "g"), (self.D, "d")))
        self.features = torch.empty(0)
        self.log: dict[str, float] = {}

    def told(self, img: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, rng: torch.Generator) -> Told:
        """Conditions of real images."""
        conditioning = self.config["conditioning"]
        if conditioning["class_name"].endswith("DiffusedInstance"):
            f = self.G.encoder(img)
            return Told(h=diffuse(f, conditioning["sigma"], self.normal(rng, *f.shape)), f=f)
        if conditioning["class_name"].endswith("InstanceNeighbors"):
            return Told(c=self.features[indices])
        return Told(c=F.one_hot(labels, conditioning["c_dim"]) if conditioning["c_dim"] else None)

    def told_of_fakes(self, img: torch.Tensor, labels: torch.Tensor, rng: torch.Generator) -> Told:
        """Conditions of fakes: those of reals, but for IC-GAN instances of their own."""
        indices = torch.arange(0)
        if len(self.features):
            indices = torch.randint(len(self.features), (len(img),), generator=rng)
        return self.told(img, labels, indices, rng)

    def normal(self, rng: torch.Generator, *shape: int) -> torch.Tensor:
        """Standard normal; on a GPU from its global generator, as in the official code."""
        device = next(self.G.parameters()).device
        return torch.randn(shape, generator=rng) if device.type == "cpu" else torch.randn(shape, device=device)

    def draw_z(self, count: int, rng: torch.Generator) -> torch.Tensor:
        """``[count, z_dim]``."""
        return self.normal(rng, count, self.G.z_dim)

    def fake(self, told: Told, count: int, rng: torch.Generator) -> torch.Tensor:
        """G's images ``[count, 3, H, W]``."""
        def noise(n: int, height: int, width: int) -> torch.Tensor:
            return self.normal(rng, n, 1, height, width)

        sigma = self.config["conditioning"].get("sigma", 0.0)
        return self.G(self.draw_z(count, rng), told.c, told.h, sigma, noise)

    def update(self, net: nn.Module, adam: torch.optim.Adam) -> None:
        """Gradients without infinities, one step of Adam."""
        for parameter in self.weights[net]:
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        adam.step()

    def train_only(self, net: nn.Module) -> None:
        """Gradients for the weights of `net`, for none else, from zero."""
        for other, weights in self.weights.items():
            for parameter in weights:
                parameter.requires_grad_(other is net)
                parameter.grad = None if other is net else parameter.grad

    def iteration(self, img: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> None:
        """A batch of reals ``[N, 3, H, W]`` in [-1, 1] with labels and, for IC-GAN, the instances that they belong to.

        G: −D(G(z)); D: relu(1 + D(G(z))), then relu(1 − D(x)).
        """
        seed, count = self.config["run"]["seed"], len(img)
        rng = generator(seed, "G", self.cur_nimg)
        self.train_only(self.G)
        told = self.told_of_fakes(img, labels, rng)
        fake = self.fake(told, count, rng)
        loss_G = -self.D(fake, told.c, told.h, rng).mean()
        self.log = {"G": loss_G.item()}
        if info_weight := self.config["loss"]["info_weight"]:
            assert told.f is not None
            alike = F.cosine_similarity(self.G.encoder(fake).flatten(1), told.f.flatten(1))
            loss_G = loss_G + info_weight * (1 - alike).mean()
        loss_G.backward()
        self.update(self.G, self.adam_G)

        rng = generator(seed, "D", self.cur_nimg)
        self.train_only(self.D)
        told = self.told(img, labels, indices, rng)
        told_fake = self.told_of_fakes(img, labels, rng) if len(self.features) else told
        with torch.no_grad():
            fake = self.fake(told_fake, count, rng)
        logits_fake = self.D(fake, told_fake.c, told_fake.h, rng)
        loss_fake = F.relu(1 + logits_fake).mean()
        loss_fake.backward()
        logits_real = self.D(img, told.c, told.h, rng)
        loss_real = F.relu(1 - logits_real).mean()
        loss_real.backward()
        self.log |= {"D_fake": loss_fake.item(), "D_real": loss_real.item(), "fake": logits_fake.mean().item(),
                     "real": logits_real.mean().item()}
        self.update(self.D, self.adam_D)
        self.average(count)

    @torch.no_grad()
    def average(self, count: int) -> None:
        """G_ema follows G."""
        self.cur_nimg += count
        run = self.config["run"]
        beta = ema_beta(count, self.cur_nimg, run["ema_kimg"], run["ema_rampup"])
        for average, parameter in zip(self.G_ema.parameters(), self.G.parameters(), strict=True):
            average.copy_(parameter.lerp(average, beta))
        for copied, buffer in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            copied.copy_(buffer)
