"""The original FID network as TensorFlow stored it, ``classify_image_graph_def.pb``, in torchvision's names.

The file is a GraphDef: only its constants are read, nothing in it is run.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from dnnlib import UserError

_STEM = {"conv": "Conv2d_1a_3x3", "conv_1": "Conv2d_2a_3x3", "conv_2": "Conv2d_2b_3x3", "conv_3": "Conv2d_3b_1x1",
         "conv_4": "Conv2d_4a_3x3"}
_BLOCK_A = {
    "conv": "branch1x1", "tower/conv": "branch5x5_1", "tower/conv_1": "branch5x5_2", "tower_1/conv": "branch3x3dbl_1",
    "tower_1/conv_1": "branch3x3dbl_2", "tower_1/conv_2": "branch3x3dbl_3", "tower_2/conv": "branch_pool",
}
_BLOCK_B = {
    "conv": "branch3x3", "tower/conv": "branch3x3dbl_1", "tower/conv_1": "branch3x3dbl_2",
    "tower/conv_2": "branch3x3dbl_3",
}
_BLOCK_C = {
    "conv": "branch1x1", "tower/conv": "branch7x7_1", "tower/conv_1": "branch7x7_2", "tower/conv_2": "branch7x7_3",
    "tower_1/conv": "branch7x7dbl_1", "tower_1/conv_1": "branch7x7dbl_2", "tower_1/conv_2": "branch7x7dbl_3",
    "tower_1/conv_3": "branch7x7dbl_4", "tower_1/conv_4": "branch7x7dbl_5", "tower_2/conv": "branch_pool",
}
_BLOCK_D = {
    "tower/conv": "branch3x3_1", "tower/conv_1": "branch3x3_2", "tower_1/conv": "branch7x7x3_1",
    "tower_1/conv_1": "branch7x7x3_2", "tower_1/conv_2": "branch7x7x3_3", "tower_1/conv_3": "branch7x7x3_4",
}
_BLOCK_E = {
    "conv": "branch1x1", "tower/conv": "branch3x3_1", "tower/mixed/conv": "branch3x3_2a",
    "tower/mixed/conv_1": "branch3x3_2b", "tower_1/conv": "branch3x3dbl_1", "tower_1/conv_1": "branch3x3dbl_2",
    "tower_1/mixed/conv": "branch3x3dbl_3a", "tower_1/mixed/conv_1": "branch3x3dbl_3b", "tower_2/conv": "branch_pool",
}
_BLOCKS = [("5b", _BLOCK_A), ("5c", _BLOCK_A), ("5d", _BLOCK_A), ("6a", _BLOCK_B), ("6b", _BLOCK_C), ("6c", _BLOCK_C),
           ("6d", _BLOCK_C), ("6e", _BLOCK_C), ("7a", _BLOCK_D), ("7b", _BLOCK_E), ("7c", _BLOCK_E)]
_NORM = {"beta": "bias", "gamma": "weight", "moving_mean": "running_mean", "moving_variance": "running_var"}


def scopes() -> dict[str, str]:
    """TensorFlow's scope of every convolution to torchvision's name of it."""
    found = dict(_STEM)
    for k, (name, branches) in enumerate(_BLOCKS):
        scope = f"mixed_{k}" if k else "mixed"
        found |= {f"{scope}/{inner}": f"Mixed_{name}.{outer}" for inner, outer in branches.items()}
    return found


def read_graph(path: str | os.PathLike, remedy: str) -> dict[str, torch.Tensor]:
    """A state dict in torchvision's names and layout; what the graph lacks is absent. `UserError` if it is no graph."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.util.tensor_util import make_ndarray

    graph = GraphDef()
    try:
        with open(path, "rb") as file:
            graph.ParseFromString(file.read())
        constants = {node.name: make_ndarray(node.attr["value"].tensor) for node in graph.node if node.op == "Const"}
    except (DecodeError, OSError, ValueError, TypeError) as error:
        raise UserError(f"--weights {path} can't be read as a TensorFlow graph; {remedy}.") from error
    state: dict[str, np.ndarray] = {}
    for scope, name in scopes().items():
        if f"{scope}/conv2d_params" in constants:
            state[f"{name}.conv.weight"] = constants[f"{scope}/conv2d_params"].transpose(3, 2, 0, 1)
        for inner, outer in _NORM.items():
            if f"{scope}/batchnorm/{inner}" in constants:
                state[f"{name}.bn.{outer}"] = constants[f"{scope}/batchnorm/{inner}"]
    if "softmax/weights" in constants and "softmax/biases" in constants:
        state |= {"fc.weight": constants["softmax/weights"].T, "fc.bias": constants["softmax/biases"]}
    return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}
