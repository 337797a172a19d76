"""Device choice, autocast and thread settings in one place."""

from __future__ import annotations

import contextlib

import torch

from dnnlib import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def select_device(name: str = "auto") -> torch.device:
    """``auto`` takes cuda, then mps, then cpu. A named device that isn't there is a `UserError`."""
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not index.isdigit()):
        raise UserError(f"--device {name}: choose one of {', '.join(DEVICES)} (or cuda:N).")
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return _prepared(torch.device("cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"))
    if not has[kind]:
        raise UserError(f"--device {name}: this machine (or this build of torch) has none; use --device auto.")
    if index and int(index) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: only {torch.cuda.device_count()} CUDA device(s) are here.")
    return _prepared(torch.device(name))


def _prepared(device: torch.device) -> torch.device:
    """float32 means float32 (the official code switches TF32 off), and cuDNN repeats itself."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
    return device


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager:
    """Mixed precision around a forward pass; `amp` is ``off`` or ``bf16``."""
    if amp == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def device_description(device: torch.device) -> str:
    """For provenance: ``cpu (2 threads)`` or the GPU's name."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)"
