"""Does h say anything, and does G listen? Logged every tick over a fixed subset of the training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from pg_modules.backbones import load_backbone
from torch_utils.neighbors import retrieval_ranks
from torch_utils.rng import generator
from training.dataset import ImageDataset
from training.diffused_instance import posterior_perplexity
from training.loader import to_float
from training.sampling import Gan, Sampler, encode

SUBSET, QUERIES, SIDE = 256, 64, 128
JUDGE = "tf_efficientnet_lite2"


def mean_cosine(f: torch.Tensor) -> float:
    """Mean cosine between latents f [N, ...] of different images; 1 = they are all the same."""
    rows = F.normalize(f.flatten(1).double(), dim=1)
    n = len(rows)
    return ((rows.sum(0).square().sum() - n) / (n * (n - 1))).item()


def effective_rank(f: torch.Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues of the covariance of f [N, ...]; 0 if f is constant."""
    rows = f.flatten(1).double()
    values = torch.linalg.svdvals(rows - rows.mean(0)).square()
    if values.sum() < 1e-12 * rows.square().sum():
        return 0.0
    share = values / values.sum()
    return torch.exp(-torch.xlogy(share, share).sum()).item()


@torch.no_grad()
def judge_features(img_u8: torch.Tensor, device: torch.device) -> torch.Tensor:
    """EfficientNet-Lite2's pooled features [n, D], on the CPU, of uint8 [n, C, H, W]."""
    img = F.interpolate(to_float(img_u8.to(device)), size=(SIDE, SIDE), mode="bicubic", antialias=True)
    return load_backbone(JUDGE).to(device).pooled(img).float().cpu()


@dataclass
class Diagnostics:
    """The fixed subset and its features in EfficientNet-Lite2, None where D or f looks through that network itself."""

    dataset: ImageDataset
    indices: list[int]
    gallery: torch.Tensor | None
    device: torch.device

    @classmethod
    def create(cls, dataset: ImageDataset, seed: int, device: torch.device, networks: Sequence[str]) -> Diagnostics:
        """Takes up to 256 images (no flips) chosen by `seed`; networks: those that D and f look through."""
        order = torch.randperm(dataset.num_images, generator=generator(seed, "diagnostics"))
        indices = order[:SUBSET].tolist()
        self = cls(dataset, indices, None, device)
        if JUDGE in networks:
            return self
        images = [torch.stack([dataset[i][0] for i in indices[s:s + QUERIES]]) for s in range(0, len(indices), QUERIES)]
        self.gallery = torch.cat([judge_features(part, device) for part in images])
        return self

    def measure(self, gan: Gan, seed: int) -> dict[str, float]:
        """Posterior perplexity (DIC-GAN), mean cosine and effective rank of f, and the median retrieval rank of x_i."""
        f = encode(gan.G.encoder, self.dataset, self.indices, self.device)
        count = min(QUERIES, len(f))
        labels = gan.conditioning.labels_of(self.dataset)
        sampler = Sampler(gan, references=f, labels=None if labels is None else [labels[i] for i in self.indices])
        values = {}
        if sampler.sigma is not None:
            values["Latent/perplexity"] = posterior_perplexity(f, sampler.sigma, generator(seed, "perplexity"))
        values |= {"Latent/mean_cosine": mean_cosine(f), "Latent/effective_rank": effective_rank(f)}
        if self.gallery is not None:
            fakes = judge_features(torch.cat(list(sampler.images(range(count)))), self.device)
            values["Latent/retrieval_rank"] = retrieval_ranks(fakes, self.gallery, torch.arange(count)).median().item()
            values["Latent/retrieval_chance"] = (len(f) + 1) / 2
        return values


def collapse_warning(values: dict[str, float], encoder: str) -> str | None:
    """One line with the remedy if an f that can change has collapsed; None for a healthy f or the constant control."""
    if encoder.endswith(("ConstantEncoder", "FeatureEncoder")):
        return None
    if values["Latent/mean_cosine"] < 0.9 and values["Latent/effective_rank"] > 2:
        return None
    return (
        f"Warning: the latents have collapsed (mean cosine {values['Latent/mean_cosine']:.2f}, effective rank "
        f"{values['Latent/effective_rank']:.1f}): h says nothing about x_i. Use --encoder frozen, or --info-weight 10."
    )
