"""Registries of named parts: goodnesses, objectives, negative samplers, layer kinds, data sources."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from ffstream.errors import ConfigError, nearest, say_unknown
from ffstream.ground.plugins import digest_sources

T = TypeVar("T")
_PACKAGE = __name__.partition(".")[0]


class Registry(Generic[T]):
    """Maps names to parts. `register(name, part)` adds one, `registry[name]` finds it.

    `setting` is the setting with which a configuration selects a part, such as objective.name. With `keeps_classes`,
    parts are classes that are used as they are: their settings are handed to each instance by those who make it.
    """

    def __init__(self, noun: str, setting: str, *, keeps_classes: bool = False) -> None:
        self.noun, self.setting = noun, setting
        self._keeps_classes = keeps_classes
        self._parts: dict[str, Any] = {}
        self._settings: dict[str, type | None] = {}
        self._made: dict[tuple[str, Any], T] = {}  # instances of parts that have settings of their own
        self._descriptions: dict[str, str] = {}
        self._modules: dict[str, str] = {}
        self._sources: dict[str, dict[str, str]] = {}  # digests of parts from outside, as they were registered

    def register(self, name: str, part: Any, description: str = "", settings: type | None = None) -> Any:
        """Make `part` known as `name`. `description` is one line, for a part without a docstring.

        `settings` is a frozen dataclass of the part's own settings, which `parts.KIND.NAME` sets. `part` is then a
        callable that takes an instance of it and returns the actual part.

        A part may replace an earlier version of itself, as when a cell of a notebook is run again. Raises ConfigError
        for a name that another part has, and for a class that lacks a method.
        """
        if inspect.isabstract(part):
            lacking = ", ".join(sorted(part.__abstractmethods__))
            raise ConfigError(
                f"{self.noun} {name!r}: {part.__name__} lacks {lacking}; define what its base class asks for"
            )
        module = sys._getframe(1).f_globals.get("__name__", "__main__")
        if name in self._parts and not self._is_version(name, part, module):
            raise ConfigError(
                f"{self.noun} {name!r}: is registered already, by {self._modules.get(name)}; choose another name"
            )
        self._parts[name] = part
        self._settings[name] = settings
        self._made = {key: made for key, made in self._made.items() if key[0] != name}
        self._descriptions[name] = description
        self._modules[name] = module
        if not self.is_built_in(name):  # digested now, as the file may be edited while this process runs
            self._sources[name] = {
                key: digest for each in self.modules_of(name) for key, digest in digest_sources(each).items()
            }
        return part

    def of(self, config: Any) -> T:
        """The part that a configuration names, made with the settings given for it there. Raises ConfigError."""
        name, given = config.part(self.setting)
        return self._make(name, self.make_settings(name, given))

    def make_settings(self, name: str, given: Mapping[str, Any], noun: str = "") -> Any:
        """A part's own settings with the values `given`; None if it has no settings.

        Raises ConfigError for names that it does not have; `noun` stands before the name in the error.
        """
        self._check_known(name)
        kind = self._settings.get(name)
        if kind is None and not given:
            return None
        known = [item.name for item in dataclasses.fields(kind)] if kind is not None else []
        for key in given:
            if key not in known:
                hint = nearest(key, known) if known else "it has none"
                raise ConfigError(f"config {noun}{key}: unknown setting of the {self.noun} {name!r}; {hint}")
        assert kind is not None, "what it lacks was refused"
        return kind(**given)

    def _make(self, name: str, settings: Any) -> T:
        if settings is None or self._keeps_classes:
            return cast(T, self._parts[name])
        if (name, settings) not in self._made:
            self._made[name, settings] = self._parts[name](settings)
        return self._made[name, settings]

    def _check_known(self, name: str) -> None:
        if name not in self._parts:
            raise ConfigError(say_unknown(self.setting, self.noun, name, self._parts))

    def _is_version(self, name: str, part: Any, module: str) -> bool:
        """Whether `part` is the registered part itself or, from a module that is run again, another version of it."""
        kind, older = _kind_of(part), _kind_of(self._parts[name])
        is_named = kind == older and kind[0] == module == self._modules[name] and "<" not in kind[1]
        return part is self._parts[name] or (is_named and not self.is_built_in(name))

    def sources_of(self, name: str) -> dict[str, str]:
        """Digests, by module, of the sources that a part was registered from; empty for a part of this package."""
        return self._sources.get(name, {})

    def describe(self, name: str) -> str:
        """The description of a part, or else the first line of its docstring or of its class's docstring."""
        own = inspect.getdoc(self._parts[name]) or ""
        return self._descriptions.get(name) or own.partition("\n")[0]

    def list_settings(self, name: str) -> list[tuple[str, Any]]:
        """Names and defaults of a part's own settings."""
        kind = self._settings.get(name)
        return [] if kind is None else [(item.name, item.default) for item in dataclasses.fields(kind)]

    def is_built_in(self, name: str) -> bool:
        """Whether a part comes with this package."""
        return self._modules.get(name, "__main__").partition(".")[0] == _PACKAGE

    def modules_of(self, name: str) -> list[str]:
        """The module that registered a part, and the module that defines it if that is another."""
        kind = self._parts[name] if isinstance(self._parts[name], type) else type(self._parts[name])
        part: Any = self._parts[name]
        defined = part.__module__ if inspect.isfunction(part) else kind.__module__
        return list(dict.fromkeys([self._modules.get(name, defined), defined]))

    def __getitem__(self, name: str) -> T:
        """The part with default settings. Raises ConfigError, which names the nearest name, when `name` is unknown."""
        return self._make(name, self.make_settings(name, {}))

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)


def _kind_of(part: object) -> tuple[str, str]:
    """The module and the qualified name of a part that is a function or a class, or else of its class."""
    kind = part if inspect.isfunction(part) or isinstance(part, type) else type(part)
    return kind.__module__, kind.__qualname__
