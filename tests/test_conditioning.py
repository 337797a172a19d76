"""What each method pairs, draws and tells: neighbours and flips, clusters, targets, noise scales per sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import CPU, new_trainer, open_set, step, tiny_config

from dnnlib import UserError
from training.conditioning.base import Batch
from training.conditioning.cluster import ClusterLabels
from training.conditioning.dicgan import DiffusedInstance, parse_sigma
from training.conditioning.icgan import InstanceNeighbors
from training.loader import batches
from training.run_state import load_state
from training.training_loop import Trainer


@pytest.fixture
def trainer_of(tiny_set: Path, tmp_path: Path) -> Any:
    """cfg and changes → (trainer, data set)."""
    def make(cfg: str, **changes: Any) -> tuple[Trainer, Any]:
        dataset = open_set(tiny_set, cfg, **changes)
        return new_trainer(tiny_config(cfg, dataset, **changes), dataset, tmp_path), dataset
    return make


def drawn_batch(trainer: Trainer, dataset: Any, size: int = 16) -> Batch:
    return next(batches(dataset, size, 0, 0, CPU, 0, trainer.run.conditioning.pair))


def test_icgan_reals_are_neighbours_with_the_same_flip(trainer_of: Any) -> None:
    trainer, dataset = trainer_of("icgan_demo", neighbors=3, cond=True)
    method: InstanceNeighbors = trainer.run.conditioning
    features = method.table.everything().flatten(1)[:dataset.num_images]
    similarity = features @ features.T - 2 * torch.eye(len(features))
    for i in range(2 * dataset.num_images):
        (real,) = method.pair([i], [i])
        assert (real >= dataset.num_images) == (i >= dataset.num_images)
        base, found = i % dataset.num_images, real % dataset.num_images
        assert found != base
        assert (similarity[base] > similarity[base, found] + 1e-6).sum() < 3
    # All three are drawn, and the same place in the stream draws the same.
    assert len({method.pair([0], [place])[0] for place in range(40)}) == 3
    assert method.pair([0, 1], [7, 8]) == method.pair([0, 1], [7, 8])


def test_icgan_tells_the_instance_and_the_class_of_the_neighbour(trainer_of: Any) -> None:
    trainer, dataset = trainer_of("icgan_demo", neighbors=3, cond=True)
    method = trainer.run.conditioning
    batch = drawn_batch(trainer, dataset)
    told = method.condition(batch, trainer.run.G, torch.Generator().manual_seed(0))
    reals = method.pair(batch.indices.tolist(), batch.draws.tolist())
    assert told.c[:, :2].argmax(1).tolist() == [int(dataset.labels[i % dataset.num_images]) for i in reals]
    assert torch.equal(told.c[:, 2:], method.table[batch.indices].flatten(1))
    fakes = method.fake_condition(batch, trainer.run.G, torch.Generator().manual_seed(0))
    assert not torch.equal(fakes.c, told.c)
    rows = method.table.everything().flatten(1)
    for row in fakes.c[:, 2:]:  # instances of the set, by themselves
        assert (rows == row).all(1).any()


def test_icgan_fakes_are_independent_of_the_reals(trainer_of: Any) -> None:
    trainer, dataset = trainer_of("icgan_demo", neighbors=3)
    told: list[torch.Tensor] = []
    trainer.run.loss.judge = lambda img, condition, rng: told.append(condition.c) or torch.zeros(len(img), 1)
    trainer.run.loss.discriminator_terms(drawn_batch(trainer, dataset, 8), torch.Generator().manual_seed(0))
    assert not torch.equal(told[0], told[1])


def test_disp_shows_the_image_with_its_own_feature(trainer_of: Any) -> None:
    trainer, dataset = trainer_of("disp_demo")
    batch = drawn_batch(trainer, dataset)
    told = trainer.run.conditioning.condition(batch, trainer.run.G, torch.Generator())
    with torch.no_grad():
        own = trainer.run.G.encoder.eval()(batch.img).flatten(1)
    torch.testing.assert_close(told.c, own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told.c.norm(dim=1), torch.ones(len(own)))


def test_clusters_are_labels_that_flips_share(trainer_of: Any) -> None:
    trainer, dataset = trainer_of("logogan_demo", clusters=4, mirror=True)
    method: ClusterLabels = trainer.run.conditioning
    assert sorted(set(method.assignment.tolist())) == [0, 1, 2, 3]
    n = dataset.num_images
    batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([-1, -1]), torch.tensor([3, 3 + n]), torch.arange(2))
    told = method.condition(batch, trainer.run.G, torch.Generator())
    assert told.c.argmax(1).tolist() == [int(method.assignment[3])] * 2
    drawn = method.draw_classes(range(4000))
    share = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(share, np.bincount(method.assignment, minlength=4) / n, atol=0.03)


def test_self_conditioning_follows_the_discriminator_and_is_resumed(trainer_of: Any, tmp_path: Path) -> None:
    """Clusters are those of D's features at the time, numbered as before; a resumed run doesn't start over."""
    trainer, dataset = trainer_of("selfcond_demo", clusters=3, recluster=0.008)
    method = trainer.run.conditioning
    step(trainer, dataset, 1)
    assert method.done == 0
    step(trainer, dataset, 1)
    assert method.done == 1
    features = torch.cat([trainer.run.D.eval().features(dataset[i][0][None].float() / 127.5 - 1).detach()
                          for i in range(dataset.num_images)])
    means = torch.stack([features[method.assignment == k].mean(0) for k in range(3)])
    nearest = torch.cdist(features, means).argmin(1)
    assert (nearest == method.assignment).double().mean() > 0.9
    trainer.run.D.train()
    trainer.run.save(tmp_path / "s.pkl")
    resumed = new_trainer(trainer.run.config, dataset, tmp_path, load_state(tmp_path / "s.pkl"))
    assert torch.equal(resumed.run.conditioning.assignment, method.assignment)
    assert resumed.run.conditioning.done == 1


def test_resampled_targets_follow_eq_4(trainer_of: Any) -> None:
    """The share of x_i among the targets is its posterior probability, and D is told the h that drew the target."""
    trainer, dataset = trainer_of("dicgan_demo", target="resampled", sigma=0.9)
    method: DiffusedInstance = trainer.run.conditioning
    places = list(range(3000))
    indices = [place % len(dataset) for place in places]
    reals = method.pair(indices, places)
    h = method._diffuse(method.table[torch.tensor(indices)], 0.9, method._stream_noise(places)).flatten(1).double()
    centres = 0.19**0.5 * method.table.everything().flatten(1).double()
    own = torch.softmax(-torch.cdist(h, centres).square() / (2 * 0.81), dim=1)[torch.arange(3000), indices]
    share = np.mean([real == origin for real, origin in zip(reals, indices, strict=True)])
    assert share == pytest.approx(own.mean().item(), abs=0.03)
    assert 0.02 < share < 0.9
    batch = drawn_batch(trainer, dataset, 8)
    told = method.condition(batch, trainer.run.G, torch.Generator().manual_seed(0))
    again = method.condition(batch, trainer.run.G, torch.Generator().manual_seed(1))
    assert torch.equal(told.h, again.h)
    fakes = method.fake_condition(batch, trainer.run.G, torch.Generator().manual_seed(0))
    assert not torch.equal(told.h, fakes.h)


def test_sigma_per_sample_is_uniform_and_told(trainer_of: Any) -> None:
    trainer, dataset = trainer_of("dicgan_demo", sigma="uniform:0.6")
    run = trainer.run
    batch = drawn_batch(trainer, dataset, 64)
    told = run.conditioning.condition(batch, run.G, torch.Generator().manual_seed(0))
    assert told.sigma.shape == (64,)
    assert 0.2 < told.sigma.mean() < 0.4
    assert told.sigma.max() < 0.6
    torch.nn.init.normal_(run.G.modulation.leave.weight)
    z = torch.randn(64, run.G.z_dim)
    run.G.eval()
    plain, other = (run.G(z, h=told.h, sigma=sigma) for sigma in (told.sigma, told.sigma.flip(0)))
    assert not torch.allclose(plain, other)
    # At sampling one sigma holds for all; by default the largest.
    drawn = run.conditioning.told(told.f[:2], None, None, torch.zeros(2, 4, 1, 1))
    torch.testing.assert_close(drawn.h, 0.8 * told.f[:2])


@pytest.mark.parametrize(("text", "parsed"), [
    (0.3, (0.3, None, False)), ("auto:5", (0.0, 5.0, False)), ("uniform:0.5", (0.5, None, True))])
def test_forms_of_sigma(text: Any, parsed: tuple) -> None:
    assert parse_sigma(text) == parsed


@pytest.mark.parametrize("text", ["auto:x", "auto:1", "auto:0.5", "uniform:1", "uniform:0", "uniform:-1", "half",
                                  "uniform", 1.0])
def test_other_sigmas_are_refused(text: Any) -> None:
    with pytest.raises(UserError, match="--sigma"):
        parse_sigma(text)
