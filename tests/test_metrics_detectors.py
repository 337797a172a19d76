"""Detectors from weights that the user brings: Inception's original graph, SwAV, CLIP and timm networks by name.

The files are random ones of the published layouts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT

from dnnlib import UserError, content_hash
from metrics.detectors import check_detector, check_not_own, load_detector, resize_images
from metrics.inception import build_inception, load_inception
from metrics.inception_graph import scopes
from metrics.timm_detectors import KNOWN, Known

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 40), dtype=np.uint8))


def scaled(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    x = resize_images(IMAGES, side) / 255
    return (x - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# Inception.


def as_graph(state: dict[str, torch.Tensor]) -> bytes:
    """The original's file: constants of a frozen graph, convolutions as height, width, in, out."""
    graph = GraphDef()

    def add(name: str, value: torch.Tensor) -> None:
        array = np.ascontiguousarray(value.numpy(), np.float32)
        node = graph.node.add(name=name, op="Const")
        tensor = TensorProto(dtype=DT_FLOAT, tensor_content=array.tobytes())
        for side in array.shape:
            tensor.tensor_shape.dim.add(size=side)
        node.attr["value"].tensor.CopyFrom(tensor)

    for scope, name in scopes().items():
        add(f"{scope}/conv2d_params", state[f"{name}.conv.weight"].permute(2, 3, 1, 0))
        for theirs, ours in (("beta", "bias"), ("gamma", "weight"), ("moving_mean", "running_mean"),
                             ("moving_variance", "running_var")):
            add(f"{scope}/batchnorm/{theirs}", state[f"{name}.bn.{ours}"])
        graph.node.add(name=f"{scope}/Conv2D", op="Conv2D")
    add("softmax/weights", state["fc.weight"].T)
    add("softmax/biases", state["fc.bias"])
    return graph.SerializeToString()


def test_inception_of_the_original_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {key: value for key, value in build_inception().state_dict().items() if "num_batches" not in key}
    content = as_graph(state)
    (tmp_path / "classify_image_graph_def.pb").write_bytes(content)
    net, classifier = load_inception(tmp_path / "classify_image_graph_def.pb")
    loaded = net.state_dict()
    assert {key for key in loaded if "num_batches" not in key} == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(loaded[key], state[key]) for key in state if not key.startswith("fc."))
    assert torch.equal(classifier, state["fc.weight"])
    (tmp_path / "half.pb").write_bytes(content[:2_000_000])
    (tmp_path / "empty.pb").write_bytes(b"")
    with pytest.raises(UserError, match="can't be read as a TensorFlow graph"):
        load_inception(tmp_path / "half.pb")
    with pytest.raises(UserError, match="is not Inception-v3 in the FID layout: 472 tensors missing"):
        load_inception(tmp_path / "empty.pb")


def test_branches_of_the_graph_have_torchvisions_shapes() -> None:
    """Every convolution of the network has one scope, so no tensor can go astray unseen but among equal shapes."""
    names = {name.removesuffix(".conv.weight") for name in build_inception().state_dict() if "conv.weight" in name}
    assert set(scopes().values()) == names
    assert len(scopes()) == len(names) == 94


# timm.


