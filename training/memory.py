"""``--batch-gpu auto``: how many images of a batch fit into memory at once."""

from __future__ import annotations

import copy

import psutil
import torch

from training.conditioning.base import Batch
from training.loss import ProjectedGANLoss
from training.run_state import RunState

PROBE = 2  # images of the trial pass


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on `device` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def bytes_per_image(run: RunState, loss: ProjectedGANLoss) -> float:
    """Memory that the graph of a generator step keeps per image, counted in a trial pass.

    The trial's effect on batch statistics and spectral norms is undone.
    """
    resolution = run.config["G"]["img_resolution"]
    batch = Batch(img=torch.zeros(PROBE, 3, resolution, resolution, device=run.device),
                  labels=torch.zeros(PROBE, dtype=torch.int64, device=run.device),
                  indices=torch.arange(PROBE, device=run.device))
    kept: dict[int, int] = {}
    parameters = {p.data_ptr() for net in (run.G, run.D) for p in net.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = [copy.deepcopy(net.state_dict()) for net in (run.G, run.D)]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss.generator_terms(batch, torch.Generator().manual_seed(0))
    for net, state in zip((run.G, run.D), before, strict=True):
        net.load_state_dict(state)
    return sum(kept.values()) / PROBE


def fit_batch(batch: int, per_image: float, free: float) -> int:
    """The largest divisor of `batch` (at least 2) whose graph takes at most half of the free memory.

    The other half is left for gradients, optimizer state and temporary results.
    """
    divisors = [size for size in range(batch, 1, -1) if batch % size == 0]
    return next((size for size in divisors if size * per_image <= free / 2), divisors[-1])
