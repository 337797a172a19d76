"""C kernels: how they are compiled, and batch norm with a gate against torch's operations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import run_script

from pg_modules import kernels, norm_gate
from pg_modules.batch_norm import channels_last
from pg_modules.conditional_norm import ConditionalNorm
from pg_modules.layers import NoiseInjection
from pg_modules.stylegan2 import ScaleShift
from pg_modules.winograd import conv3x3
from torch_utils import c_library
from training import logs

needs_compiler = pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or "there are kernels")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A library of one function."""
    path = tmp_path / "source" / "three.c"
    path.parent.mkdir()
    (path.parent / "number.h").write_text("#define NUMBER 3\n")
    path.write_text('#include "number.h"\nint number(void) { return NUMBER; }\n')
    return path


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_where_there_is_a_compiler_there_are_kernels() -> None:
    """Or all tests of them would be left out, whatever is wrong with them."""
    if kernels.wanted():
        assert kernels.missing() == ""


@needs_compiler
def test_a_library_is_made_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    assert c_library.load(source, folder).number() == 3
    made, = folder.iterdir()
    written = made.stat().st_mtime_ns
    assert c_library.load(source, folder).number() == 3
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == [written]
    (source.parent / "number.h").write_text("#define NUMBER 4\n")  # what it includes counts
    assert c_library.load(source, folder).number() == 4
    monkeypatch.setattr(c_library, "_cpu", lambda: "another one")
    c_library.load(source, folder)
    assert len(list(folder.iterdir())) == 3


