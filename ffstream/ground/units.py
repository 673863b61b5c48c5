"""Sizes and numbers as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_BINARY = {"B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_DECIMAL = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS = _BINARY | _DECIMAL
_TIMES = {"S": 1, "MIN": 60, "H": 3600}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*")
_SHOWN = 40  # characters of an invalid text that a message shows
_MOST_DIGITS = 100  # of a number that is accepted; Python itself reads a few thousand and raises for more


def parse_bytes(text: str) -> int:
    """ "1.5GiB" -> 1610612736; "8GB" is decimal, and a bare number counts bytes. Raises ValueError."""
    return round(_parse_quantity(text, _UNITS, "B", "a size, such as 512MiB, 1.5GiB or 8GB"))


def parse_seconds(text: str) -> float:
    """ "30s" -> 30.0, "5min" -> 300.0, "1.5h" -> 5400.0; a bare number counts seconds. Raises ValueError."""
    return _parse_quantity(text, _TIMES, "S", "a time, such as 30s, 5min or 1h")


def _parse_quantity(text: str, units: Mapping[str, int], default: str, noun: str) -> float:
    """A number with a unit, in any case. Raises ValueError, in which `noun` says what was expected."""
    found = _QUANTITY.fullmatch(text)
    unit = found[2].upper() or default if found else ""
    if found is None or unit not in units:
        raise ValueError(f"{_shorten(text)!r} is not {noun}")
    quantity = float(found[1]) * units[unit]
    if math.isinf(quantity):
        raise ValueError(f"{_shorten(text)!r} is more than can be counted")
    return quantity


def parse_integer(text: str) -> int | None:
    """ "-12" -> -12; None for a text that is no integer in the digits 0 to 9. Raises ValueError for too many digits."""
    if _INTEGER.fullmatch(text) is None:
        return None
    if len(text.strip()) > _MOST_DIGITS:
        raise ValueError(f"{_shorten(text)!r} has {len(text.strip()):,} digits, more than can be counted")
    return int(text)


def format_bytes(num_bytes: float) -> str:
    """3221225472 -> "3.0 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def format_briefly(num_bytes: float) -> str:
    """3221225472 -> "3.0G", for columns: as `format_bytes`, with one letter for KiB, MiB, GiB and TiB."""
    number, unit = format_bytes(num_bytes).split(" ")
    return number if unit == "B" else f"{number}{unit[0]}"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def count(number: int, noun: str) -> str:
    """1 and "layer" -> "1 layer"; 1200 -> "1,200 layers"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
