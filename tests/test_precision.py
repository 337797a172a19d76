"""Every precision makes the step of float32 within what it claims; steps that overflow are left out; few questions."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CPU, tiny
from torch import nn

from dnnlib import UserError
from torch_utils.device import at_least_float32, check_amp
from torch_utils.loss_scale import FIRST, LEAST, PATIENCE, LossScale
from training.compilation import check_compile, compile_parts
from training.conditioning.base import Batch
from training.resolve import resolve
from training.rollback import NonFinite
from training.run_state import RunState
from training.training_loop import Trainer

IMAGES, BATCH, SIDE = 16, 8, 32
FASTGAN = "pg_modules.fastgan.Generator"
SMALL_SCALE = 2.0**8  # nothing overflows at it


def new_trainer(cfg: str, learns: bool = False, **changes: Any) -> Trainer:
    """A tiny run with weights that depend on nothing but the preset; its steps have length 0 unless it `learns`."""
    data = {"path": "", "name": "random", "resolution": SIDE, "aspect": (1, 1), "channels": 3, "num_images": IMAGES,
            "label_dim": 0, "fingerprint": ""}
    sizes = {} if cfg.startswith("stylegan2") else {"ngf": 4}
    config = resolve(cfg, tiny(cfg, batch=BATCH, batch_gpu=BATCH, mirror=False, **sizes, **changes), data)
    if not learns:
        config["optim"] |= {"glr": 0.0, "dlr": 0.0}
    run = RunState(config, CPU)
    if cfg == "dicgan":
        run.G.encoder.fit([images()])
        run.conditioning.table = run.G.encoder(images())
    return Trainer(run, None, Path(), None)


def images() -> torch.Tensor:
    return torch.rand(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def iterate(trainer: Trainer) -> dict[str, float]:
    """One iteration; the means of what was reported."""
    indices = torch.arange(BATCH)
    trainer.iteration(Batch(images()[indices], torch.full((BATCH,), -1), indices, indices), BATCH)
    return {name: entry["mean"] for name, entry in trainer.run.collector.pop().items()}


def gradient(net: nn.Module) -> torch.Tensor:
    """All of the net's gradients, one after the other."""
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def set_scale(trainer: Trainer, value: float) -> None:
    for scale in trainer.run.loss.scales.values():
        scale.value = value


# What is claimed: of losses, of gradients of G and of D. A rounded value on the other side of a kink (mostly a ReLU6 of
# the frozen network) changes a gradient by all of its size, so that errors fall with the root of the rounding's.
CLAIMS = {"bf16": (0.1, 0.8, 0.2), "fp16": (0.02, 0.4, 0.12)}


@pytest.mark.parametrize("cfg", ["fastgan", "dicgan"])
def test_step_of_less_precision(cfg: str) -> None:
    """Losses and ‖Δ‖/‖g‖ are within the claims; G's is smaller in float16 than in bfloat16."""
    exact = new_trainer(cfg)
    expected, of_g = iterate(exact), []
    for amp, (loss_error, *most) in CLAIMS.items():
        ours = new_trainer(cfg, amp=amp)
        set_scale(ours, SMALL_SCALE)
        found = iterate(ours)
        for name in ("Loss/G/loss", "Loss/D/fake", "Loss/D/real"):
            assert abs(found[name] - expected[name]) < loss_error * max(abs(expected[name]), 1), name
        errors = [relative(gradient(getattr(ours.run, net)), gradient(getattr(exact.run, net))) for net in "GD"]
        assert all(1e-4 < error < bound for error, bound in zip(errors, most, strict=True)), (amp, errors)
        of_g.append(errors[0])
    assert of_g[1] < 0.7 * of_g[0]


def test_channels_last_is_the_same_step() -> None:
    exact, ours = new_trainer("fastgan_lite"), new_trainer("fastgan_lite")
    for net in (ours.run.G, ours.run.D):
        net.to(memory_format=torch.channels_last)
    expected, found = iterate(exact), iterate(ours)
    assert found["Loss/G/loss"] == pytest.approx(expected["Loss/G/loss"], rel=1e-4)
    for net in "GD":
        assert relative(gradient(getattr(ours.run, net)), gradient(getattr(exact.run, net))) < 1e-2