def test_swav_in_its_own_layout(tmp_path: Path) -> None:
    net = timm.create_model("resnet50", num_classes=0)
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    state |= {"module.projection_head.0.weight": torch.zeros(3), "module.prototypes.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "swav.pth.tar")
    detector = load_detector("swav", tmp_path / "swav.pth.tar")
    with torch.inference_mode():
        torch.testing.assert_close(detector(IMAGES), net.eval()(scaled(224, *IMAGENET)), rtol=1e-4, atol=1e-5)
    assert (detector.feature_dim, detector.resolution, detector.head) == (2048, 224, None)
    assert "SwAV-FID" in detector.comparability
    assert detector.weights_hash == content_hash(tmp_path / "swav.pth.tar")


@pytest.mark.parametrize("layout", ["timm", "openai"])
def test_clip_in_both_layouts(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "vit_xsmall_patch16_clip_224"  # CLIP's structure, a tenth of its size
    monkeypatch.setitem(KNOWN, "clip", Known(small, "fetch it", "CLIP-FID", projected=True))
    net = timm.create_model(small, num_classes=32)
    torch.nn.init.zeros_(net.head.bias)
    torch.nn.init.normal_(net.head.weight)
    state = dict(net.state_dict())
    if layout == "openai":
        state = {"visual." + theirs(key): value for key, value in state.items() if key != "head.bias"}
        state["visual.class_embedding"] = state["visual.class_embedding"][0, 0]
        state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
        state["visual.proj"] = state["visual.proj"].T.contiguous()
        state["logit_scale"] = torch.zeros(())
    torch.save(state, tmp_path / "clip.pt")
    detector = load_detector("clip", tmp_path / "clip.pt")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    with torch.inference_mode():
        torch.testing.assert_close(detector(IMAGES), net.eval()(scaled(224, mean, std)), rtol=1e-4, atol=1e-5)
    assert (detector.feature_dim, detector.head) == (32, None)


def theirs(key: str) -> str:
    """OpenAI's name of a tensor of timm's."""
    known = {"cls_token": "class_embedding", "pos_embed": "positional_embedding", "head.weight": "proj",
             "patch_embed.proj.weight": "conv1.weight"}
    if key in known:
        return known[key]
    for ours, name in (("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"), ("attn.qkv.", "attn.in_proj_"),
                       ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
                       ("norm1", "ln_1"), ("norm2", "ln_2")):
        key = key.replace(ours, name)
    return key.replace("norm.", "ln_post.") if key.startswith("norm.") else key


def test_timm_by_name(tmp_path: Path) -> None:
    net = timm.create_model("resnet18", num_classes=7)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pth")
    detector = load_detector("timm:resnet18", tmp_path / "net.pth")
    assert (detector.network, detector.feature_dim) == ("resnet18", 512)
    assert "timm's resnet18" in detector.comparability
    assert detector.head is not None
    with torch.inference_mode():
        logits = net.eval()(scaled(224, *IMAGENET))
    torch.testing.assert_close(detector.head(detector(IMAGES)), logits, rtol=1e-4, atol=1e-5)
    torch.save({**net.state_dict(), "conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="--detector timm:resnet18: its features are not finite"):
        load_detector("timm:resnet18", tmp_path / "nan.pth")(IMAGES)
    torch.save({"fc.weight": torch.zeros(7, 512)}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"does not fit resnet18: 121 tensors missing, 0 unknown"):
        load_detector("timm:resnet18", tmp_path / "part.pth")
    with pytest.raises(UserError, match="timm has no network of this name"):
        load_detector("timm:resnet1", tmp_path / "net.pth")
    with pytest.raises(UserError, match="trained on resnet18 itself"):
        check_not_own("timm:resnet18", "resnet18")


@pytest.mark.parametrize("name", ["swav", "clip", "timm:resnet18", "inception"])
def test_weights_are_asked_for(name: str) -> None:
    with pytest.raises(UserError, match=f"--detector {name} needs its weights: fetch .* --weights FILE"):
        check_detector(name)
    with pytest.raises(UserError, match="--weights nowhere does not exist: fetch"):
        check_detector(name, "nowhere")


def test_class_probabilities_of_the_default_are_the_networks_own() -> None:
    detector = load_detector()
    from pg_modules.backbones import load_backbone

    assert detector.head is not None
    with torch.inference_mode():
        expected = load_backbone("tf_efficientnet_lite2").logits(resize_images(IMAGES, 192) / 127.5 - 1)
    torch.testing.assert_close(F.softmax(detector.head(detector(IMAGES)), 1), F.softmax(expected, 1),
                               rtol=1e-3, atol=1e-6)