@needs_compiler
def test_why_there_is_no_library(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    source.write_text("int number(void) { return }\n")
    with pytest.raises(c_library.NoLibrary, match="error"):
        c_library.load(source, folder)
    assert not list(folder.iterdir())  # nothing half-written
    (tmp_path / "file").write_text("")
    source.write_text("int number(void) { return 3; }\n")
    with pytest.raises(c_library.NoLibrary, match="file"):
        c_library.load(source, tmp_path / "file" / "cache")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(c_library.NoLibrary, match="no C compiler: no-such-compiler not found"):
        c_library.load(source, folder)


@pytest.mark.parametrize(("name", "value", "said"), [
    ("DICGAN_KERNELS", "off", "DICGAN_KERNELS=off"), ("CC", "no-such-compiler", "no C compiler")])
def test_everything_works_without_kernels(name: str, value: str, said: str, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("DICGAN_CACHE", str(tmp_path))
    code = ("import torch\nfrom pg_modules import kernels\nfrom pg_modules.fastgan import Generator\n"
            "G = Generator(z_dim=8, img_resolution=32, ngf=16)\n"
            "assert G(torch.zeros(2, 8)).shape == (2, 3, 32, 32)\nprint(kernels.missing())")
    done = run_script("-c", code)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_only_on_and_off_are_known(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICGAN_KERNELS", "no")
    done = run_script("train.py", "--outdir", tmp_path / "runs", "--data", tiny_set, "--cfg", "fastgan_demo")
    assert done.returncode == 2
    assert done.stderr.strip() == "Error: DICGAN_KERNELS=no: set it to on or off, or not at all."
    assert not (tmp_path / "runs").exists()


def test_the_log_says_whether_there_are_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "missing", lambda: "")
    assert logs._about_kernels(torch.device("cpu")) == ", float32 with C kernels"
    monkeypatch.setattr(kernels, "missing", lambda: "no C compiler")
    assert logs._about_kernels(torch.device("cpu")) == ", float32 slower without C kernels (no C compiler)"
    assert logs._about_kernels(torch.device("cuda")) == ""


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (8, 8)])
def test_conditions_keep_the_order_in_memory(size: tuple[int, int]) -> None:
    x = torch.randn(2, 6, 8, 8).contiguous(memory_format=torch.channels_last)
    assert channels_last(ScaleShift(3, 6)(x, torch.randn(2, 3, *size)))
    assert not channels_last(ScaleShift(3, 6)(x.contiguous(), torch.randn(2, 3, *size)))


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@needs_compiler
@pytest.mark.usefixtures("threads")
def test_results_do_not_depend_on_threads() -> None:
    x, weight = torch.randn(3, 32, 17, 18), torch.randn(32, 32, 3, 3)
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        norm = ConditionalNorm(32).train()
        y = norm.gated(last, None, None)
        assert "NormGate" in type(y.grad_fn).__name__
        gradients = torch.autograd.grad(y.square().sum(), (last, norm.norm.weight))
        found.append([y, norm.norm.running_var, *gradients, conv3x3(last.detach(), weight)])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def gated_and_gradients(dtype: torch.dtype, embed: int, h_channels: int, noisy: bool,
                        shape: tuple[int, ...] = (3, 140, 7, 9)) -> dict[str, torch.Tensor]:
    """Gated maps, running moments and all gradients of a norm with weights and inputs of a seed."""
    rng = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=rng, dtype=torch.double).to(dtype)

    norm, noise = ConditionalNorm(shape[1], embed, h_channels).to(dtype), NoiseInjection().to(dtype)
    with torch.no_grad():
        for tensor in [*norm.state_dict().values(), noise.weight]:
            if tensor.is_floating_point():
                tensor.copy_(drawn(*tensor.shape).abs() + 0.1)
    x = (drawn(*shape) * 2 + 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    given, h = drawn(shape[0], embed), drawn(shape[0], h_channels, 1, 1).requires_grad_()
    source, target = drawn(shape[0], 1, *shape[2:]), drawn(shape[0], shape[1] // 2, *shape[2:])
    y = norm.gated(x, given if embed else None, h if h_channels else None, noise if noisy else None,
                   lambda *size: source)
    wanted = {"x": x, **dict(norm.named_parameters()), **({"noise": noise.weight} if noisy else {}),
              **({"h": h} if h_channels else {})}
    gradients = torch.autograd.grad(y, list(wanted.values()), target)
    assert ("NormGate" in y.grad_fn.name()) == norm_gate.usable(norm.norm, x)
    norm.eval()
    with torch.no_grad():
        frozen = norm.gated(x, given if embed else None, h if h_channels else None, noise if noisy else None,
                            lambda *size: source)
    return {"y": y, "in evaluation mode": frozen, "mean": norm.norm.running_mean, "var": norm.norm.running_var,
            **dict(zip(wanted, gradients, strict=True))}


@needs_compiler
@pytest.mark.parametrize(("embed", "h_channels"), [(0, 0), (5, 0), (0, 4), (5, 4)])
@pytest.mark.parametrize("noisy", [True, False])
def test_norm_and_gate_equal_torch(embed: int, h_channels: int, noisy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = gated_and_gradients(torch.double, embed, h_channels, noisy)
    narrow = gated_and_gradients(torch.float, embed, h_channels, noisy)
    monkeypatch.setattr(kernels, "usable", lambda x: False)
    expected = gated_and_gradients(torch.double, embed, h_channels, noisy)
    for name, value in expected.items():
        assert (wide[name] - value).norm() <= 1e-12 * value.norm(), name
        assert (narrow[name] - value).norm() <= 1e-5 * value.norm(), name


@needs_compiler
def test_gates_far_from_zero() -> None:
    x = torch.tensor([-1000.0, -100, -88, -20, 0, 20, 88, 100, 1000])
    rows = torch.stack([torch.ones_like(x), x], dim=1)[None]  # 9 pixels of two channels, gated by the second
    for dtype in (torch.float, torch.double):
        y, one = rows.new_empty(9, dtype=dtype), torch.ones(2, dtype=dtype)
        kernels.call("norm_gate", rows.to(dtype), None, 0.0, torch.zeros(2, dtype=dtype), one, one * 0, 1, y, 1, 9, 1)
        torch.testing.assert_close(y, torch.sigmoid(x.to(dtype)), rtol=1e-6, atol=1e-37)


@needs_compiler
def test_gradients_of_gradients() -> None:
    norm = ConditionalNorm(4).double()
    source = torch.randn(2, 1, 2, 3, dtype=torch.double)

    def form(x: torch.Tensor, weight: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        last = x.contiguous(memory_format=torch.channels_last)
        assert norm_gate.usable(norm.norm, last)
        return norm_gate.norm_gate(norm.norm, last, source, weight, gain, bias)

    sizes = ((2, 4, 2, 3), (1,), (2, 4), (2, 4))
    inputs = [torch.randn(size, dtype=torch.double, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(form, inputs)
    assert torch.autograd.gradgradcheck(form, inputs)


@needs_compiler
def test_when_kernels_gate() -> None:
    last = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    norm = ConditionalNorm(4)
    assert norm_gate.usable(norm.norm, last)
    assert not norm_gate.usable(norm.norm, last.contiguous())
    assert not norm_gate.usable(norm.norm, last.bfloat16())
    norm.eval()
    assert not norm_gate.usable(norm.norm, last)  # with gradients
    with torch.no_grad():
        assert norm_gate.usable(norm.norm, last)