WHOLE = pytest.mark.skipif(os.environ.get("TEST_MATRIX") != "whole", reason="a C++ compiler's minutes")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=WHOLE)])
def test_compiled_step(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal up to rounding, under the same names; with torch's own kernels, or those that a compiler has made."""
    if backend == "inductor":
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        try:
            check_compile(FASTGAN, CPU, 1)
        except UserError as error:
            pytest.skip(error.message)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    exact, ours = new_trainer("fastgan_lite"), new_trainer("fastgan_lite")
    compile_parts(ours.run.G)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    expected, found = iterate(exact), iterate(ours)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= graphs + len(ours.run.G.blocks)
    assert found["Loss/G/loss"] == pytest.approx(expected["Loss/G/loss"], rel=1e-4)
    for net in "GD":
        assert relative(gradient(getattr(ours.run, net)), gradient(getattr(exact.run, net))) < 1e-2
    assert ours.run.G.state_dict().keys() == exact.run.G.state_dict().keys()
    new_trainer("fastgan_lite").run.load_state_dict(ours.run.state_dict())


def test_compiling_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="one process"):
        check_compile(FASTGAN, CPU, 2)

    def fails(function: Callable) -> Callable:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(UserError, match=r"--compile: .*\(no compiler\); install"):
        check_compile(FASTGAN, CPU, 1)
    with pytest.raises(UserError, match="is for FastGAN"):
        check_compile("pg_modules.stylegan2.Generator", CPU, 1)
    with pytest.raises(UserError, match="--compile belongs to FastGAN"):
        new_trainer("stylegan2", compile=True)


# Float16 and its scale.


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.run.G.parameters()])


def test_a_step_that_overflows_is_left_out_and_the_scale_kept() -> None:
    trainer = new_trainer("fastgan_lite", learns=True, amp="fp16")
    set_scale(trainer, 2.0**40)
    before = weights(trainer)
    assert iterate(trainer)["Loss/G/scale"] == 2.0**40
    assert torch.equal(weights(trainer), before)
    assert not trainer.run.opt_G.state_dict()["state"]
    assert trainer.run.loss.scales["G"].value == 2.0**39

    resumed = new_trainer("fastgan_lite", learns=True, amp="fp16")
    resumed.run.load_state_dict(trainer.run.state_dict())
    assert resumed.run.loss.scales["G"].value == 2.0**39
    set_scale(trainer, SMALL_SCALE)
    iterate(trainer)
    assert not torch.equal(weights(trainer), before)
    assert trainer.run.loss.scales["G"].steps == 1


def test_gradients_that_never_become_finite_stop_the_run() -> None:
    trainer = new_trainer("fastgan_lite", learns=True, amp="fp16")
    set_scale(trainer, LEAST)
    before = weights(trainer)
    next(trainer.run.G.parameters()).register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFinite, match=r"a gradient is not finite\. G was not updated"):
        iterate(trainer)
    assert torch.equal(weights(trainer), before)


def test_scale_rises_after_patience_and_falls_to_its_least() -> None:
    scale = LossScale()
    for _ in range(PATIENCE - 1):
        scale.stepped()
    assert scale.value == FIRST
    scale.stepped()
    assert scale.value == 2 * FIRST
    falls = 0
    while scale.overflowed():
        falls += 1
    assert (scale.value, 2.0**falls) == (LEAST, 2 * FIRST)


def test_types_are_refused_where_a_device_has_no_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda supported=supported: supported)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported, **_: supported)
        check_amp(CPU, "bf16")
        check_amp(torch.device("cuda"), "fp16")
        for device, amp in ((CPU, "fp16"), (torch.device("cuda"), "bf16")):
            if supported and torch.backends.mkldnn.is_available():
                check_amp(device, amp)
            else:
                with pytest.raises(UserError, match=f"--amp {amp}: this"):
                    check_amp(device, amp)
    with pytest.raises(UserError, match="StyleGAN2"):
        new_trainer("stylegan2", amp="fp16")


def test_only_half_types_are_widened() -> None:
    for narrow in (torch.bfloat16, torch.float16):
        assert at_least_float32(torch.ones(1, dtype=narrow)).dtype == torch.float32
    for wide in (torch.float32, torch.float64):
        assert at_least_float32(torch.ones(1, dtype=wide)).dtype == wide


# Questions to the device.


def test_a_phase_asks_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would wait for a GPU; conditions and random numbers of other presets are asked of the CPU."""
    trainer, asked = new_trainer("fastgan", learns=True), []
    for name in ("__bool__", "__float__", "__int__", "item", "tolist", "cpu", "numpy"):
        plain = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *args: Any, plain: Any = plain, name: str = name) -> Any:
            asked.append(name)
            return plain(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    indices = torch.arange(BATCH)
    batch = Batch(images()[indices], torch.full((BATCH,), -1), indices, indices)
    for _ in range(2):
        asked.clear()
        trainer.iteration(batch, BATCH)
        assert asked == ["tolist", "tolist"]
    assert trainer.run.collector.pop()["Loss/G/loss"]["num"] == 2
    assert "cpu" in asked
