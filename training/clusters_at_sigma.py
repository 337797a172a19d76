"""What a noise scale does: how many images share a cluster of DIC-GAN (Eq. 4), and how much its samples differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_utils.rng import generator
from training.control_images import at_sigma
from training.dataset import ImageDataset
from training.diagnostics import judge_features
from training.diffused_instance import diffuse, posterior_log_prob
from training.preparation import fit_and_sample
from training.sampling import Gan, Sampler, encode

ONE_IMAGE = 1.5  # posterior perplexity below which a cluster counts as one image's
LEAST_SIGMA = 1e-6  # in place of 0, for the limit of Eq. 4
REALS = 256  # training images that diversity is compared with


@dataclass(frozen=True)
class Overlap:
    """Clusters of the set at one σ, over one h per image.

    perplexity: exp of the mean entropy of p(x_i | h, σ) (Eq. 4), between 1 and the number of images; top: mean of the
    largest p(x_i | h, σ); one_image: share of h whose own posterior has a perplexity below `ONE_IMAGE`, so that one
    image has at least two thirds of the cluster (no distribution's largest share is below 1 / perplexity).
    """

    perplexity: float
    top: float
    one_image: float


def cluster_overlap(f: torch.Tensor, sigma: float, seed: int) -> Overlap:
    """`Overlap` of latents f [N, ...]; at the same seed its perplexity is the one by which ``auto:P`` chooses σ.

    At σ = 0 it is the limit: images with one and the same f share a cluster.
    """
    sigma = max(sigma, LEAST_SIGMA)
    eps = torch.randn(f.shape, generator=torch.Generator().manual_seed(seed))
    log_prob = posterior_log_prob(diffuse(f, sigma, eps), f, sigma)
    entropy = -(log_prob.exp() * log_prob).sum(1)
    return Overlap(entropy.mean().exp().item(), log_prob.amax(1).exp().mean().item(),
                   (entropy.exp() < ONE_IMAGE).double().mean().item())


def auto_sample(gan: Gan, dataset: ImageDataset) -> torch.Tensor:
    """Latents [N, ...] of the training images (unflipped, at most 2000) over which ``--sigma auto:P`` looks for σ."""
    count = dataset.num_images * (2 if gan.dataset["mirror"] else 1)
    _, plain = fit_and_sample(count, dataset.num_images, gan.config["run"]["seed"])
    return encode(gan.G.encoder, dataset, plain, gan.device)


def spread(features: torch.Tensor) -> tuple[float, float, float]:
    """Mean distances within each image's samples: of pairs that differ in z and ε, in z alone, and in ε alone.

    features [images, draws of z, draws of ε, D], with two draws or more of both.
    """
    z, eps = features.shape[1:3]
    number_z, number_eps = torch.arange(z).repeat_interleave(eps), torch.arange(eps).repeat(z)
    other_z = number_z[:, None] != number_z
    other_eps = number_eps[:, None] != number_eps
    rows = features.flatten(1, 2).double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return (distances[:, other_z & other_eps].mean().item(), distances[:, other_z & ~other_eps].mean().item(),
            distances[:, ~other_z & other_eps].mean().item())


class Diversity:
    """How far apart the samples of one image are, in Lite2 features, as a share of the distance of real images."""

    def __init__(self, gan: Gan, dataset: ImageDataset, images: int, draws: int, seed: int, batch_size: int) -> None:
        """images: training images x_i, chosen by `seed`; each is drawn with all pairs of `draws` z and `draws` ε.

        The same z and ε serve at every σ.
        """
        self.draws, self.batch_size = draws, batch_size
        order = torch.randperm(dataset.num_images, generator=generator(seed, "sigma study")).tolist()
        self.chosen = order[:images]
        labels = gan.conditioning.labels_of(dataset)
        self.sampler = Sampler(gan, references=encode(gan.G.encoder, dataset, self.chosen, gan.device),
                               labels=None if labels is None else [labels[i] for i in self.chosen],
                               noise_mode="const" if gan.G.has_mapping else "random")
        places = order[:REALS]
        reals = torch.cat([judge_features(torch.stack([dataset[i][0] for i in places[s:s + batch_size]]), gan.device)
                           for s in range(0, len(places), batch_size)])
        self.real_distance = torch.pdist(reals.double()).mean().item()
        first = seed * 1_000_000
        self.cells = [(i, first + i * draws + a, first + i * draws + b)
                      for i in range(len(self.chosen)) for a in range(draws) for b in range(draws)]

    def measure(self, sigma: float) -> tuple[float, float, float]:
        """`spread` at a noise scale, divided by the mean distance between real images."""
        sampler = at_sigma(self.sampler, sigma)
        parts = [self.cells[s:s + self.batch_size] for s in range(0, len(self.cells), self.batch_size)]
        features = torch.cat([judge_features(self._draw(sampler, part), sampler.gan.device) for part in parts])
        shaped = features.reshape(len(self.chosen), self.draws, self.draws, -1)
        both, z, eps = (value / self.real_distance for value in spread(shaped))
        return both, z, eps

    @staticmethod
    def _draw(sampler: Sampler, cells: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        images, z, eps = (list(column) for column in zip(*cells, strict=True))
        return sampler.draw(sampler.condition_latents(images), sampler._labels(images), z, eps)
