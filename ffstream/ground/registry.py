"""A named collection: goodnesses, objectives, negative samplers, layer kinds, data sources."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Generic, TypeVar

from ffstream.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to parts. `register(name, part)` adds one, `registry[name]` finds it.

    `setting` is where a configuration names one, such as objective.name.
    """

    def __init__(self, noun: str, setting: str) -> None:
        self._noun, self._setting = noun, setting
        self._parts: dict[str, T] = {}
        self._descriptions: dict[str, str] = {}

    def register(self, name: str, part: T, description: str = "") -> T:
        """Make `part` known as `name`, replacing an earlier one. `description`: a line, for what has no docstring."""
        self._parts[name] = part
        self._descriptions[name] = description
        return part

    def describe(self, name: str) -> str:
        """The description of a part, else the first line of its docstring, which may be that of its class."""
        own = inspect.getdoc(self[name]) or ""
        return self._descriptions.get(name) or own.partition("\n")[0]

    def __getitem__(self, name: str) -> T:
        """Raises ConfigError, naming the nearest known name, when `name` is unknown."""
        if name not in self._parts:
            raise ConfigError(f"config {self._setting}: unknown {self._noun} {name!r}; {nearest(name, self._parts)}")
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)
