"""Which device and which precision a run uses."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from ffstream.device.environment import has_bf16_products
from ffstream.errors import DeviceError

_NAME = re.compile(r"cpu|cuda(:[0-9]{1,4})?")


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that exists. Raises DeviceError."""
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not _NAME.fullmatch(name):
        raise DeviceError(f"device {name!r}: unknown; allowed: auto, cpu, cuda, cuda:N")
    kind, _, number = name.partition(":")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device {name!r}: torch {torch.__version__} finds no CUDA device here; use --device cpu")
        count = torch.cuda.device_count()
        if int(number or 0) >= count:
            raise DeviceError(f"device {name!r}: found {count} CUDA devices, allowed cuda:0 to cuda:{count - 1}")
    return torch.device(name)


def device_name(device: str) -> str:
    """The name of the GPU, or of the processor and the instructions with which it multiplies bf16."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = found.get("flags", "").split()
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx2") if name in flags][:1]
    return " ".join([found.get("model name", platform.machine()), *units])


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn "auto" into "bf16" if the device has instructions that multiply it, else into "fp32". Nothing is timed."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if has_bf16_products() else "fp32"
