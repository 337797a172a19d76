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


_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager:
    """Mixed precision around a forward pass; `amp` is ``off``, ``bf16`` or ``fp16`` (which needs a `LossScale`)."""
    if amp == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[amp])


def autocast_of_frozen(device: torch.device) -> contextlib.AbstractContextManager:
    """Around a frozen network under `autocast`: on a CPU, whose depthwise convolutions gain nothing by bfloat16, it
    stays in float32 (docs/precision.md)."""
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else contextlib.nullcontext()


def check_amp(device: torch.device, amp: str) -> None:
    """`UserError` if `device` has no arithmetic of the type that `amp` names and would be slower than in float32."""
    if amp == "fp16" and device.type == "cpu" and not (
            torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()):
        raise UserError("--amp fp16: this CPU (or build of torch) has no float16 arithmetic and would take many times "
                        "longer than in float32; use --amp bf16 or off.")
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--amp bf16: this GPU has no bfloat16 arithmetic, only a slow emulation; use --amp fp16 or "
                        "off.")


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x, in float32 if its type is half as wide or less; float64 stays."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x, which may be on the CPU, on `device`; a CUDA device gets it without the CPU waiting for what that still does.

    A plain ``.to(device)`` would wait for everything that the device has been asked to do.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    # Pinned memory is kept by torch until the copy is done.
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


def as_number(value: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """A number, or a tensor of numbers, as a tensor on the device of `like` and in its type; waits for nothing."""
    return sent_like(value, like) if isinstance(value, torch.Tensor) else like.new_full((), value)


def sent_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """x on the device of `like` and in its type, as by `sent`."""
    return sent(x.to(like.dtype), like.device)


def device_description(device: torch.device) -> str:
    """For provenance: ``cpu (2 threads)`` or the GPU's name."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)"
