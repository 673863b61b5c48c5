"""Which device and which precision a run uses."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from ffstream.device.accelerator import ACCELERATORS, find_accelerator
from ffstream.device.environment import has_bf16_products
from ffstream.errors import DeviceError

_NAME = re.compile(r"([a-z]{1,20})(?::([0-9]{1,4}))?")


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn "auto", "cpu", or a kind of accelerator, such as "cuda" or "cuda:N", into a device. Raises DeviceError."""
    name = str(name)
    if name == "auto":
        found = (kind for kind, misfit in _find_automatic() if misfit is None)
        return torch.device(next(found, "cpu"))
    if name == "cpu":
        return torch.device("cpu")
    parts = _NAME.fullmatch(name)
    accelerator = ACCELERATORS.get(parts[1]) if parts is not None else None
    if parts is None or accelerator is None:
        kinds = ", ".join(f"{kind}, {kind}:N" for kind in ACCELERATORS)
        raise DeviceError(f"device {name!r}: unknown; allowed: auto, cpu, {kinds}")
    count, noun = accelerator.count_devices(), accelerator.kind.upper()
    if not count:
        raise DeviceError(f"device {name!r}: torch {torch.__version__} finds no {noun} device here; use --device cpu")
    if int(parts[2] or 0) >= count:
        kind = accelerator.kind
        raise DeviceError(f"device {name!r}: found {count} {noun} devices, allowed {kind}:0 to {kind}:{count - 1}")
    misfit = accelerator.find_misfit(torch.device(accelerator.kind, int(parts[2] or 0)))
    if misfit is not None:
        raise DeviceError(f"device {name!r}: {misfit}; install that, or use --device cpu")
    return torch.device(name)


def explain_fallback(name: str | torch.device) -> str | None:
    """A warning if "auto" takes the CPU although there is an accelerator, which torch cannot use; None otherwise."""
    misfits = [misfit for _, misfit in _find_automatic()] if str(name) == "auto" else []
    if not misfits or None in misfits:
        return None
    return f"the CPU computes: {misfits[0]}"


def _find_automatic() -> list[tuple[str, str | None]]:
    """The kinds of accelerators that are here and that "auto" may take, each with why torch cannot use it."""
    found = [each for each in ACCELERATORS.values() if each.is_automatic and each.count_devices()]
    return [(each.kind, each.find_misfit(torch.device(each.kind, 0))) for each in found]


def device_name(device: str) -> str:
    """The name of the GPU, or of the processor and the instructions with which it multiplies bf16."""
    on = torch.device(device)
    accelerator = find_accelerator(on)
    if accelerator is not None:
        return accelerator.name(on)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = found.get("flags", "").split()
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx2") if name in flags][:1]
    return " ".join([found.get("model name", platform.machine()), *units])


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn "auto" into the narrowest type that the device has instructions to multiply. Nothing is timed.

    That is bf16 or, on GPUs that lack it, fp16; without either it is fp32. A CPU that lacks bf16 takes fp32.
    """
    if name != "auto":
        return name
    accelerator = find_accelerator(device)
    if accelerator is None:
        return "bf16" if has_bf16_products() else "fp32"
    return next(iter(accelerator.narrow_products(device)), "fp32")
