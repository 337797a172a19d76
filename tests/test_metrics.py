"""FID, KID, copying and retrieval against plain references; features, names, cache, detectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import make_pictures

from dnnlib import UserError, cache_folder
from dnnlib.images import open_source
from metrics.copying import copying_report, nearest
from metrics.detectors import Detector, check_not_own, load_detector, resize_images
from metrics.features import FeatureCache, Moments, collect, set_features
from metrics.fid import Gaussian, _congruence, _gram, fit_gaussian, frechet_distance
from metrics.image_sets import ImageSet, fixed_subset, from_source, from_tensor
from metrics.inception import build_inception, load_inception
from metrics.kid import _draw, _sums_at_once, _sums_by_subset, kernel_distance, polynomial_kernel
from metrics.names import parse_metrics
from metrics.registry import References, evaluate, write_records
from metrics.retrieval import derangement, retrieval_rank, retrieval_ranks, retrieval_similarity
from metrics.table import format_table

DIM = 12


def vectors(count: int, dim: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Correlated random features, float32."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dim, dim)) / dim**0.5
    return torch.from_numpy(rng.normal(size=(count, dim)) @ mixing * scale + shift).float()


def pictures(count: int, seed: int, side: int = 16) -> torch.Tensor:
    """Random uint8 images."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A random projection of 8 px images: quick, sensitive to flips."""
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(3 * 8 * 8, DIM))).float() / 200
    return Detector("efficientnet_lite2", "projection", "0" * 64, DIM, 8, torch.device("cpu"),
                    lambda x: (x.flatten(1) / 10) @ weights)


# Fréchet distance.


def test_fid_of_known_gaussians() -> None:
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    mean = torch.tensor([1.0, 2.0, 2.0]).double()
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(1).normal(size=(3, 3)))).Q
    for rotation in (torch.eye(3).double(), turn):
        first = Gaussian(9, torch.zeros(3).double(), cov=rotation @ a.diag() @ rotation.T)
        second = Gaussian(9, mean, cov=rotation @ b.diag() @ rotation.T)
        expected = 9 + (a.sqrt() - b.sqrt()).square().sum().item()
        assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(200, 300), (10, 300), (300, 10), (10, 8), (17, 16), (16, 17)])
def test_fid_against_sqrtm(n: int, m: int) -> None:
    x, y = vectors(n, 16, 0), vectors(m, 16, 1, 2.0, 0.5)
    mine = frechet_distance(fit_gaussian(x), fit_gaussian(y))
    a, b = (np.cov(f.double().numpy(), rowvar=False) for f in (x, y))
    if min(n, m) > 16:
        root = np.trace(scipy.linalg.sqrtm(a @ b).real)
    else:  # sqrtm is undefined for singular products; their eigenvalues aren't
        root = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    squared = np.square(x.double().numpy().mean(0) - y.double().numpy().mean(0)).sum()
    assert mine == pytest.approx(squared + np.trace(a) + np.trace(b) - 2 * root, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize(("n", "m"), [(60, 150), (60, 300)])
def test_fid_of_few_images_against_sqrtm_of_samples(n: int, m: int) -> None:
    """With A the smaller sample, A S Aᵀ has full rank, so that sqrtm is exact where it isn't for S_a S_b."""
    x, y = fit_gaussian(vectors(n, 200, 0)), fit_gaussian(vectors(m, 200, 1, 2.0))
    assert x.root is not None
    turn = scipy.linalg.null_space(np.ones((1, n)))  # centred samples have one direction less
    root = turn.T @ x.root.numpy()
    trace = np.trace(scipy.linalg.sqrtm(root @ y.covariance().numpy() @ root.T).real)
    expected = (x.mean - y.mean).square().sum().item() + x.trace + y.trace - 2 * trace
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [20, 400])
def test_fid_of_a_set_with_itself_is_zero(n: int) -> None:
    x = vectors(n, 64, 0)
    x[:, 40:] = x[:, :24]  # singular also where there are more vectors than dimensions
    gaussian = fit_gaussian(x)
    assert frechet_distance(gaussian, gaussian) < 1e-6 * gaussian.trace
    # The two ways of holding a covariance agree.
    as_cov = Gaussian(n, gaussian.mean, cov=gaussian.covariance())
    other = fit_gaussian(vectors(300, 64, 3))
    assert frechet_distance(gaussian, other) == pytest.approx(frechet_distance(as_cov, other), rel=1e-6)


