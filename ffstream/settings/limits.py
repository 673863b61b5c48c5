"""Rules for the values of settings, which are written beside their defaults, and the check of these rules."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import field
from typing import Any, TypeVar, get_type_hints

from ffstream.errors import ConfigError, nearest
from ffstream.ground.units import parse_bytes, parse_seconds

# The largest magnitudes allowed: what 64 bits hold. Comparing with them refuses nan and infinity as well.
_LARGEST_INTEGER, _LARGEST_NUMBER = 2**63 - 1, sys.float_info.max
# Rules for texts of a number and a unit: what reads them, and examples.
_QUANTITIES: dict[str, tuple[Callable[[str], float], str]] = {
    "size": (parse_bytes, "a size such as 512MiB, 1.5GiB or 8GB"),
    "duration": (parse_seconds, "a time such as 30s, 5min or 1h"),
}
_MOST_LETTERS = 120  # characters of a value that an error shows


_Section = TypeVar("_Section", bound=type)


def setting(default: Any, text: str, **rules: Any) -> Any:
    """A dataclass field with a line of help, whose value `check_fields` checks against rules.

    Rules: at_least, above, at_most, below, choices, word (a text that is always allowed), size (a text such as 8GB),
    duration (a text such as 30s). A setting that came `later` than the part that has it is recorded only where it has
    another value than its default, which says what the part did before: so earlier runs stay what they were.
    """
    return field(default=default, metadata={"help": text, **rules})


def documented(section: _Section) -> _Section:
    """Add the settings of a dataclass to its docstring, each with its default and its help."""
    lines = [f"    {name} = {default!r}: {text}" for name, default, text in list_settings(section)]
    section.__doc__ = "\n\n".join([(section.__doc__ or "").rstrip(), "\n".join(["Settings:", "", *lines])])
    return section


def list_settings(section: type) -> list[tuple[str, Any, str]]:
    """The name, the default and the help of each setting of a dataclass, in order; sections in it are left out."""
    fields = dataclasses.fields(section)
    return [(item.name, item.default, item.metadata["help"]) for item in fields if "help" in item.metadata]


def check_fields(section: Any, prefix: str, skipped: Container[str] = ()) -> None:
    """Raise ConfigError for the first field that breaks its type or rules. Integers in float fields become floats."""
    hints = _find_hints(section.__class__)
    for item in dataclasses.fields(section):
        if item.name in skipped:
            continue
        value = getattr(section, item.name)
        problem = _problem(value, hints[item.name], item.metadata)
        if problem:
            joint = "; " if problem.startswith("did you mean") else ", allowed "
            raise ConfigError(f"config {prefix}{item.name}: found {show(value)}{joint}{problem}")
        if isinstance(value, int) and not isinstance(value, bool) and "float" in hints[item.name]:
            object.__setattr__(section, item.name, float(value))  # so that 1 and 1.0 have one fingerprint
        elif isinstance(value, float):
            object.__setattr__(section, item.name, value + 0.0)  # -0.0 becomes 0.0, for the same reason


@functools.cache
def _find_hints(section: type) -> dict[str, str]:
    """The type of each field in words, which takes most of the time of a check to find."""
    return {name: str(hint) for name, hint in get_type_hints(section).items()}


def show(value: Any) -> str:
    """Any value as one line of limited length, for an error."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def _format(number: float) -> str:
    """A limit as users write it: integers in full."""
    short = f"{number:g}"
    return short if float(short) == number and not isinstance(number, int) else str(number)


def _problem(value: Any, hint: str, rules: Mapping[str, Any]) -> str:
    """Which values are allowed, in words; "" if this value is."""
    word = rules.get("word")
    if word is not None and value == word:
        return ""
    if "bool" in hint:
        return "" if isinstance(value, bool) else "true or false"
    if "int" in hint or "float" in hint:
        kind, types = ("a number", (int, float)) if "float" in hint else ("an integer", (int,))
        largest = _LARGEST_NUMBER if "float" in hint else _LARGEST_INTEGER
        signs = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}
        bounds = " and ".join(f"{sign} {_format(rules[rule])}" for rule, sign in signs.items() if rule in rules)
        allowed = f"{kind} {bounds}".rstrip() + (f", or {word!r}" if word is not None else "")
        if isinstance(value, types) and not isinstance(value, bool) and abs(value) > largest:
            return f"{allowed} and <= {_format(largest)}"
        if isinstance(value, bool) or not isinstance(value, types) or not abs(value) <= largest:
            return allowed
        inside = (
            value >= rules.get("at_least", value)
            and value <= rules.get("at_most", value)
            and not ("above" in rules and value <= rules["above"])
            and not ("below" in rules and value >= rules["below"])
        )
        return "" if inside else allowed
    if not isinstance(value, str):
        return "a string"
    if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
        return "a string of whole characters (a path in another encoding cannot be written to config.toml; rename it)"
    for rule, (parse, examples) in _QUANTITIES.items():
        if rules.get(rule) and value != "auto":
            try:
                positive = parse(value) > 0
            except ValueError:
                positive = False
            return "" if positive else f"'auto', or {examples}"
    if "choices" in rules and value not in rules["choices"]:
        return nearest(value, rules["choices"]).removeprefix("allowed: ")
    return ""
