"""Settings of registered parts, and the names of the modules that register them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ffstream.errors import ConfigError, nearest
from ffstream.settings.limits import show
from ffstream.settings.names import KINDS

PARTS = "parts."  # begins the dotted names of registered parts' own settings


def check_parts(settings: Any) -> tuple[tuple[str, Any], ...]:
    """Settings of parts, sorted by name. Raises ConfigError for an unknown kind of part, or a value of a wrong type.

    Which settings a part has is not known here.
    """
    for name, value in dict(settings).items():
        kind, _, key = name.partition(".")
        if kind not in KINDS or not key.isidentifier():
            hint = nearest(kind, KINDS) if kind not in KINDS else f"allowed: {kind}.name_of_the_setting"
            raise ConfigError(f"config {PARTS}{name}: unknown kind of part; {hint}")
        if not isinstance(value, (bool, int, float, str)):
            raise ConfigError(f"config {PARTS}{name}: found {show(value)}, allowed a number, a text, true or false")
    return tuple(sorted(dict(settings).items()))


def check_modules(names: Any) -> tuple[str, ...]:
    """Names of modules. Raises ConfigError for anything else."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"config plugins: found {show(names)}, allowed a list of names of modules")
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"config plugins: found {show(name)}, allowed a name of a module, my_package.my_module")
    return tuple(names)
