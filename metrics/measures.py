"""What each kind of metric computes from the shared features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from metrics.confidence import FID_POOL, Interval, fid_error, fid_infinity, interval, kid_error
from metrics.diversity import mean_pairwise_distance, within_groups
from metrics.evaluation import Evaluation
from metrics.features import Collected, collect
from metrics.fid import frechet_distance
from metrics.inception_score import inception_score
from metrics.ivom import errors, targets
from metrics.kid import kernel_distance
from metrics.names import Metric
from metrics.precision_recall import density_coverage, precision_recall
from metrics.retrieval import retrieval_rank, retrieval_similarity

_FEW = 4  # vectors that halves can be drawn from
DIVERSITY_REALS = 10_000


@dataclass(frozen=True)
class Measured:
    """Values by name, the number of reals behind them, intervals by the name of their value, and notes."""

    values: dict[str, float]
    num_real: int
    intervals: dict[str, Interval] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    """The values of `metric`; `fakes`: features of at least as many images as it takes."""
    return _MEASURES[metric.kind](run, metric, fakes)


def _fid(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    count, real = run.count(metric), run.real_gaussian(metric)
    value = frechet_distance(fakes.gaussian(count), real)
    intervals = {}
    pool = fakes.features[:min(count, FID_POOL)]
    if run.confidence and len(pool) >= _FEW:
        method = f"halves of {len(pool)} generated images"
        intervals[metric.name] = interval(value, fid_error(pool, count, real, run.seed), method, 0)
    return Measured({metric.name: value}, real.count, intervals, _bias(run, count, real.count))


def _bias(run: Evaluation, count: int, num_real: int) -> list[str]:
    least, dim = min(count, num_real), run.detector.feature_dim
    if least > dim:
        return []
    return [f"{least} images for {dim} feature dimensions: biased upwards, comparable only at equal counts"]


def _fid_infinity(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    count, real = run.count(metric), run.real_gaussian(metric)
    value, points = fid_infinity(fakes.features[:count], real, run.seed)
    notes = [f"{metric.name}: a line through {len(points)} FIDs of {points[0][0]} to {points[-1][0]} generated images, "
             "met at 1/N = 0; the bias by the number of real images remains"]
    return Measured({metric.name: value, f"{metric.name}_finite": points[-1][1]}, real.count, {},
                    [*notes, *_bias(run, points[0][0], real.count)])


def _kid(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    vectors, made = run.real_vectors(metric), fakes.features[:run.count(metric)]
    mean, std = kernel_distance(made, vectors, seed=run.seed)
    intervals = {}
    if run.confidence and len(made) >= _FEW:
        intervals[metric.name] = interval(mean, kid_error(made, vectors, run.seed), "halves of the generated images")
    return Measured({metric.name: mean, f"{metric.name}_std": std}, len(vectors), intervals)


def _precision_recall(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    assert metric.neighbours is not None
    reals = run.real_vectors(metric)
    precision, recall = precision_recall(fakes.features[:run.count(metric)], reals, metric.neighbours)
    return Measured({f"{metric.name}_precision": precision, f"{metric.name}_recall": recall}, len(reals))


def _density_coverage(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    assert metric.neighbours is not None
    reals = run.real_vectors(metric)
    density, coverage = density_coverage(fakes.features[:run.count(metric)], reals, metric.neighbours)
    return Measured({f"{metric.name}_density": density, f"{metric.name}_coverage": coverage}, len(reals))


def _inception_score(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    assert run.detector.head is not None
    mean, std = inception_score(run.detector.head(fakes.features[:run.count(metric)]))
    notes = [] if run.detector.name == "inception" else [
        f"{metric.name} is of {run.detector.name}'s class probabilities, not Inception-v3's: no Inception Score of the "
        "literature is comparable"]
    return Measured({f"{metric.name}_mean": mean, f"{metric.name}_std": std}, 0, {}, notes)


def _diversity(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    count, reals = run.count(metric), run.features_of(run.reals).features[:DIVERSITY_REALS]
    made = fakes.features[:count]
    values = {metric.name: mean_pairwise_distance(made), f"{metric.name}_real": mean_pairwise_distance(reals)}
    notes = []
    if run.groups is not None:
        found = within_groups(made, torch.tensor([run.groups(k) for k in range(count)]))
        if found is None:
            notes.append(f"{metric.name}: no two images share a condition, so there is no diversity within one; take "
                         "more images than conditions")
        else:
            values[f"{metric.name}_within"] = found[0]
            notes.append(f"{metric.name}_within: the mean over {found[1]} condition{'s' * (found[1] > 1)}")
    return Measured(values, len(reals), {}, notes)


def _retrieval(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    assert run.refs is not None
    found = run.features_of(run.refs.images)
    position = {int(i): k for k, i in enumerate(found.indices)}
    # References beyond the kept ones can't be looked up; that takes more than 100,000 of them.
    known = [k for k in range(run.count(metric)) if run.refs.index(k) in position]
    asked = (fakes.features[known], found.features, [position[run.refs.index(k)] for k in known])
    values = {**retrieval_rank(*asked), **retrieval_similarity(*asked)}
    return Measured({f"{metric.name}_{key}": value for key, value in values.items()}, len(found.features))


def _ivom(run: Evaluation, metric: Metric, fakes: Collected) -> Measured:
    assert run.inverter is not None
    assert run.heldout is not None
    wanted = targets(run.inverter, run.heldout, run.count(metric))
    first, found = run.inverter.invert(wanted)
    values = {metric.name: errors(found, wanted).mean().item(),
              f"{metric.name}_start": errors(first, wanted).mean().item()}
    gaussians = [collect(images.split(run.batch_size), run.detector, [len(wanted)], len(wanted)).gaussian(len(wanted))
                 for images in (found, wanted)]
    values[f"{metric.name}_fid"] = frechet_distance(*gaussians)
    note = (f"{metric.name}: mean squared error in [-1, 1] of {len(wanted)} held-out images, {run.inverter.what}; "
            "_start: before; _fid: between the images found and those asked for")
    return Measured(values, len(wanted), {}, [note, *_bias(run, len(wanted), len(wanted))])


_MEASURES: dict[str, Callable[[Evaluation, Metric, Collected], Measured]] = {
    "fid": _fid, "fidinf": _fid_infinity, "kid": _kid, "pr": _precision_recall, "dc": _density_coverage,
    "is": _inception_score, "diversity": _diversity, "retrieval": _retrieval, "ivom": _ivom,
}
