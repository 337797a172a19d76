"""export.py import-official: networks of the official code come over exactly, and nothing of their files ever runs."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import importlib
import io
import math
import operator
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from official_pickles import (
    FASTGAN,
    FASTGAN_COND,
    PROJECTED_D,
    STYLEGAN2,
    STYLEGAN2_D,
    Gone,
    frozen_network,
    stylegan2_d_tensors,
    stylegan2_tensors,
    write,
)
from test_parity import FOLDER, OUTPUT_TOLERANCE, OWN_FOLDER, fixture, relative

import export
import gen_images
import train
from dnnlib import UserError, construct, content_hash
from pg_modules.backbones import backbone_state, load_backbone
from pg_modules.stylegan2 import Generator
from pg_modules.stylegan2_ops import fir_filter, upfirdn2d_plain
from torch_utils import checkpoint
from training.official.names import own_names, projected_d_names
from training.official.snapshot import import_official
from training.run_state import RunState
from training.sampling import load_gan

CPU = torch.device("cpu")
FORMS = ("pickle", "protocol2", "zip", "legacy")


def official(name: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: set FIXTURES to the folder with the official snapshots")
    return path


def imported(source: Path, tmp_path: Path) -> Any:
    """The generator after an import."""
    import_official(source, tmp_path / "out.pkl")
    return load_gan(tmp_path / "out.pkl", CPU)


# Images equal the official ones.


@torch.no_grad()
def test_official_fastgan_lite(tmp_path: Path) -> None:
    gan = imported(official("official_fastgan_lite.pkl"), tmp_path)
    expected = fixture("official_fastgan_lite_expected.pt")
    assert relative(F.avg_pool2d(gan.G(expected["z"]), 2), expected["image"]) < OUTPUT_TOLERANCE
    assert gan.config["D"]["official_zero_pass"]
    assert gan.progress["cur_nimg"] == 1_234_000


@torch.no_grad()
def test_official_stylegan2(tmp_path: Path) -> None:
    gan = imported(official("official_stylegan2.pkl"), tmp_path)
    check_stylegan2(gan.G, fixture("stylegan2_64.pt"))


def check_stylegan2(net: Any, data: dict[str, Any]) -> None:
    assert relative(net.map(data["z"], truncation=0.5), data["w_truncated_05"]) < OUTPUT_TOLERANCE
    assert relative(net(data["z"], noise="const"), data["image_noise_const"]) < OUTPUT_TOLERANCE
    assert relative(net(data["z"]), data["image_noise_none"]) < OUTPUT_TOLERANCE


def write_fastgan(path: Path, data: dict[str, Any], form: str, **others: Any) -> Path:
    with Gone() as gone:
        classes = FASTGAN_COND if data["cond"] else FASTGAN
        net = gone.network(data["state_dict"], classes, {"": {"img_resolution": data["resolution"], **others}})
        return write(path, {"G": None, "D": None, "G_ema": net}, form)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_fastgan_lite_in_every_container(form: str, tmp_path: Path) -> None:
    data = fixture("fastgan_lite_256.pt", OWN_FOLDER)
    gan = imported(write_fastgan(tmp_path / "net.pkl", data, form), tmp_path)
    assert relative(F.avg_pool2d(gan.G(data["z"]), 2), data["eval_image"]) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("name", ["fastgan_128", "fastgan_lite_cond_256"])
@torch.no_grad()
def test_other_fastgans(name: str, tmp_path: Path) -> None:
    """Blocks that take no part, two convolutions a block, labels (10 of 1000 rows of the table)."""
    data = fixture(f"{name}.pt")
    gan = imported(write_fastgan(tmp_path / "net.pkl", data, "pickle", c_dim=10 if data["cond"] else 0), tmp_path)
    assert gan.config["cfg"] == ("fastgan_lite" if data["lite"] else "fastgan")
    assert gan.conditioning.classes == (10 if data["cond"] else 0)
    c = data["c"][:, :10] if data["cond"] else None
    image = gan.G(data["z"], c)
    assert relative(F.avg_pool2d(image, data["resolution"] // 128), data["eval_image"]) < OUTPUT_TOLERANCE


@torch.no_grad()
def test_g_ema_is_taken_and_source_text_left_alone(tmp_path: Path) -> None:
    data = fixture("stylegan2_64.pt", OWN_FOLDER)
    canary = tmp_path / "canary"
    with Gone(f"open({str(canary)!r}, 'w')") as gone:
        nets = {"G_ema": gone.network(data["state_dict"], STYLEGAN2)}
        nets["G"] = gone.network({name: value + 1 for name, value in data["state_dict"].items()
                                  if not name.endswith("resample_filter")}, STYLEGAN2)
        write(tmp_path / "net.pkl", {**nets, "training_set_kwargs": {"path": "/data/cats\x1b[2J.zip", "xflip": True}})
    gan = imported(tmp_path / "net.pkl", tmp_path)
    check_stylegan2(gan.G, data)
    assert not canary.exists()
    state = checkpoint.load(tmp_path / "out.pkl", "gan")
    assert all(torch.equal(state["G"][name], value + 1) for name, value in state["G_ema"].items())
    assert state["imported"]["file"] == "net.pkl"
    assert state["imported"]["sha256"] == content_hash(tmp_path / "net.pkl")
    assert state["imported"]["trained_on"] == "/data/cats\\x1b[2J.zip"
    assert state["config"]["data"]["mirror"] is True


# Discriminators.


@pytest.mark.parametrize("zero_pass", [True, False])
def test_projected_discriminator(zero_pass: bool, tmp_path: Path) -> None:
    """Heads and projections to the bit, and the statistics of its frozen network."""
    data, d_data = fixture("fastgan_lite_256.pt", OWN_FOLDER), fixture("projected_d_separable.pt", OWN_FOLDER)
    with Gone() as gone:
        tensors = {**frozen_network(zero_pass), **d_data["state_dict"]}
        write(tmp_path / "net.pkl", {
            "G_ema": gone.network(data["state_dict"], FASTGAN), "D": gone.network(tensors, PROJECTED_D),
            "progress": {"cur_nimg": torch.LongTensor([5000])}})
    result = import_official(tmp_path / "net.pkl", tmp_path / "out.pkl")
    state = checkpoint.load(tmp_path / "out.pkl", "gan")
    run = RunState(state["config"], CPU)
    run.load_state_dict(state)  # everything that resuming needs
    expected = own_names(d_data["state_dict"], projected_d_names(True))
    assert all(torch.equal(run.D.state_dict()[name], value) for name, value in expected.items())
    assert run.D.backbone is load_backbone("tf_efficientnet_lite0", official_zero_pass=zero_pass)
    same = backbone_state("tf_efficientnet_lite0", zero_pass)
    assert {name: bool(torch.equal(same[f"bn1.{name}"], tensors[f"feature_network.pretrained.layer0.1.{name}"]))
            for name in ("weight", "running_mean")} == {"weight": True, "running_mean": True}
    assert state["config"]["D"]["official_zero_pass"] is zero_pass
    assert state["progress"]["cur_nimg"] == 5000
    assert result.left_out == set()


def plain_stylegan2_d(state: dict[str, torch.Tensor], img: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    """StyleGAN2-ADA's discriminator as its paper has it, on official names; minibatch statistics over all of four."""
    def lrelu(x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, 0.2) * math.sqrt(2)

    def conv(name: str, x: torch.Tensor, down: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        x = F.pad(x, [weight.shape[2] // 2] * 4)
        if down == 2:
            x = upfirdn2d_plain(x, fir_filter().double(), padding=(1, 1, 1, 1))
        return F.conv2d(x, weight / math.sqrt(weight[0].numel()), state.get(f"{name}.bias"), stride=down)

    def dense(name: str, x: torch.Tensor, rate: float = 1.0) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return F.linear(x, weight * rate / math.sqrt(weight.shape[1]), state[f"{name}.bias"] * rate)

    side = img.shape[2]
    x = lrelu(conv(f"b{side}.fromrgb", img))
    while side > 4:
        y = lrelu(conv(f"b{side}.conv1", lrelu(conv(f"b{side}.conv0", x)), down=2))
        x = (y + conv(f"b{side}.skip", x, down=2)) * math.sqrt(0.5)
        side //= 2
    deviation = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean().expand(len(x), 1, 4, 4)
    x = lrelu(dense("b4.fc", lrelu(conv("b4.conv", torch.cat([x, deviation], dim=1))).flatten(1)))
    x = dense("b4.out", x)
    if c is None:
        return x
    embedded = dense("mapping.embed", c)
    mapped = lrelu(dense("mapping.fc0", embedded / (embedded.square().mean(dim=1, keepdim=True) + 1e-8).sqrt(), 0.01))
    return (x * mapped).sum(dim=1, keepdim=True) / math.sqrt(x.shape[1])


def write_stylegan2(path: Path, classes: int = 0, width: int = 16, **changes: Any) -> dict[str, torch.Tensor]:
    """A StyleGAN2-ADA snapshot of 32 px with z and w of `width`; returns D's tensors. changes: of the content."""
    parts = {"label": classes} if classes else {}
    net = Generator(width, width, parts, img_resolution=32, channel_base=256, channel_max=16)
    tensors = stylegan2_d_tensors(32, 256, 16, classes)
    with Gone("") as gone:
        write(path, {"G": None, "G_ema": gone.network(stylegan2_tensors(net), STYLEGAN2),
                     "D": gone.network(tensors, STYLEGAN2_D, {"b4.mbstd": {"group_size": 4, "num_channels": 1}}),
                     "augment_pipe": None, **changes})
    return tensors


@pytest.mark.parametrize("classes", [0, 3])
@torch.no_grad()
def test_stylegan2_discriminator(classes: int, tmp_path: Path) -> None:
    tensors = write_stylegan2(tmp_path / "net.pkl", classes)
    import_official(tmp_path / "net.pkl", tmp_path / "out.pkl")
    state = checkpoint.load(tmp_path / "out.pkl", "gan")
    assert state["config"]["cfg"] == "stylegan2_ada"
    net = construct(state["config"]["D"]).double()
    net.load_state_dict(state["D"])
    img, c = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    told = c if classes else None
    expected = plain_stylegan2_d({name: value.double() for name, value in tensors.items()}, img, told)
    torch.testing.assert_close(net(img, told), expected, rtol=1e-9, atol=1e-9)


# What the result is good for.


def invoke(command: Any, *args: str | Path) -> Any:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def error_line(result: Any) -> str:
    """The one line that a command says to bad input."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0]


def test_command_line(tmp_path: Path) -> None:
    """The table, then images; a second import to the same place is refused."""
    data = fixture("fastgan_lite_256.pt", OWN_FOLDER)
    source, dest = write_fastgan(tmp_path / "net.pkl", data, "pickle"), tmp_path / "out.pkl"
    done = invoke(export.main, "import-official", source, "--dest", dest)
    assert done.exit_code == 0, done.output
    row = next(line for line in done.output.splitlines() if line.startswith("G_ema"))
    trained = sum(value.numel() for name, value in data["state_dict"].items()
                  if not name.endswith(("_u", "_v", "_mean", "_var", "_tracked")))
    assert row.split() == ["G_ema", "Generator", "(FastganSynthesis)", "256", f"{trained:,}", "64", "none", "yes"]
    assert content_hash(source) in done.output
    assert "no discriminator" in done.output
    assert "data set is unknown" in done.output
    images = invoke(gen_images.main, "--network", dest, "--seeds", "0", "--outdir", tmp_path / "out", "--device", "cpu")
    assert images.exit_code == 0, images.output
    assert (tmp_path / "out" / "seed0000.png").is_file()
    assert "choose another name" in error_line(invoke(export.main, "import-official", source, "--dest", dest))


def test_generator_alone_is_not_trained_on(tiny_set: Path, tmp_path: Path) -> None:
    write_stylegan2(tmp_path / "net.pkl", D=None)
    run_dir = tmp_path / "run"
    result = import_official(tmp_path / "net.pkl", run_dir / "network-snapshot-000000.pkl")
    assert result.discriminator is None
    line = error_line(invoke(train.main, "--outdir", tmp_path / "runs", "--data", tiny_set, "--cfg", "stylegan2",
                             "--init-from", run_dir / "network-snapshot-000000.pkl"))
    assert "--init-from" in line
    assert "imported" in error_line(invoke(train.main, "--resume", run_dir))


def test_training_goes_on_with_the_flags_that_are_named(tiny_set: Path, tmp_path: Path) -> None:
    write_stylegan2(tmp_path / "net.pkl", width=512)
    done = invoke(export.main, "import-official", tmp_path / "net.pkl", "--dest", tmp_path / "out.pkl")
    line = next(line for line in done.output.splitlines() if line.startswith("Training: "))
    flags = line.partition("SET.zip ")[2].split()
    assert flags[:2] == ["--cfg", "stylegan2_ada"]
    dry = invoke(train.main, "--outdir", tmp_path / "runs", "--data", tiny_set, "--dry-run", "--device", "cpu", *flags)
    assert dry.exit_code == 0, dry.output
    write_stylegan2(tmp_path / "narrow.pkl")
    done = invoke(export.main, "import-official", tmp_path / "narrow.pkl", "--dest", tmp_path / "narrow-out.pkl")
    assert "no flags for networks of these sizes" in done.output


@pytest.mark.parametrize("alone", [True, False])
def test_without_g_ema_g_is_taken(alone: bool, tmp_path: Path) -> None:
    """A snapshot's G, or a file that is nothing but a generator."""
    with Gone() as gone:
        net = stylegan2_network(gone)
        write(tmp_path / "net.pkl", net if alone else {"G": net})
    result = import_official(tmp_path / "net.pkl", tmp_path / "out.pkl")
    assert any("no G_ema" in note for note in result.notes) != alone
    state = checkpoint.load(tmp_path / "out.pkl", "gan")
    const = net.synthesis.b4.const
    assert torch.equal(state["G_ema"]["blocks.4.const"], const)
    assert torch.equal(state["G"]["blocks.4.const"], const)


# Networks of other kinds.


def stylegan2_network(gone: Gone, **attributes: Any) -> Any:
    net = Generator(8, 8, img_resolution=32, channel_base=64, channel_max=8)
    return gone.network(stylegan2_tensors(net), STYLEGAN2, {"mapping.fc0": attributes} if attributes else None)


def refusal(path: Path) -> str:
    """The one-line message with which a file is refused, of which nothing is written."""
    dest = path.parent / "refused.pkl"
    with pytest.raises(UserError) as caught:
        import_official(path, dest)
    assert not dest.exists()
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    data, path = fixture("fastgan_lite_256.pt", OWN_FOLDER)["state_dict"], tmp_path / "net.pkl"

    def said(tensors: dict[str, torch.Tensor], classes: dict[str, str], **content: Any) -> str:
        with Gone() as gone:
            write(path, {"G_ema": gone.network(tensors, classes), **content})
        return refusal(path)

    assert "BigSynthesis" in said(data, {**FASTGAN, "synthesis": "BigSynthesis"})
    assert "synthesis.extra.weight" in said({**data, "synthesis.extra.weight": torch.ones(1)}, FASTGAN)
    missing = {name: value for name, value in data.items() if not name.startswith("synthesis.se_64.main.3")}
    assert "skips.64.conv2" in said(missing, FASTGAN)
    assert "StyleGAN3" in said({"synthesis.input.weight": torch.ones(1)}, STYLEGAN2)
    by_turns = {**data, "synthesis.feat_8.5.weight_orig": torch.ones(1)}
    assert "first version of Projected GAN" in said(by_turns, FASTGAN)
    with Gone() as gone:
        write(path, {"G_ema": stylegan2_network(gone, bias_gain=1)})
    assert "mapping.fc0.bias_gain" in refusal(path)
    with Gone() as gone:
        net = stylegan2_network(gone)
        net.synthesis.b8.register_buffer("resample_filter", torch.ones(4, 4) / 16)
        write(path, {"G_ema": net})
    assert "synthesis.b8.resample_filter" in refusal(path)
    with Gone() as gone:
        write(path, {"D": gone.network({"x": torch.ones(1)}, {"": "Discriminator"})})
    assert "no generator" in refusal(path)


def test_other_discriminators_are_left_out(tmp_path: Path) -> None:
    data = fixture("fastgan_lite_256.pt", OWN_FOLDER)["state_dict"]
    heads = fixture("projected_d_separable.pt", OWN_FOLDER)["state_dict"]
    frozen = frozen_network(True)
    other = {name: value * 1.5 if value.is_floating_point() else value for name, value in frozen.items()}
    for number, (tensors, classes, reason) in enumerate([
            ({"x": torch.ones(1)}, {"": "PatchGAN"}, "PatchGAN"),
            ({**other, **heads}, PROJECTED_D, "frozen network isn't the published"),
            ({**frozen, **heads, "discriminator.mini_discs.0.extra": torch.ones(1)}, PROJECTED_D, "mini_discs.0.extra"),
            (stylegan2_d_tensors(64, 256, 16), STYLEGAN2_D, "StyleGAN2 discriminator beside a FastGAN")]):
        with Gone() as gone:
            write(tmp_path / f"{number}.pkl", {
                "G_ema": gone.network(data, FASTGAN), "D": gone.network(tensors, classes)})
        result = import_official(tmp_path / f"{number}.pkl", tmp_path / f"{number}-out.pkl")
        assert result.left_out == {"D"}
        assert any(reason in note for note in result.notes), result.notes


def test_files_of_other_kinds(tiny_set: Path, tmp_path: Path) -> None:
    write_stylegan2(tmp_path / "net.pkl", D=None)
    import_official(tmp_path / "net.pkl", tmp_path / "own.pkl")
    assert "already is a checkpoint of this project" in refusal(tmp_path / "own.pkl")
    assert "zip archive" in refusal(tiny_set)
    state = {"synthesis.weight": torch.ones(2), "mapping.weight": torch.ones(2)}
    for form in FORMS:
        assert "state dict" in refusal(write(tmp_path / f"{form}.pkl", state, form))
    assert "state dict" in refusal(write(tmp_path / "both.pkl", {"G": state, "D": state}))
    assert "no generator" in refusal(write(tmp_path / "numbers.pkl", [1, 2.0, None]))
    tensorflow = b"cdnnlib.tflib.network\nNetwork\n)\x81}X\x01\x00\x00\x00vK\x04sb"
    (tmp_path / "tf.pkl").write_bytes(b"\x80\x04" + 3 * tensorflow + b"\x87.")
    assert "TensorFlow" in refusal(tmp_path / "tf.pkl")
    for name, content, said in (("empty.pkl", b"", "empty"), ("text.pkl", b"\x89PNG or so\n", "is no snapshot"),
                                ("half.pkl", (tmp_path / "net.pkl").read_bytes()[:-9000], "truncated")):
        (tmp_path / name).write_bytes(content)
        assert said in refusal(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        import_official(tmp_path / "nowhere.pkl", tmp_path / "x.pkl")


# Nothing runs.


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def hostile(canary: str) -> dict[str, tuple[Any, str]]:
    """Pickles that would make the file `canary`, and what their refusal must name."""
    shell, python = f"touch {canary}", f"open({canary!r}, 'w')"
    text = f"X{chr(len(shell))}\0\0\0{shell}".encode()
    evil = pickle.dumps(Calls(os.system, shell))
    state = b"}X\x08\x00\x00\x00__call__cposix\nsystem\ns"
    return {
        "os.system": (Calls(os.system, shell), f"{os.name}.system"),
        "eval": (Calls(eval, python), ".eval"),
        "exec": (Calls(exec, python), ".exec"),
        "partial": (Calls(functools.partial(os.system, shell)), "functools.partial"),
        "getattr": (Calls(getattr, shell, "join"), ".getattr"),
        "attrgetter": (Calls(operator.attrgetter("system"), 1), "operator.attrgetter"),
        "import": (Calls(importlib.import_module, "this"), "importlib.import_module"),
        "torch.load": (Calls(torch.load, "x"), "torch.serialization.load"),
        "within a network": ({"G_ema": OrderedDict(hooks=[Calls(os.system, shell)])}, f"{os.name}.system"),
        "dotted name": (b"\x8c\x0bcollections\x8c\x1cOrderedDict.__init__.__doc__\x93.",
                        "collections.OrderedDict.__init__.__doc__"),
        "method of a layer": (b"\x8c\x10torch.nn.modules\x8c\x0aModule.to_\x93.", "torch.nn.modules.Module.to_"),
        "call of a stranger": (b"cpandas.io.pickle\nread_pickle\n" + text + b"\x85R.", "pandas.io.pickle.read_pickle"),
        "new process": (b"csubprocess\nPopen\n" + text + b"\x85\x81.", "subprocess.Popen"),
        "instance of a function": (b"ctorch._utils\n_rebuild_parameter\n)\x81.", "torch._utils._rebuild_parameter"),
        "copyreg": (b"ccopyreg\n_reconstructor\n(csubprocess\nPopen\nc__builtin__\nobject\nNtR.", "subprocess.Popen"),
        "attribute of a function": (b"ctorch._utils\n_rebuild_parameter\n" + state + b"b.", f"{os.name}.system"),
        "attribute of a class": (b"cvanished\nThing\n}X\x01\x00\x00\x00aK\x01sb.", "no instance"),
        "extension": (b"\x82\xf0.", "EXT1"),
        "old instance": (b"(" + text + b"ios\nsystem\n.", "INST"),
        "old object": (b"(cvanished\nThing\n" + text + b"o.", "OBJ"),
        "keyword arguments": (b"cvanished\nThing\n)}\x92.", "NEWOBJ_EX"),
        "persistent identifier": (b"Px\n.", "PERSID"),
        "call of a value": (text + text + b"\x85R.", "no function"),
        "pickle in a storage": (b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(evil)) + evil
                                + b"\x85R.", f"{os.name}.system"),
        "another encoding": (b"c_codecs\nencode\n(" + text + b"X\x05\x00\x00\x00rot13tR.", "rot13"),
        "terminal codes": (b"cos\n\x1b[2Jsystem\n.", "os.\\x1b[2Jsystem"),
    }


@pytest.mark.parametrize("trick", sorted(hostile("")))
def test_hostile_pickles_are_refused_by_name(trick: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content, name = hostile(str(canary))[trick]
    path = tmp_path / "net.pkl"
    if isinstance(content, bytes):
        copyreg.add_extension("os", "system", 0xF0)
        try:
            path.write_bytes(b"\x80\x04" + content)
            assert name in refusal(path)
        finally:
            copyreg.remove_extension("os", "system", 0xF0)
    else:
        for form in FORMS:
            assert name in refusal(write(path, content, form))
    assert not canary.exists()


def test_the_canary_would_appear(tmp_path: Path) -> None:
    """The tricks above do work on an unpickler that trusts its file."""
    pickle.loads(pickle.dumps(hostile(str(tmp_path / "canary"))["os.system"][0]))
    assert (tmp_path / "canary").exists()


def test_bombs_are_defused(tmp_path: Path) -> None:
    """Small files that ask for much memory, time or depth; each is over in a moment, or this test is."""
    many, path = 100_000, tmp_path / "bomb.pkl"
    text = b"B" + struct.pack("<I", many) + b"a" * many
    storage = io.BytesIO()
    torch.save(torch.FloatStorage(4), storage, _use_new_zipfile_serialization=False)
    raw = storage.getvalue()
    tensor = (b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(raw))
              + raw + b"\x85RK\x00%s%sI00\nNtR")
    large, still = b"(" + b"J\x00\x00\x00\x10" * 4 + b"t", b"(K\x00K\x00K\x00K\x00t"
    words = b"".join(b"X\x05\x00\x00\x00%05dN" % k for k in range(2000))
    for content, said in [
        (b"N" * 1_100_000 + b".", "steps"),
        (b"}" + b")" + b"\x85" * 200_000 + b"Ns.", "key"),
        (b"}(" + b"".join(b"\x8a\x0a%sN" % (k * (2**61 - 1)).to_bytes(10, "little") for k in range(9)) + b"u.", "key"),
        (b"Np99999999999999999999\n.", "memo"),
        (b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc.", "truncated"),
        (b"\x8a\xff.", "truncated"),
        (b"c_codecs\nencode\nq\x000X" + text[1:] + b"q\x010X\x06\x00\x00\x00latin1q\x020("
         + b"h\x00h\x01h\x02\x86R" * 9 + b"l.", "over and over"),
        (b"}q\x00(" + words + b"u0cvanished\nThing\nq\x010(" + b"h\x01)\x81h\x00b" * 2000 + b"l.", "steps"),
        (b"}X\x05\x00\x00\x00G_ema" + tensor % (large, still) + b"s.", "state dict"),
    ]:
        path.write_bytes(b"\x80\x04" + content)
        assert said in refusal(path), content[:40]


def test_networks_that_no_file_should_hold(tmp_path: Path) -> None:
    """Repeated rows, infinite numbers, one storage for many tensors, and networks that contain themselves."""
    data, path = fixture("fastgan_lite_256.pt", OWN_FOLDER)["state_dict"], tmp_path / "net.pkl"
    name = "synthesis.feat_8.2.weight"
    with Gone() as gone:
        write(path, {"G_ema": gone.network({**data, name: torch.zeros(1).expand(data[name].shape)}, FASTGAN)})
    assert "gaps or repetitions" in refusal(path)
    with Gone() as gone:
        write(path, {"G_ema": gone.network({**data, name: data[name] / 0}, FASTGAN)})
    assert "aren't finite" in refusal(path)
    shared = torch.zeros(10_000)
    with Gone() as gone:
        write(path, {"G_ema": gone.network({f"w{k}": shared for k in range(9)}, FASTGAN)}, "zip")
    assert "larger than the file" in refusal(path)
    with Gone() as gone:
        net = gone.network(data, FASTGAN)
        net.synthesis.add_module("again", net)
        write(path, {"G_ema": net})
    assert "without end" in refusal(path)
    with Gone() as gone:
        inner = gone.network({"x": torch.ones(1)}, FASTGAN)
        for _ in range(30):
            outer = gone.cls("Part")()
            outer.add_module("left", inner)
            outer.add_module("right", inner)
            inner = outer
        write(path, {"G_ema": inner})
    assert "without end" in refusal(path)


def mutated(data: bytes, rng: random.Random, start: int) -> bytes:
    """`data` with one to four changes, half of them at most 4,000 bytes behind `start`, or cut short."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(start, start + 4000) if rng.random() < 0.5 else rng.randrange(len(data))
        place = min(place, len(changed) - 1)
        kind = rng.randrange(6)
        if kind < 3:
            changed[place] = rng.randrange(256)
        elif kind == 3:
            del changed[place:place + rng.randint(1, 300)]
        elif kind == 4:
            changed[place:place] = changed[place:place + rng.randint(1, 300)]
        else:
            del changed[rng.randrange(1, len(changed) + 1):]
    return bytes(changed)


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_mutated_files_are_one_line(form: str, tmp_path: Path) -> None:
    """100 random changes for each container; a file that still is a snapshot is imported."""
    rng, path, refused = random.Random(7), tmp_path / "net.pkl", 0
    with Gone() as gone:
        write(path, {"G_ema": stylegan2_network(gone), "progress": {"cur_nimg": 1}}, form)
    original = path.read_bytes()
    with zipfile.ZipFile(path) if form == "zip" else contextlib.nullcontext() as archive:
        parts = {name: archive.read(name) for name in archive.namelist()} if archive else {}
    pickled = next((name for name in parts if name.endswith("data.pkl")), "")
    for number in range(100):
        if parts and number % 2:  # a sound archive with a broken pickle: checksums find all other changes
            with zipfile.ZipFile(path, "w") as repacked:
                for name, part in parts.items():
                    repacked.writestr(name, mutated(part, rng, 0) if name == pickled else part)
        else:
            path.write_bytes(mutated(original, rng, original.index(b"G_ema")))
        message = ""
        try:
            import_official(path, tmp_path / f"{number}.pkl")
        except UserError as error:
            message = error.message
        refused += bool(message)
        assert "\n" not in message
        assert (tmp_path / f"{number}.pkl").exists() == (not message)
    assert refused > 70