def test_fid_of_repeated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many zero singular values, whose rounded squares would add up."""
    x, y = vectors(60, 200, 0).repeat(3, 1), vectors(150, 200, 1)
    gaussian = fit_gaussian(x)
    assert frechet_distance(gaussian, gaussian) < 1e-9 * gaussian.trace
    # Without repeats the quick way is taken, and is the same.
    whole = frechet_distance(fit_gaussian(x[:60]), fit_gaussian(y))
    monkeypatch.setattr("metrics.fid._ALLOWED", 0.0)
    assert frechet_distance(fit_gaussian(x[:60]), fit_gaussian(y)) == pytest.approx(whole, rel=1e-9)


def test_triangular_products_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.fid._STEP", 5)
    cov, factor = fit_gaussian(vectors(40, 13, 0)).covariance(), vectors(13, 13, 1).tril().double()
    matrix = vectors(13, 20, 2).double()
    for found, expected in ((_congruence(factor, cov), factor.T @ cov @ factor), (_gram(matrix), matrix @ matrix.T)):
        torch.testing.assert_close(found.tril(), expected.tril(), rtol=1e-12, atol=1e-12)


def test_the_factor_that_a_reference_keeps() -> None:
    """Made once; none for a singular covariance, whose eigenvectors then serve."""
    fake, real = fit_gaussian(vectors(60, 8, 0)), fit_gaussian(vectors(50, 8, 1, 2.0))
    first = frechet_distance(fake, real)
    kept = real.cholesky
    assert kept is not None
    torch.testing.assert_close(kept @ kept.T, real.covariance())
    assert frechet_distance(fake, real) == first == pytest.approx(frechet_distance(real, fake), rel=1e-9)
    assert real.cholesky is kept
    flat = vectors(50, 8, 2)
    flat[:, 5] = 1  # a feature that never fires
    singular = fit_gaussian(flat)
    assert singular.cholesky is None
    assert frechet_distance(fake, singular) == pytest.approx(frechet_distance(singular, fake), rel=1e-9)


def test_moments_stream() -> None:
    x = vectors(100, 5, 0, shift=1000.0)
    moments = Moments(5)
    for part in x.split(7):
        moments.add(part)
    streamed = moments.gaussian()
    np.testing.assert_allclose(streamed.covariance(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(streamed.mean, x.double().mean(0), rtol=1e-12)


# Kernel distance.


def plain_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate by loops."""

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return (float(u @ v) / len(u) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(u, v) for u in x for v in y) / (n * m)


def test_kid_against_loops() -> None:
    x, y = vectors(14, 6, 0), vectors(14, 6, 1, 1.5)
    mean, std = kernel_distance(x, y, subsets=3)
    assert mean == pytest.approx(plain_kid(x.double().numpy(), y.double().numpy()), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-12)  # every subset is the whole set
    subsets, size = 5, 9
    mean, std = kernel_distance(x, y, subsets=subsets, subset_size=size, seed=3)
    rows, columns = _draw(14, size, subsets, 3, "x"), _draw(14, size, subsets, 3, "y")
    values = [plain_kid(x[r].double().numpy(), y[c].double().numpy()) for r, c in zip(rows, columns, strict=True)]
    assert mean == pytest.approx(np.mean(values), rel=1e-9)
    assert std == pytest.approx(np.std(values), rel=1e-9)
    assert kernel_distance(x, y, subsets=subsets, subset_size=size, seed=4)[0] != mean


