"""The plain step that speed is compared with is the published one, and ours computes the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import CPU
from test_parity import (
    FOLDER,
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    OWN_FOLDER,
    check_gradients,
    check_log,
    fixture,
    is_parameter,
    relative,
)
from torch import nn

from benchmarks.reference import fastgan, stylegan2
from benchmarks.reference.backbone import Backbone
from benchmarks.reference.discriminator import Discriminator
from benchmarks.reference.state import load_state, our_parameters, our_state
from benchmarks.reference.step import Trainer as PlainTrainer
from benchmarks.reference.step import build_trainer
from training.conditioning.base import Batch
from training.official.names import Rename, fastgan_names, own_names, projected_d_names, stylegan2_names
from training.resolve import resolve
from training.run_state import RunState
from training.training_loop import Trainer

IMAGES, BATCH, SIDE = 6, 4, 64


# Against the recorded numbers of the official modules.


def load_official(net: nn.Module, state: dict[str, torch.Tensor], rename: Rename) -> None:
    """Fills all of `net`; official noise weights of StyleGAN2 have no dimension."""
    load_state(net, {name: torch.atleast_1d(value) for name, value in own_names(state, rename).items()})


def plain_generator(data: dict[str, Any]) -> fastgan.Generator:
    lite, resolution = bool(data["lite"]), data["resolution"]
    net = fastgan.Generator(data["z_dim"], {"label": 1000} if data["cond"] else {}, 512, 0, resolution, data["ngf"],
                            lite, encoder=None)
    load_official(net, data["state_dict"], fastgan_names(lite, resolution))
    return net


def plain_discriminator(data: dict[str, Any]) -> Discriminator:
    net = Discriminator(Backbone(official_zero_pass=True), {"label": 1000} if data["cond"] else {}, 0, 128,
                        separable=True, width=1.0, augment=False, cout=data["cout"])
    load_official(net, data["state_dict"], projected_d_names(separable=True))
    return net.train()


def under_our_names(net: nn.Module) -> Any:
    """`net` as far as `check_gradients` looks at it."""
    return SimpleNamespace(named_parameters=lambda: our_parameters(net).items())


@pytest.mark.parametrize(("name", "folder"), [
    ("fastgan_lite_256", OWN_FOLDER), ("fastgan_128", FOLDER), ("fastgan_lite_cond_256", FOLDER)])
def test_plain_generator_makes_the_official_images(name: str, folder: Path) -> None:
    data = fixture(f"{name}.pt", folder)
    net = plain_generator(data).eval()
    with torch.no_grad():
        image = net(data["z"], data["c"])
    first = data["eval_image_first"]
    assert relative(image[:1, :, : first.shape[2], : first.shape[3]], first) < OUTPUT_TOLERANCE
    assert relative(F.avg_pool2d(image, data["resolution"] // 128), data["eval_image"]) < OUTPUT_TOLERANCE

    mean_square = net.train()(data["z"], data["c"]).square().mean()
    assert mean_square.item() == pytest.approx(data["train_image_mean_square"].item(), rel=OUTPUT_TOLERANCE)
    mean_square.backward()
    check_gradients(under_our_names(net), data, data["train_grad_norms"],
                    [name for name in data["state_dict"] if is_parameter(name)])
    state = our_state(net)
    rename = fastgan_names(bool(data["lite"]), data["resolution"])
    advanced = own_names(data["state_after_train_forward"], rename)
    assert len(advanced) > 10
    for key, value in advanced.items():
        torch.testing.assert_close(state[key], value, rtol=OUTPUT_TOLERANCE, atol=1e-5)


@pytest.mark.parametrize(("name", "folder"), [
    ("projected_d_separable", OWN_FOLDER), ("projected_d_cond_separable", FOLDER)])
def test_plain_discriminator_gives_the_official_logits(name: str, folder: Path) -> None:
    data = fixture(f"{name}.pt", folder)
    net = plain_discriminator(data)
    img = data["image"].repeat_interleave(4, 2).repeat_interleave(4, 3).requires_grad_()
    logits = net(img, data["c"], None, None)
    assert relative(logits.detach(), data["logits"]) < OUTPUT_TOLERANCE
    loss = F.relu(1 - logits[:2]).mean() + F.relu(1 + logits[2:]).mean()
    assert loss.item() == pytest.approx(data["hinge_d_loss"].item(), rel=OUTPUT_TOLERANCE)
    loss.backward()
    assert img.grad is not None
    assert relative(F.avg_pool2d(img.grad, 4), data["image_grad"]) < GRADIENT_TOLERANCE
    heads = [name for name in data["state_dict"] if is_parameter(name) and name.startswith("discriminator.")]
    check_gradients(under_our_names(net), data, data["grad_norms"], heads)


@torch.no_grad()
def test_plain_stylegan2_makes_the_official_images() -> None:
    data = fixture("stylegan2_64.pt", OWN_FOLDER)
    net = stylegan2.Generator(64, 64, 64, 1024, 64, 2)
    load_official(net, data["state_dict"], stylegan2_names)
    net.eval()
    assert relative(net.mapping(data["z"]), data["w"][:, 0]) < OUTPUT_TOLERANCE
    assert relative(net(data["z"]), data["image_noise_none"]) < OUTPUT_TOLERANCE


class StepWithoutAugmentation(PlainTrainer):
    """The plain iteration on recorded z."""

    def __init__(self, data: dict[str, Any]) -> None:
        lite_128 = {"resolution": 128, "lite": 1, "cond": 0, "z_dim": data["z_g"].shape[2], "state_dict": data["G0"],
                    "ngf": data["G0"]["synthesis.to_big.weight_orig"].shape[1]}
        cout = data["D0"]["feature_network.scratch.layer0_ccm.weight"].shape[0]
        config = {"conditioning": {"class_name": "Conditioning", "c_dim": 0}, "loss": {"info_weight": 0.0},
                  "optim": {"glr": data["lr"], "dlr": data["lr"], "g_betas": (0.0, 0.99), "d_betas": (0.0, 0.99),
                            "eps": 1e-8},
                  "run": {"seed": 0, "ema_kimg": 1.0, "ema_rampup": None}}
        super().__init__(config, plain_generator(lite_128),
                         plain_discriminator({"cond": 0, "cout": cout, "state_dict": data["D0"]}))
        self.recorded = iter([z for pair in zip(data["z_g"], data["z_d"], strict=True) for z in pair])

    def draw_z(self, count: int, rng: torch.Generator) -> torch.Tensor:
        return next(self.recorded)


def test_plain_iteration_is_the_official_one_for_six_steps() -> None:
    data = fixture("training_steps_lite_128.pt")
    trainer = StepWithoutAugmentation(data)
    log = []
    for real in data["real"]:
        img, nothing = real.repeat_interleave(4, 2).repeat_interleave(4, 3), torch.full((len(real),), -1)
        trainer.iteration(img, nothing, nothing)
        log.append(torch.tensor([trainer.log[key] for key in ("G", "D_fake", "D_real", "fake", "real")]))
    check_log(torch.stack(log), data["log"])


# Against our path.


@pytest.fixture(params=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """What networks are made of and random numbers are drawn in."""
    torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_dtype(torch.float32)


class Table:
    """Latents by index, in any precision."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self.rows[indices]


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "fastgan": {}, "fastgan_lite": {}, "dicgan": {"latent": (4, 1, 1), "sigma": 0.5}, "icgan": {},
    "stylegan2": {"ngf": None, "w_dim": 16, "cbase": 512, "cmax": 8, "d_input": 96},
    "fastgan with classes": {"cond": True}}


