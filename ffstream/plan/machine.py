"""A machine described in one line of text, for plans for machines other than this one."""

from __future__ import annotations

import re

from ffstream.device.accelerator import ANY, CONTEXT_BYTES
from ffstream.errors import ConfigError
from ffstream.ground.units import parse_bytes
from ffstream.plan.plan import INTERPRETER_BYTES, Rates, Resources

_EXAMPLE = "device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"
_FLOPS = re.compile(r"\s*([\d.]+)\s*([GTP])FLOP/s\s*", re.IGNORECASE)
_PREFIXES = {"G": 1e9, "T": 1e12, "P": 1e15}

# A device whose memory speed is not given is assumed to move one byte per hundred operations of its matrix products,
# and the host to start an operator in seven microseconds, as was measured on the machine this was written on.
_FLOPS_A_BYTE = 100
_OPERATOR_S = 7e-6


def parse_machine(text: str) -> Resources:
    """What a run may take on a machine described by a text, and how fast that machine is.

    The text is such as "device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s". A third figure of the device,
    such as 400GB/s, is the speed of its memory. Raises ConfigError.
    """
    parts: dict[str, list[str]] = {}
    for part in text.split(";"):
        name, equals, values = part.partition("=")
        if not equals or name.strip() not in ("device", "h2d", "host", "disk"):
            raise _error(text, f"found {part.strip()!r}")
        parts[name.strip()] = values.split(",")
    counts = {"device": (2, 3), "h2d": (1,), "host": (1,), "disk": (2,)}
    for name, allowed in counts.items():
        if len(parts.get(name, [])) not in allowed:
            raise _error(text, f"found {len(parts.get(name, []))} figures for {name}")
    try:
        device_bytes, host_bytes, disk_bytes = (parse_bytes(parts[name][0]) for name in ("device", "host", "disk"))
        flops_per_s = _parse_flops(parts["device"][1])
        moved = _parse_speed(parts["device"][2]) if len(parts["device"]) == 3 else flops_per_s / _FLOPS_A_BYTE
        loaded = {"host": _parse_speed(parts["h2d"][0]), "disk": _parse_speed(parts["disk"][1])}
    except ValueError as error:
        raise _error(text, str(error)) from error
    loaded["disk"] = min(loaded.values())  # a shard on disk goes through the host
    rates = Rates(flops_per_s, moved, _OPERATOR_S, loaded)
    return Resources(
        ANY, device_bytes, host_bytes, INTERPRETER_BYTES, disk_bytes, context_bytes=CONTEXT_BYTES, rates=rates
    )


def _parse_flops(text: str) -> float:
    found = _FLOPS.fullmatch(text)
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is not a speed of arithmetic, such as 30TFLOP/s")
    return float(found[1]) * _PREFIXES[found[2].upper()]


def _parse_speed(text: str) -> float:
    size, slash, second = text.strip().rpartition("/")
    if not slash or second != "s" or not parse_bytes(size):
        raise ValueError(f"{text!r} is not a speed, such as 12GB/s")
    return float(parse_bytes(size))


def _error(text: str, found: str) -> ConfigError:
    return ConfigError(f"--machine {text!r}: {found}; allowed such as {_EXAMPLE!r}")