def test_kid_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.kid._ENTRIES", 1000)  # several blocks
    x, y = vectors(3000, 6, 0), vectors(40, 6, 1)
    rows, columns = _draw(3000, 20, 4, 0), _draw(40, 20, 4, 1)
    whole = _sums_at_once(x, y, rows, columns)
    torch.testing.assert_close(whole, _sums_by_subset(x, y, rows, columns), rtol=1e-10, atol=0)
    assert whole[0].item() == pytest.approx(polynomial_kernel(x[rows[0]], y[columns[0]]).sum().item(), rel=1e-4)


def test_kid_is_unbiased() -> None:
    values = [kernel_distance(vectors(50, 4, 0)[s::2], vectors(50, 4, 0)[1 - s::2], subsets=1)[0] for s in (0, 1)]
    same = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    drawn = [kernel_distance(same[k:k + 50], same[k + 50:k + 100], subsets=1)[0] for k in range(0, 4000, 100)]
    assert values[0] == pytest.approx(values[1])  # symmetric
    assert abs(np.mean(drawn)) < 3 * np.std(drawn) / len(drawn) ** 0.5
    assert min(drawn) < 0 < max(drawn)


# Copying and retrieval.


def test_nearest_is_exact_for_copies() -> None:
    bank = vectors(700, 8, 0, shift=100.0)
    distance, index = nearest(bank[[5, 600]], bank)
    assert distance.tolist() == [0, 0]
    assert index.tolist() == [5, 600]
    queries = vectors(600, 8, 1, shift=100.0)
    found, _ = nearest(queries, bank)
    torch.testing.assert_close(found, torch.cdist(queries.double(), bank.double()).min(1).values, rtol=1e-6, atol=1e-6)


def test_copying_tells_copies_from_new_images() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(200, 8, generator=generator)
    flips = plain + 0.01 * torch.randn(200, 8, generator=generator)  # a mirror image is no other image
    train, groups = torch.cat([plain, flips]), torch.arange(200).repeat(2)
    fresh, heldout = torch.randn(150, 8, generator=generator), torch.randn(100, 8, generator=generator)
    for bar in (None, heldout):
        assert copying_report(fresh, train, groups, bar)["ratio"] == pytest.approx(1, abs=0.15)
        assert copying_report(plain[:50] + 0.001, train, groups, bar)["ratio"] < 0.01
        assert copying_report(flips[:50], train, groups, bar)["ratio"] == 0
    report = copying_report(fresh, train, groups, heldout)
    assert (report["num_fake"], report["num_bar"], report["num_train"]) == (150, 100, 400)
    assert copying_report(fresh, plain[:1], groups[:1])["ratio"] is None
    assert copying_report(fresh, plain[[0, 0, 0]], groups[:3])["ratio"] is None


def test_retrieval_rank() -> None:
    reals = torch.randn(101, 16, generator=torch.Generator().manual_seed(0)) + 50
    indices = list(range(0, 101, 2))
    assert retrieval_rank(reals[indices], reals, indices) == {"median_rank": 1, "chance": 51, "ratio": 1 / 51}
    # The centred opposite of an image comes last: the raw cosines are all 1.
    opposite = 2 * reals.mean(0) - reals[indices]
    assert retrieval_rank(opposite, reals, indices)["median_rank"] > 95
    # A generator that ignores its condition, and a detector that sees nothing, score chance.
    assert retrieval_rank(reals[:1].expand(101, -1), reals, range(101))["ratio"] == 1
    assert retrieval_ranks(reals[:3], torch.ones(7, 16), [0, 1, 2]).tolist() == [4, 4, 4]


def test_retrieval_similarity_against_loops() -> None:
    reals, fakes = vectors(9, 6, 0, shift=30.0).double(), vectors(5, 6, 1, shift=30.0).double()
    indices = [3, 0, 8, 3, 5]
    other = derangement(9).tolist()

    def mean_cosine(partners: list[int]) -> float:
        centre = reals.numpy().mean(0)
        pairs = [(f - centre, reals[i].numpy() - centre) for f, i in zip(fakes.numpy(), partners, strict=True)]
        return float(np.mean([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in pairs]))

    found = retrieval_similarity(fakes, reals, indices)
    assert found == pytest.approx({"similarity": mean_cosine(indices),
                                   "shuffled": mean_cosine([other[i] for i in indices])}, rel=1e-9)
    copies = retrieval_similarity(reals, reals, range(9))
    assert copies["similarity"] == pytest.approx(1)
    assert copies["shuffled"] < 0.5
    # A generator that ignores its condition is as near to any image as to its own.
    ignoring = retrieval_similarity(fakes[:1].expand(9, -1), reals, range(9))
    assert ignoring["similarity"] == pytest.approx(ignoring["shuffled"], abs=1e-12)