def tiny_config(case: str) -> dict[str, Any]:
    """A preset at small size."""
    data = {"path": "", "name": "random", "resolution": SIDE, "aspect": (1, 1), "channels": 3, "num_images": IMAGES,
            "label_dim": 3 if "classes" in case else 0, "fingerprint": ""}
    options = {"z_dim": 8, "d_input": 64, "f_input": 64, "d_width": 0.125, "batch": BATCH, "batch_gpu": BATCH,
               "metrics": "none", "mirror": False, "ngf": 4, **CONFIGURATIONS[case]}
    config = resolve(case.split()[0], options, data)
    config["D"]["cout"] = 8
    return config


@torch.no_grad()
def alive(run: RunState) -> None:
    """Weights that start at zero get values, and f some axes, so that all of the network matters."""
    for name, tensor in [*run.G.named_parameters(), *run.G.named_buffers()]:
        if not tensor.any() and tensor.is_floating_point() and "bias" not in name and "running" not in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape))
    run.G_ema.load_state_dict(run.G.state_dict())


def twins(case: str, learns: bool) -> tuple[Trainer, PlainTrainer]:
    """Our trainer and the plain one with the same weights and features.

    learns: False makes steps of length 0, since Adam with beta1 = 0 turns rounding into steps of full length.
    """
    config = tiny_config(case)
    if not learns:
        config["optim"] |= {"glr": 0.0, "dlr": 0.0}
    run = RunState(config, CPU)
    alive(run)
    plain = build_trainer(config)
    for name in ("G", "D", "G_ema"):
        load_state(getattr(plain, name), getattr(run, name).state_dict())
    if case == "icgan":
        plain.features = F.normalize(torch.randn(IMAGES, config["G"]["c_parts"]["instance"]), dim=1)
        run.conditioning.table, run.conditioning.total = Table(plain.features), IMAGES
    return Trainer(run, None, Path(), None), plain


