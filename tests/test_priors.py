"""Priors over the training images' latents: what they draw, that seeds alone decide, and their specs."""

from __future__ import annotations

import pytest
import torch

from dnnlib import UserError
from torch_utils.feature_store import FeatureStore
from training.priors import (
    FORMS,
    Gaussians,
    LatentPrior,
    Rows,
    Spec,
    Vicinal,
    default_components,
    fit,
    parse_instances,
    parse_prior,
    pick,
)
from training.tables import LatentTable

SHAPE = (3, 2, 2)


def clustered(count: int = 60, clusters: int = 4) -> LatentTable:
    """Latents in well-separated clusters of different sizes; row i belongs to cluster floor(sqrt(i)) mod `clusters`."""
    centres = 10 * torch.randn(clusters, 12)
    members = torch.arange(count).float().sqrt().long() % clusters
    rows = centres[members] + 0.1 * torch.randn(count, 12)
    return LatentTable(FeatureStore(rows.numpy()), SHAPE)


SPECS = [Spec("instances", 5), Spec("train"), Spec("vicinal"), Spec("vicinal", 0.5), Spec("gmm", 3), Spec("gmm"),
         Spec("kmeans", 4), Spec("kmeans")]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_seed_gives_its_latent_in_any_batch_and_after_reload(spec: Spec) -> None:
    prior = fit(spec, clustered(), None)
    seeds = [*range(40), 2**40]
    together = prior(seeds)
    assert together.shape == (41, *SHAPE)
    assert together.dtype == torch.float32
    assert torch.equal(torch.cat([prior([seed]) for seed in reversed(seeds)]), together.flip(0))
    assert len(together.unique(dim=0)) > 2
    again = FORMS[type(prior).__name__](**prior.state_dict())
    assert torch.equal(again(seeds), together)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fits_are_repeatable(spec: Spec) -> None:
    table = clustered()
    assert torch.equal(fit(spec, table, None)(range(8)), fit(spec, table, None)(range(8)))


def test_instances_are_training_images_of_every_cluster() -> None:
    table = clustered(clusters=5)
    labels = torch.arange(60)
    prior = fit(Spec("instances", 5), table, labels)
    assert isinstance(prior, Rows)
    assert prior.labels is not None
    assert torch.equal(prior.rows, table[prior.labels])  # labels are the images' numbers here
    assert {int(float(i) ** 0.5) % 5 for i in prior.labels} == set(range(5))
    drawn = prior(range(400))
    counts = torch.tensor([(drawn == row).flatten(1).all(1).sum() for row in prior.rows])
    assert counts.sum() == 400
    assert counts.min() > 40  # uniform: 80 each


def test_class_of_a_sample_is_that_of_its_image() -> None:
    """`Sampler` draws class ``labels[mix_seed(seed, "class") % len(labels)]``."""
    table = clustered()
    prior = fit(Spec("train"), table, torch.arange(60))
    assert prior.labels is not None
    for seed in (0, 7, 1000):
        assert torch.equal(prior([seed])[0], table[prior.labels[pick(seed, 60)][None]][0])


def test_vicinal_mixes_two_rows() -> None:
    rows = torch.eye(12).reshape(12, *SHAPE)
    table = LatentTable(FeatureStore(rows.flatten(1).numpy()), SHAPE)
    drawn = fit(Spec("vicinal"), table, None)(range(1000)).flatten(1)
    torch.testing.assert_close(drawn.sum(1), torch.ones(1000))
    shares = drawn.max(1).values
    assert ((drawn > 1e-6).sum(1) <= 2).all()
    pairs = (drawn > 1e-6).sum(1) == 2
    assert 0.85 < pairs.float().mean() < 0.98  # i = j once in twelve
    # The larger share of λ ~ Beta(2, 2) has mean 0.6875, that of Beta(0.1, 0.1) 0.94.
    assert abs(shares[pairs].mean() - 0.6875) < 0.02
    extreme = Vicinal(rows, 0.1)(range(1000)).flatten(1).max(1).values
    assert extreme.mean() > 0.9


def test_mixture_has_the_moments_of_the_set() -> None:
    table = clustered(200)
    prior = fit(Spec("gmm", 4), table, None)
    assert isinstance(prior, Gaussians)
    drawn = prior(range(4000)).flatten(1)
    rows = table.everything().flatten(1)
    assert (drawn.mean(0) - rows.mean(0)).abs().max() < 1
    # Every sample lies in a cluster, not between them.
    assert torch.cdist(drawn, rows).min(1).values.max() < 4


def test_kmeans_draws_centroids_by_their_counts() -> None:
    rows = torch.cat([torch.zeros(45, 12), torch.ones(15, 12)]) + 0.01 * torch.randn(60, 12)
    prior = fit(Spec("kmeans", 2), LatentTable(FeatureStore(rows.numpy()), SHAPE), None)
    assert isinstance(prior, Rows)
    assert prior.weights is not None
    assert sorted(prior.weights.tolist()) == [15, 45]
    drawn = prior(range(1000)).flatten(1).mean(1)
    assert abs((drawn > 0.5).float().mean() - 0.25) < 0.05
    torch.testing.assert_close(drawn.unique(), prior.rows.flatten(1).mean(1).sort().values)


def test_too_many_clusters() -> None:
    for spec, flag in ((Spec("instances", 61), "--instances 61"), (Spec("kmeans", 61), "--prior kmeans: 61"),
                       (Spec("gmm", 61), "--prior gmm:61")):
        with pytest.raises(UserError, match=f"{flag}.*60"):
            fit(spec, clustered(), None)


def test_default_components() -> None:
    assert [default_components(n) for n in (3, 100, 5000, 200_000)] == [1, 10, 500, 1000]
    prior = fit(Spec("kmeans"), clustered(), None)
    assert isinstance(prior, Rows)
    assert len(prior.rows) == 6


def test_specs() -> None:
    assert parse_instances("12") == Spec("instances", 12)
    assert parse_instances("12.pkl") is None
    assert parse_prior("vicinal:0.5") == Spec("vicinal", 0.5)
    assert [str(parse_prior(text)) for text in ("train", "gmm", "gmm:10", "kmeans:3", "vicinal:2")] == [
        "train", "gmm", "gmm:10", "kmeans:3", "vicinal:2"]
    assert parse_prior("prior.pkl") is None
    assert parse_prior("C:prior.pkl") is None
    for text in ("gmm:", "gmm:0", "gmm:1.5", "kmeans:-1", "kmeans:x", "vicinal:0", "vicinal:-1", "train:3", "gmm:1e3"):
        with pytest.raises(UserError, match=f"--prior {text}: choose train"):
            parse_prior(text)
    for text in ("0", "-3"):
        with pytest.raises(UserError, match=f"--instances {text}"):
            parse_instances(text)


def test_every_form_can_be_reloaded() -> None:
    assert set(FORMS.values()) == set(LatentPrior.__subclasses__())
