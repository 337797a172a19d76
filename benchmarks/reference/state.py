"""Weights from our modules to the plain ones and back: the same names but for spectral norm's."""

from __future__ import annotations

import re

import torch
from torch import nn

# Names that torch's spectral norm gives, and ours.
_NAMES = {"weight_orig": "weight", "weight_u": "u", "weight_v": "v"}


def our_name(name: str) -> str:
    """The name of a plain module's tensor in our modules."""
    return re.sub(r"[^.]+$", lambda found: _NAMES.get(found[0], found[0]), name)


def load_state(net: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Fills all of a plain `net` from the state dict of our module; KeyError where one of its tensors is missing.

    Counters of batches, which nothing depends on, may be missing.
    """
    own = net.state_dict()
    names = [name for name in own if our_name(name) in state or not name.endswith("num_batches_tracked")]
    net.load_state_dict({**own, **{name: state[our_name(name)] for name in names}})
    assert set(state) <= {our_name(name) for name in own}, "the plain module lacks tensors"


def our_state(net: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a plain `net` under our names."""
    return {our_name(name): value for name, value in net.state_dict().items()}


def our_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a plain `net` under our names."""
    return {our_name(name): value for name, value in net.named_parameters()}