def errors(ours: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm, by tensor and "all" together.

    A norm below a thousandth of the largest counts as that: in front of batch norm, biases have gradients of rounding.
    """
    assert len(ours) > 10
    assert ours.keys() == plain.keys()
    norms = torch.stack([value.norm() for value in plain.values()])
    missed = torch.stack([(value - ours[name]).norm() for name, value in plain.items()])
    each = missed / torch.maximum(norms, 1e-3 * norms.max())
    return {**dict(zip(plain, each.tolist(), strict=True)), "all": (missed.norm() / norms.norm()).item()}


def gradients(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}


def without_counters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_iteration_is_the_plain_one(case: str, precision: str) -> None:
    """Losses, gradients, and in float64 all weights, averages and statistics behind them."""
    exact = precision == "float64"
    ours, plain = twins(case, learns=exact)
    run = ours.run
    images = torch.rand(IMAGES, 3, SIDE, SIDE) * 2 - 1
    if case == "dicgan":  # ours tabulates what doesn't change
        run.conditioning.table = Table(run.G.encoder(images))
    indices = torch.arange(BATCH)
    labels = indices % 3 if "classes" in case else torch.full((BATCH,), -1)
    ours.iteration(Batch(images[indices], labels, indices, indices), BATCH)
    plain.iteration(images[indices], labels, indices)
    values = {name: entry["mean"] for name, entry in run.collector.pop().items()}
    for key, name in (("G", "Loss/G/loss"), ("D_fake", "Loss/D/fake"), ("D_real", "Loss/D/real"),
                      ("fake", "Loss/scores/fake"), ("real", "Loss/scores/real")):
        # A mean of logits may be near zero; what counts is their own size, about one.
        rel, small = (1e-9, 1e-12) if exact else (1e-4, 1e-5)
        assert values[name] == pytest.approx(plain.log[key], rel=rel, abs=small), name
    for name in ("G", "D"):
        net, twin = getattr(run, name), getattr(plain, name)
        found = errors(gradients(net.named_parameters()), gradients(our_parameters(twin).items()))
        assert max(found.values()) < 1e-9 if exact else found["all"] < GRADIENT_TOLERANCE, found
    for name in ("G", "D", "G_ema") if exact else ():
        state, twin_state = getattr(run, name).state_dict(), our_state(getattr(plain, name))
        found = errors(without_counters(state), without_counters(twin_state))
        assert max(found.values()) < 1e-9, found
