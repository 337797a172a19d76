"""Neighbours, k-means, mixtures and stored features: against plain references, known answers and bad input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script

from dnnlib import UserError
from torch_utils.clustering import Mixture, assign, fit_gmm, kmeans, representatives
from torch_utils.feature_store import FeatureStore
from torch_utils.neighbors import knn, knn_reference, nearest_rows


def blobs(count: int, clusters: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points [count, dim] (variance 1) around centres that lie about 10 apart or more, their blobs, the centres."""
    rng = torch.Generator().manual_seed(seed)
    centres = 8 * torch.randn(clusters, dim, generator=rng)
    blob = torch.arange(count) % clusters
    return centres[blob] + torch.randn(count, dim, generator=rng), blob, centres


def similarities(features: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Cosines [N, k] of rows and their neighbours, in float64."""
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    return torch.einsum("nd,nkd->nk", rows, rows[found.long()])


def recall(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean share of the reference's neighbours that were found."""
    return (found[:, :, None] == reference[:, None]).any(1).float().mean().item()


@pytest.mark.parametrize("k", [1, 7, 298, 299])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_neighbours_are_the_reference(k: int, dtype: torch.dtype) -> None:
    features = torch.randn(300, 24, dtype=dtype) * torch.rand(300, 1, dtype=dtype)  # any norms
    found, reference = knn(features, k), knn_reference(features, k)
    assert found.dtype == torch.int32
    assert found.shape == (300, k)
    # float32 may swap neighbours whose cosines differ by less than it resolves.
    torch.testing.assert_close(similarities(features, found), similarities(features, reference), rtol=0, atol=1e-6)
    assert recall(found, reference) > 0.999


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(100, 8)
    whole = knn(features, 12)
    monkeypatch.setattr("torch_utils.neighbors._QUERIES", 17)
    monkeypatch.setattr("torch_utils.neighbors._CANDIDATES", 9)  # fewer than k
    assert torch.equal(knn(features, 12), whole)


@pytest.mark.parametrize("exact_below", [1000, 0])
def test_copies_are_neighbours_but_no_row_is_its_own(exact_below: int) -> None:
    """More copies of each row than neighbours asked for: a row removed by position would be found by some."""
    features = torch.eye(6)[torch.arange(120) % 6]  # products of these are exact in any order of summing
    found = knn(features, 5, exact_below=exact_below)
    assert (found != torch.arange(120)[:, None]).all()
    assert (found % 6 == (torch.arange(120) % 6)[:, None]).all()
    assert torch.equal(found.sort(1).values, found), "equally near rows come in order of index"
    assert all(len(set(row)) == 5 for row in found.tolist())


def test_approximate_neighbours_find_nearly_all_and_repeat() -> None:
    features = torch.randn(6000, 10)
    found = knn(features, 10, exact_below=0)
    reference = knn(features, 10)
    assert not torch.equal(found, reference), "6000 rows are more than the approximate search looks at"
    assert recall(found, reference) > 0.9
    assert (found != torch.arange(6000)[:, None]).all()
    assert torch.equal(knn(features, 10, exact_below=0), found)


def test_approximate_neighbours_are_always_k() -> None:
    """Lists are added until there are more than k rows, up to the whole set."""
    features = torch.randn(64, 4)
    assert torch.equal(knn(features, 63, exact_below=0), knn(features, 63))


def test_too_many_neighbours_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match=r"--neighbors 5 .* at most 4"):
        knn(torch.randn(5, 3), 5)


@pytest.mark.parametrize("bank_type", ["tensor", "store"])
def test_nearest_rows_of_a_bank(monkeypatch: pytest.MonkeyPatch, bank_type: str) -> None:
    monkeypatch.setattr("torch_utils.neighbors._BLOCK", 5)
    monkeypatch.setattr("torch_utils.neighbors._CANDIDATES", 7)
    queries, bank = torch.randn(12, 6, dtype=torch.float64), torch.randn(50, 6)
    indices, similarity = nearest_rows(queries, bank if bank_type == "tensor" else FeatureStore(bank.numpy()), 9)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None].double(), dim=2)
    expected = cosine.sort(dim=1, descending=True)
    assert torch.equal(indices, expected.indices[:, :9])
    torch.testing.assert_close(similarity, expected.values[:, :9], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="51 nearest of 50"):
        nearest_rows(queries, bank, 51)


