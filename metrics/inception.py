"""Inception-v3 as FID uses it: the 2015 TensorFlow graph's pooling, 2048 pooled features.

Weights come in the layout of ``pt_inception-2015-12-05`` (the file that pytorch-fid and torch-fidelity share): names
of torchvision's Inception-v3, 1008 classes, no auxiliary head; or as the original graph that it was made of,
``classify_image_graph_def.pb``.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torchvision.models import inception as tv

from dnnlib import UserError
from metrics import inception_graph, weights

RESOLUTION = 299
FEATURE_DIM = 2048
REMEDY = (
    "fetch pt_inception-2015-12-05-6726825d.pth (weights of the release page of github.com/mseitzer/pytorch-fid) or "
    "the original classify_image_graph_def.pb, put it anywhere and name it with --weights FILE; or use --detector "
    "efficientnet_lite2, which needs no download"
)


class _Pooled:
    """An Inception block whose pooling branch differs from torchvision's; the last branch is the pooled one."""

    branch_pool: torch.nn.Module

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """3×3 mean over the pixels that exist: the graph didn't count the padding."""
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        # torchvision's own pooled branch is computed and dropped: one 1×1 convolution per block.
        branches = super()._forward(x)  # type: ignore[misc]
        return [*branches[:-1], self.branch_pool(self.pool(x))]


class _BlockA(_Pooled, tv.InceptionA):
    pass


class _BlockC(_Pooled, tv.InceptionC):
    pass


class _BlockE(_Pooled, tv.InceptionE):
    pass


class _LastBlockE(_Pooled, tv.InceptionE):
    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The graph's last block takes the maximum, and FID depends on it."""
        return F.max_pool2d(x, 3, stride=1, padding=1)


def build_inception() -> tv.Inception3:
    """Inception-v3 in the FID form, weights not loaded, with an identity in place of the classifier.

    Takes ``[N, 3, 299, 299]`` in [-1, 1), returns ``[N, 2048]``.
    """
    net = tv.Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    net.Mixed_5b, net.Mixed_5c, net.Mixed_5d = _BlockA(192, 32), _BlockA(256, 64), _BlockA(288, 64)
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        setattr(net, name, _BlockC(768, width))
    net.Mixed_7b, net.Mixed_7c = _BlockE(1280), _LastBlockE(2048)
    return net


def check_weights(path: str | os.PathLike | None) -> None:
    """`UserError` saying what to fetch when no file is named or it isn't there."""
    weights.check(path, "inception", REMEDY)


def load_inception(path: str | os.PathLike | None) -> tuple[torch.nn.Module, torch.Tensor]:
    """The net of `build_inception` with the weights of `path`, frozen, in eval mode, and its classifier.

    The classifier is ``[1008, 2048]``: the Inception Score takes its class scores without their bias, as the
    original does. Raises `UserError` when the file is absent, unreadable or of another layout.
    """
    check_weights(path)
    assert path is not None
    graph = str(path).lower().endswith(".pb")
    state = inception_graph.read_graph(path, REMEDY) if graph else weights.read_state(path, REMEDY)
    net = build_inception()
    expected = net.state_dict()
    # The file predates BatchNorm's batch counter, which inference doesn't use.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in expected]
    wrong = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    if missing or surplus or wrong:
        first = (missing or surplus or wrong)[0]
        raise UserError(
            f"--weights {path} is not Inception-v3 in the FID layout: {len(missing)} tensors missing, {len(surplus)} "
            f"unknown, {len(wrong)} of another shape (first: {first}); {REMEDY}."
        )
    net.load_state_dict({**expected, **state})
    classifier = net.fc.weight.detach().clone()
    net.fc = torch.nn.Identity()
    return net.eval().requires_grad_(False), classifier
