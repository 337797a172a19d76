"""A trial pass before training: how many images fit into memory at once, and how long a run will take."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import psutil
import torch

from training.conditioning.base import Batch
from training.run_state import RunState, image_shape

IMAGES = 2  # of the trial pass


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on `device` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


@dataclass(frozen=True)
class Trial:
    """What a step costs per image: bytes that the largest graph keeps, and seconds for all passes."""

    bytes_per_image: float
    seconds_per_image: float


def try_step(run: RunState) -> Trial:
    """Runs all passes of a step on two black images; the run is as before afterwards."""
    shape = image_shape(run.config)
    batch = Batch(img=torch.zeros(IMAGES, *shape, device=run.device),
                  labels=torch.zeros(IMAGES, dtype=torch.int64, device=run.device),
                  indices=torch.arange(IMAGES), draws=torch.arange(IMAGES))
    stateful = (run.G, run.D, run.d_noise, run.loss)
    before = [copy.deepcopy(part.state_dict()) for part in stateful]
    parameters = {p.data_ptr() for net in (run.G, run.D) for p in net.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rng = torch.Generator().manual_seed(0)
    started = time.monotonic()
    most = 0
    for phase in run.loss.phases(step=1):  # what is only due now and then takes neither more memory nor much time
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            parts = phase.terms(batch, rng)
        most = max(most, sum(kept.values()))
        for part in parts:
            part.loss.backward()
    seconds = time.monotonic() - started
    for part, state in zip(stateful, before, strict=True):
        part.load_state_dict(state)
    for net in (run.G, run.D):
        net.zero_grad(set_to_none=True)
    return Trial(most / IMAGES, seconds / IMAGES)


def fit_batch(batch: int, per_image: float, free: float) -> int:
    """The largest divisor of `batch` (at least 2) whose graph takes at most half of the free memory.

    The other half is left for gradients, optimizer state and temporary results.
    """
    divisors = [size for size in range(batch, 1, -1) if batch % size == 0]
    return next((size for size in divisors if size * per_image <= free / 2), divisors[-1])