def test_kmeans_finds_separated_blobs_and_repeats() -> None:
    features, blob, _ = blobs(2000, 20, 24)
    clusters = kmeans(features, 20, seed=3)
    assert len(set(zip(blob.tolist(), clusters.assignment.tolist(), strict=True))) == 20, "one cluster per blob"
    assert clusters.counts.tolist() == [100] * 20
    means = torch.stack([features[clusters.assignment == i].mean(0) for i in range(20)])
    torch.testing.assert_close(clusters.centroids, means, rtol=0, atol=1e-4)
    again = kmeans(features, 20, seed=3)
    assert torch.equal(again.centroids, clusters.centroids)
    assert torch.equal(again.assignment, clusters.assignment)
    assert not torch.equal(kmeans(features, 20, seed=4).assignment, clusters.assignment)


def test_kmeans_on_a_subset_assigns_every_row() -> None:
    features, blob, _ = blobs(3000, 5, 8)
    clusters = kmeans(features, 5, seed=0, subset=200)
    assert len(set(zip(blob.tolist(), clusters.assignment.tolist(), strict=True))) == 5
    assert not torch.equal(clusters.centroids, kmeans(features, 5, seed=0).centroids)


def test_kmeans_from_given_centroids_keeps_their_order() -> None:
    features, blob, centres = blobs(600, 6, 8)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    clusters = kmeans(features, 6, seed=0, init=centres[order])
    assert torch.equal(order[clusters.assignment], blob)
    with pytest.raises(ValueError, match="6 first centroids"):
        kmeans(features, 6, seed=0, init=centres[:5])


@pytest.mark.parametrize("k", [12, 40])
def test_no_cluster_is_empty(k: int) -> None:
    """Fewer different rows than clusters."""
    features = torch.randn(10, 4)[torch.arange(40) % 10]
    clusters = kmeans(features, k, seed=0)
    assert clusters.counts.min() >= 1
    assert torch.equal(clusters.assignment.bincount(minlength=k), clusters.counts)
    # Two centroids that share a row's copies are moved apart by a thousandth to tell them apart.
    torch.testing.assert_close(clusters.centroids[clusters.assignment], features, rtol=2e-3, atol=2e-3)


def test_more_clusters_than_kmeans_plus_plus_is_used_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_utils.clustering._MAX_PLUS_PLUS", 3)
    features, _, _ = blobs(200, 8, 4)
    clusters = kmeans(features, 8, seed=0)
    nearest, _ = assign(features.numpy(), clusters.centroids.numpy())
    assert clusters.assignment.tolist() == nearest.tolist()


def test_too_many_clusters_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match=r"--instances 6 .* at most 5"):
        kmeans(torch.randn(5, 3), 6, 0, flag="--instances")


def test_representatives_are_near_and_distinct() -> None:
    features, blob, centres = blobs(300, 10, 6)
    found = representatives(features, centres)
    assert torch.equal(found, torch.cdist(centres, features).argmin(1))
    assert torch.equal(blob[found], torch.arange(10))
    # Two centroids at one place: the second gets the next nearest row.
    twice = representatives(features, torch.cat([centres, centres[:1]]))
    assert torch.equal(twice[:10], found)
    assert twice[10] == (features - centres[0]).norm(dim=1).argsort()[1]
    assert representatives(features[:1], centres).tolist() == [0] * 10


def test_mixture_finds_means_variances_and_weights() -> None:
    rng = torch.Generator().manual_seed(1)
    means = torch.tensor([[0.0, 50.0, 1000.0], [10.0, 50.0, 1000.0], [0.0, 80.0, 1000.1]])
    deviation = torch.tensor([[1.0, 2.0, 0.01], [2.0, 1.0, 0.02], [0.5, 4.0, 0.03]])
    component = torch.multinomial(torch.tensor([0.2, 0.3, 0.5]), 6000, replacement=True, generator=rng)
    features = means[component] + deviation[component] * torch.randn(6000, 3, generator=rng)
    mixture = fit_gmm(features, 3, seed=0)
    order = torch.cdist(means, mixture.means).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert ((mixture.means[order] - means).abs() < 0.2 * deviation).all()
    torch.testing.assert_close(mixture.variances[order].sqrt(), deviation, rtol=0.15, atol=0)
    torch.testing.assert_close(mixture.weights[order], torch.tensor([0.2, 0.3, 0.5]), rtol=0, atol=0.03)
    samples = mixture.sample(range(4000))
    torch.testing.assert_close(samples.mean(0), features.mean(0), rtol=1e-4, atol=1)
    torch.testing.assert_close(samples.std(0), features.std(0), rtol=0.05, atol=0)