def test_derangement() -> None:
    for count in (2, 3, 50):
        other = derangement(count)
        assert sorted(other.tolist()) == list(range(count))
        assert (other != torch.arange(count)).all()
        assert torch.equal(other, derangement(count))
    assert len(set((derangement(50) - torch.arange(50)).tolist())) > 10  # no shift: sets are sorted


# Names.


@pytest.mark.parametrize(("name", "expected"), [
    ("fid50k_full", ("fid", 50_000, True)), ("fid2k_full", ("fid", 2000, True)), ("kid50k", ("kid", 50_000, False)),
    ("kid500_full", ("kid", 500, True)), ("fid_full", ("fid", None, True)), ("retrieval", ("retrieval", None, True)),
])
def test_names(name: str, expected: tuple[str, int | None, bool]) -> None:
    (metric,) = parse_metrics(name)
    assert (metric.name, metric.kind, metric.count, metric.full) == (name, *expected)


@pytest.mark.parametrize("name", ["fid", "kid", "fid0k_full", "fid50k_half", "FID50k", "fid٣k", "", "xid5k_full"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown; use fid50k_full.* fid_full.* fid50k.* retrieval"):
        parse_metrics(name)


def test_one_image_is_no_distribution() -> None:
    with pytest.raises(UserError, match=r"kid1_full: .* 2 or more"):
        parse_metrics("kid1_full")


@pytest.mark.parametrize(("name", "expected"), [
    ("pr50k3_full", ("pr", 50_000, True, 3)), ("pr50k3", ("pr", 50_000, False, 3)), ("pr3_full", ("pr", None, True, 3)),
    ("dc5k5_full", ("dc", 5000, True, 5)), ("pr500n10_full", ("pr", 500, True, 10)),
    ("is50k", ("is", 50_000, True, None)),
    ("diversity2k", ("diversity", 2000, True, None)), ("fidinf50k_full", ("fidinf", 50_000, True, None)),
    ("fidinf_full", ("fidinf", None, True, None)),
])
def test_names_of_other_metrics(name: str, expected: tuple[str, int | None, bool, int | None]) -> None:
    (metric,) = parse_metrics(name)
    assert (metric.kind, metric.count, metric.full, metric.neighbours) == expected


@pytest.mark.parametrize(("name", "words"), [("ppl2_wend", "LPIPS"), ("eqt50k_int", "StyleGAN3"),
                                             ("eqt50k_frac", "StyleGAN3"), ("eqr50k", "StyleGAN3"),
                                             ("swav50k", "--detector swav"), ("lpips", "diversity2k")])
def test_metrics_of_the_official_list_that_are_absent(name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"{name}: this version doesn't measure it: .*{words}"):
        parse_metrics(f"fid_full,{name}")


@pytest.mark.parametrize(("name", "words"), [("pr3n3_full", "more than 3 images"), ("is5", "10 parts"),
                                             ("pr50k", "unknown"), ("dc5", "unknown"), ("is50k_full", "unknown")])
def test_names_that_make_no_sense(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_metrics(name)


def test_lists_of_names() -> None:
    assert [m.name for m in parse_metrics("fid50k_full, kid50k,fid50k_full")] == ["fid50k_full", "kid50k"]


# Features.


def test_collect_keeps_what_it_must(detector: Detector) -> None:
    images = pictures(90, 0)
    counts = [5, 40, 77]
    whole = detector(images)
    for keep in (0, 50, 90):
        found = collect(images.split(16), detector, counts, keep)
        assert len(found.features) == min(max(keep, DIM), 77)
        torch.testing.assert_close(found.features, whole[:len(found.features)])
        for count in counts:
            mine, direct = found.gaussian(count), fit_gaussian(whole[:count])
            torch.testing.assert_close(mine.mean, direct.mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mine.covariance(), direct.covariance(), rtol=1e-4, atol=1e-5)


def test_resize_is_one_filter_for_all(tmp_path: Path) -> None:
    images = pictures(4, 0, 64)
    torch.testing.assert_close(resize_images(images, 64), images.float(), rtol=0, atol=0)
    shrunk = resize_images(images, 16)
    # Antialiased: of noise little is left, and the mean stays.
    assert shrunk.std() < 0.4 * images.float().std()
    assert shrunk.mean().item() == pytest.approx(images.float().mean().item(), abs=1)
    stripes = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    stripes[..., 4:] = 255
    grown = resize_images(stripes, 32)
    assert (grown.min(), grown.max()) == (0, 255)


def test_folder_zip_and_tensor_give_the_same_features(detector: Detector, tmp_path: Path) -> None:
    import shutil

    folder = make_pictures(tmp_path / "set", 7, 24)
    shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    in_folder, in_zip = from_source(open_source(folder)), from_source(open_source(tmp_path / "set.zip"))
    assert in_folder.fingerprint == in_zip.fingerprint
    in_memory = from_tensor(torch.cat(list(in_folder.batches(range(7)))), "tensor")
    off = FeatureCache(None, pytest.fail)
    expected = set_features(in_folder, detector, off, batch_size=2).features
    for images in (in_zip, in_memory):
        torch.testing.assert_close(set_features(images, detector, off).features, expected, rtol=1e-6, atol=1e-6)


def test_sizes_may_differ_within_a_set(detector: Detector, tmp_path: Path) -> None:
    make_pictures(tmp_path / "set" / "a", 3, 24)
    make_pictures(tmp_path / "set" / "b", 2, 40)
    images = from_source(open_source(tmp_path / "set"))
    assert [tuple(b.shape) for b in images.batches(range(5), batch_size=2)] == [
        (2, 3, 24, 24), (1, 3, 24, 24), (2, 3, 40, 40)]
    assert set_features(images, detector, FeatureCache(None, pytest.fail)).features.shape == (5, DIM)


@pytest.mark.parametrize("size", [(8, 8), (16, 32), (24, 12)])
def test_grey_counts_as_three_equal_channels(detector: Detector, size: tuple[int, int]) -> None:
    grey = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 1, *size), dtype=np.uint8))
    colour = grey.repeat(1, 3, 1, 1)
    expected = detector(colour)
    torch.testing.assert_close(detector(grey), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        expected, detector(resize_images(colour, 8).round().byte()), rtol=0, atol=1)  # squeezed into the square
    read = set_features(from_tensor(grey, "grey"), detector, FeatureCache(None, pytest.fail))
    torch.testing.assert_close(read.features, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(collect(grey.split(4), detector, [6]).features, expected, rtol=1e-6, atol=1e-6)
    mixed = ImageSet("mixed", "0", 12, lambda i: grey[i // 2] if i % 2 else colour[i // 2])
    both = set_features(mixed, detector, FeatureCache(None, pytest.fail)).features
    torch.testing.assert_close(both[::2], both[1::2], rtol=1e-6, atol=1e-6)
    (record,) = evaluate("fid_full", lambda n: [colour[:n]], from_tensor(grey, "grey"), detector=detector)
    assert record["results"]["fid_full"] == pytest.approx(0, abs=1e-6)
    assert record["copying"]["fake_median_distance"] == pytest.approx(0, abs=1e-6)


def test_more_images_than_are_kept(detector: Detector, tmp_path: Path) -> None:
    images, lines = from_tensor(pictures(60, 0), "sixty"), list[str]()
    whole = set_features(images, detector, FeatureCache(None, lines.append))
    cache = FeatureCache(tmp_path, lines.append)
    for _ in range(2):  # computed, then read
        part = set_features(images, detector, cache, keep=20)
        torch.testing.assert_close(part.features, whole.features[part.indices])
        assert len(set(part.indices.tolist())) == 20
        assert frechet_distance(part.gaussian(), whole.gaussian()) < 1e-5 * whole.gaussian().trace
    assert lines == []


# Cache.


class Counted:
    """An `ImageSet` that counts how often images are read."""

    def __init__(self, seed: int) -> None:
        self.reads, images = 0, pictures(10, seed)

        def read(i: int) -> torch.Tensor:
            self.reads += 1
            return images[i]

        self.set = ImageSet("counted", from_tensor(images, "").fingerprint, 10, read)


def test_cache_is_keyed_by_content(detector: Detector, tmp_path: Path) -> None:
    lines: list[str] = []
    cache, first, same, other = FeatureCache(tmp_path, lines.append), Counted(0), Counted(0), Counted(1)
    expected = set_features(first.set, detector, cache).features
    assert first.reads == 10
    torch.testing.assert_close(set_features(same.set, detector, cache).features, expected, rtol=0, atol=0)
    assert same.reads == 0
    assert not torch.equal(set_features(other.set, detector, cache).features, expected)
    assert not torch.equal(set_features(same.set, detector, cache, flipped=True).features, expected)
    assert same.reads == 10
    changed = Detector(detector.name, detector.network, "1" * 64, DIM, 8, detector.device, detector.pooled)
    finer = Detector(detector.name, detector.network, "0" * 64, DIM, 8, detector.device, detector.pooled)
    set_features(same.set, changed, cache)
    assert same.reads == 20
    set_features(same.set, finer, cache)
    assert same.reads == 20
    off = FeatureCache(None, lines.append)
    set_features(same.set, detector, off)
    assert same.reads == 30
    assert lines == []


def test_damaged_cache_is_computed_again(detector: Detector, tmp_path: Path) -> None:
    lines: list[str] = []
    cache, images = FeatureCache(tmp_path, lines.append), Counted(0)
    expected = set_features(images.set, detector, cache).features
    (file,) = (tmp_path / "features").iterdir()
    whole = file.read_bytes()
    for damage in (whole[:-200], b"", b"nonsense"):
        file.write_bytes(damage)
        torch.testing.assert_close(set_features(images.set, detector, cache).features, expected)
        assert "computed again" in lines[-1]
        assert str(file) in lines[-1]
    assert (len(lines), images.reads) == (3, 40)
    set_features(images.set, detector, cache)  # the last one was repaired
    assert (len(lines), images.reads) == (3, 40)
    # A file under the wrong name is not believed.
    set_features(Counted(1).set, detector, cache)
    (second,) = set((tmp_path / "features").iterdir()) - {file}
    second.write_bytes(file.read_bytes())
    assert not torch.equal(set_features(Counted(1).set, detector, cache).features, expected)
    assert "belong to something else" in lines[-1]


def test_cache_that_cannot_be_written_is_a_note(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    lines: list[str] = []
    set_features(Counted(0).set, detector, FeatureCache(tmp_path / "file", lines.append))
    assert len(lines) == 1
    assert "not cached" in lines[0]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DICGAN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DICGAN_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "dicgan"


# Detectors.


def test_lite2_is_the_default_and_not_ds_own() -> None:
    detector = load_detector()
    assert (detector.name, detector.feature_dim, detector.resolution) == ("efficientnet_lite2", 1280, 192)
    images = pictures(3, 0, 32)
    together = detector(images)
    assert together.shape == (3, 1280)
    torch.testing.assert_close(torch.cat([detector(img[None]) for img in images]), together, rtol=1e-4, atol=1e-5)
    check_not_own("efficientnet_lite2", "tf_efficientnet_lite0")
    with pytest.raises(UserError, match="tf_efficientnet_lite2 itself"):
        check_not_own("efficientnet_lite2", "tf_efficientnet_lite2")
    check_not_own("efficientnet_lite2", "tf_efficientnet_lite0", "resnet50")
    check_not_own("efficientnet_lite2")
    with pytest.raises(UserError, match=r"tf_efficientnet_lite2 itself, .*; use --detector inception"):
        check_not_own("efficientnet_lite2", "tf_efficientnet_lite0", "tf_efficientnet_lite2")
    with pytest.raises(UserError, match=r"inception_v3.fid itself, .*; use --detector efficientnet_lite2"):
        check_not_own("inception", "tf_efficientnet_lite0", "inception_v3.fid")
    with pytest.raises(UserError, match=r"inception_v3 itself, .*; no detector is left"):
        check_not_own("inception", "tf_efficientnet_lite2", "inception_v3")
    with pytest.raises(UserError, match="--weights w: efficientnet_lite2 brings its own"):
        load_detector("efficientnet_lite2", "w")
    with pytest.raises(UserError, match="--detector vgg: choose"):
        load_detector("vgg")


def test_inception_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = build_inception().state_dict()
    # The published file has no batch counters.
    layout = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert layout["fc.weight"].shape == (1008, 2048)
    torch.save(layout, tmp_path / "inception.pth")
    detector = load_detector("inception", tmp_path / "inception.pth")
    features = detector(pictures(2, 0, 32))
    assert features.shape == (2, 2048)
    assert features.isfinite().all()
    assert (detector.resolution, detector.feature_dim) == (299, 2048)
    assert "Inception" in detector.comparability
    torch.save({**layout, "AuxLogits.fc.weight": torch.zeros(1)}, tmp_path / "aux.pth")
    torch.save({key: layout[key] for key in list(layout)[1:]}, tmp_path / "less.pth")
    torch.save({**layout, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "thousand.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for name, words in (("aux", "1 unknown"), ("less", "1 tensors missing"), ("thousand", "1 of another shape"),
                        ("junk", "cannot be read"), ("absent", "does not exist")):
        with pytest.raises(UserError, match=words):
            load_inception(tmp_path / f"{name}.pth")
    with pytest.raises(UserError, match="pt_inception-2015-12-05") as error:
        load_detector("inception")
    assert "--weights FILE" in error.value.message


def test_inception_pools_as_the_graph() -> None:
    """Against the blocks written out: means without padding, a maximum in the last one."""
    net = build_inception().eval()
    for block, channels, pool in ((net.Mixed_6b, 768, torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
                                  (net.Mixed_7b, 1280, torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
                                  (net.Mixed_7c, 2048, torch.nn.MaxPool2d(3, 1, 1))):
        x = torch.rand(1, channels, 4, 4)
        with torch.no_grad():
            expected = block.branch_pool(pool(x))
            torch.testing.assert_close(block(x)[:, -192:], expected)


# The registry.


def test_evaluate_shares_fakes_and_reports(detector: Detector, tmp_path: Path) -> None:
    real, fake = pictures(30, 0), pictures(50, 1) // 2
    asked: list[int] = []

    def fakes(count: int) -> Iterator[torch.Tensor]:
        asked.append(count)
        return iter(fake.split(8))  # more than asked for: the rest is left

    plain = from_tensor(real, "reals")
    reals = ImageSet(plain.name, plain.fingerprint, 30, plain.read, mirror=True)
    names = ["fid40_full", "kid20_full", "fid_full", "fid40", "kid500"]
    with pytest.raises(AssertionError, match="ended after 50 of 500"):
        evaluate(names, fakes, reals, detector=detector)
    asked.clear()
    records = evaluate(names[:4], fakes, reals, detector=detector, seed=3, notes=["careful"],
                       provenance={"snapshot_pkl": "net.pkl"})
    assert asked == [40]
    assert [r["metric"] for r in records] == names[:4]
    f, r, flips = detector(fake), detector(real), detector(real.flip(-1))
    values = [record["results"] for record in records]
    assert values[0]["fid40_full"] == pytest.approx(
        frechet_distance(fit_gaussian(f[:40]), fit_gaussian(r)), rel=1e-6)
    mean, std = kernel_distance(f[:20], r, seed=3)
    assert values[1] == pytest.approx({"kid20_full": mean, "kid20_full_std": std}, rel=1e-6)
    assert values[2]["fid_full"] == pytest.approx(
        frechet_distance(fit_gaussian(f[:30]), fit_gaussian(r)), rel=1e-6)
    capped = torch.cat([r, flips])[fixed_subset(60, 40)]
    assert values[3]["fid40"] == pytest.approx(
        frechet_distance(fit_gaussian(f[:40]), fit_gaussian(capped)), rel=1e-6)
    assert [(x["num_fake"], x["num_real"], x["xflip"]) for x in records] == [
        (40, 30, False), (20, 30, False), (30, 30, False), (40, 40, True)]
    for record in records:
        assert record["detector"]["weights_hash"] == "0" * 64
        assert "not comparable" in record["notes"][0]
        assert record["notes"][-1] == "careful"
        assert record["dataset"]["fingerprint"] == reals.fingerprint
        assert record["snapshot_pkl"] == "net.pkl"
        assert record["copying"]["num_train"] == 60
    (path, *_) = write_records([*records, *records[:1]], tmp_path)
    lines = path.read_text().splitlines()
    assert path.name == "metric-fid40_full.jsonl"
    assert [json.loads(line)["results"] for line in lines] == [values[0]] * 2
    table = format_table(records)
    assert "fid40_full" in table
    assert "not comparable" in table
    assert "Copying" in table


def test_evaluate_catches_a_copying_generator(detector: Detector) -> None:
    real, heldout = pictures(60, 0), pictures(40, 1)
    reals, bar = from_tensor(real, "reals"), from_tensor(heldout, "heldout")
    copies = evaluate("fid40_full", lambda n: [real[:n]], reals, detector=detector, heldout=bar)
    fresh = evaluate("fid40_full", lambda n: [pictures(n, 2)], reals, detector=detector, heldout=bar)
    assert copies[0]["copying"]["ratio"] < 1e-6
    assert fresh[0]["copying"]["ratio"] == pytest.approx(1, abs=0.2)
    assert fresh[0]["copying"]["heldout"]["fingerprint"] == bar.fingerprint


def test_evaluate_retrieval(detector: Detector) -> None:
    real = pictures(25, 0)
    reals = from_tensor(real, "reals")
    refs = References(reals, lambda k: (k + 7) % 25)
    order = [(k + 7) % 25 for k in range(25)]
    (used,) = evaluate("retrieval", lambda n: [real[order]], reals, detector=detector, refs=refs)
    (unused,) = evaluate("retrieval", lambda n: [real[:1].repeat(n, 1, 1, 1)], reals, detector=detector, refs=refs)
    shuffled = used["results"].pop("retrieval_shuffled")
    assert used["results"] == pytest.approx(
        {"retrieval_median_rank": 1, "retrieval_chance": 13, "retrieval_ratio": 1 / 13, "retrieval_similarity": 1})
    assert abs(shuffled) < 0.3
    assert unused["results"]["retrieval_ratio"] == 1
    assert unused["results"]["retrieval_similarity"] == pytest.approx(unused["results"]["retrieval_shuffled"])
    one = References(from_tensor(real[:1], "one"), lambda k: 0)
    for given in (None, one):
        with pytest.raises(UserError, match="network with instance conditions and --ref IMAGES with 2 images or more"):
            evaluate("retrieval", lambda n: [real], reals, detector=detector, refs=given)


def test_evaluate_refuses_what_cannot_be_measured(detector: Detector) -> None:
    reals = from_tensor(pictures(5, 0), "five")
    with pytest.raises(UserError, match="five holds 5 images only; use fid_full"):
        evaluate("fid1k_full", reals, reals, detector=detector)
    with pytest.raises(UserError, match="one holds one image"):
        evaluate("fid_full", reals, from_tensor(pictures(1, 0), "one"), detector=detector)
    (record,) = evaluate("fid_full", reals, reals, detector=detector)
    assert record["results"]["fid_full"] == pytest.approx(0, abs=1e-6)


def test_half_a_record_of_a_killed_command_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metric-fid.jsonl"
    for left, kept in (('{"metric": "fid", "n": 1}\n{"met', 1), ("", 0), ('{"half', 0)):
        path.write_text(left)
        write_records([{"metric": "fid", "n": 2}], tmp_path)
        assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1] * kept + [2]