def test_mixture_samples_depend_on_their_seed_alone() -> None:
    mixture = fit_gmm(blobs(200, 4, 5)[0], 4, seed=0)
    together = mixture.sample([5, 6, 7])
    assert torch.equal(mixture.sample([7, 5]), together[[2, 0]])
    assert not torch.equal(together[0], together[1])
    again = Mixture.from_state(mixture.state_dict()).sample([5, 6, 7])
    assert torch.equal(again, together)
    assert torch.equal(fit_gmm(blobs(200, 4, 5)[0], 4, seed=0).means, mixture.means)


@pytest.mark.parametrize(("count", "k"), [(20, 20), (30, 8), (2, 1)])
def test_mixture_of_few_images_in_many_dimensions(count: int, k: int) -> None:
    features = torch.nn.functional.normalize(torch.randn(count, 1280).relu(), dim=1)
    features[:, 3] = 0.25  # a dimension that tells nothing
    mixture = fit_gmm(features, k, seed=0)
    assert mixture.means.dtype == mixture.variances.dtype == torch.float32
    assert (mixture.variances > 0).all()
    assert mixture.weights.sum().item() == pytest.approx(1, abs=1e-6)
    samples = mixture.sample(range(50))
    assert samples.isfinite().all()
    torch.testing.assert_close(samples[:, 3], torch.full((50,), 0.25), rtol=0, atol=1e-6)
    assert samples.norm(dim=1).max() < 1.5


def test_mixture_of_too_many_components_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match=r"--prior gmm:6 needs at least 6 images"):
        fit_gmm(torch.randn(5, 3), 6, 0)


def test_features_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    features = torch.randn(500, 12)
    path = tmp_path / "cache" / "features.npy"
    memory = FeatureStore.build(path, 500, 12, features.split(64))
    assert not path.parent.exists(), "below the limit nothing is written"
    disk = FeatureStore.build(path, 500, 12, features.split(64), limit_bytes=1000)
    assert [file.name for file in path.parent.iterdir()] == ["features.npy"]
    assert isinstance(disk.array, np.memmap)
    assert (len(disk), disk.dim) == (len(memory), memory.dim) == (500, 12)
    for store in (memory, disk, FeatureStore.open(path)):
        assert torch.equal(store[torch.tensor([7, 499, 7])], features[[7, 499, 7]])
        assert torch.equal(store[np.arange(500)], features)
        with pytest.raises(ValueError, match="read-only"):
            store.array[0, 0] = 1
        assert torch.equal(knn(store, 3, exact_below=0), knn(features, 3, exact_below=0))
        assert torch.equal(kmeans(store, 4, 0, subset=100).centroids, kmeans(features, 4, 0, subset=100).centroids)


@pytest.mark.parametrize("fault", ["raises", "few", "many", "wide"])
@pytest.mark.parametrize("limit_bytes", [0, 2**30])
def test_failed_build_leaves_nothing_behind(tmp_path: Path, fault: str, limit_bytes: int) -> None:
    def batches() -> Iterator[torch.Tensor]:
        yield torch.zeros(6, 4)
        if fault == "raises":
            raise KeyError("a picture")
        if fault != "few":
            yield torch.zeros(5, 4) if fault == "many" else torch.zeros(4, 3)

    with pytest.raises(KeyError if fault == "raises" else ValueError):
        FeatureStore.build(tmp_path / "features.npy", 10, 4, batches(), limit_bytes)
    assert not list(tmp_path.iterdir())


def test_features_without_room_or_of_another_kind_are_errors_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features.npy: the features of the data set need 3638.0 TiB"):
        FeatureStore.build(tmp_path / "features.npy", 10**12, 1000, [])
    (tmp_path / "other.npy").write_bytes(b"no features")
    with pytest.raises(UserError, match=r"other.npy is not a feature file"):
        FeatureStore.open(tmp_path / "other.npy")
    with pytest.raises(ValueError, match="float32"):
        FeatureStore(np.zeros((2, 2)))


def test_importing_loads_neither_library() -> None:
    code = ("import sys, torch_utils.neighbors\n"
            "print([name for name in ('faiss', 'sklearn') if name in sys.modules])")
    assert run_script("-c", code).stdout.strip() == "[]"
