"""What a configuration can name: recipes and registered parts, with one line on each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ffstream.field.parts import REGISTRIES
from ffstream.ground.registry import Registry
from ffstream.settings.names import KINDS
from ffstream.settings.recipes import DESCRIPTIONS, RECIPES, Setting


@dataclass(frozen=True)
class Catalogue:
    """Recipes by name, each with a line on it and what it sets; by setting, a line on each part that it may name."""

    recipes: dict[str, tuple[str, dict[str, Setting]]]
    parts: dict[str, dict[str, str]]

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        recipes = {name: {"description": line, "sets": sets} for name, (line, sets) in self.recipes.items()}
        return {"recipes": recipes, "parts": self.parts}


def read_catalogue() -> Catalogue:
    """The catalogue of everything that is registered so far, by users too."""
    recipes = {name: (DESCRIPTIONS.get(name, ""), dict(settings)) for name, settings in RECIPES.items()}
    parts = {
        setting: {name: _describe(registry, name) for name in registry} for setting, registry in REGISTRIES.items()
    }
    return Catalogue(recipes, parts)


def _describe(registry: Registry[Any], name: str) -> str:
    """The line on a part, followed by its own settings if it has any."""
    line, settings = registry.describe(name), registry.list_settings(name)
    if not settings:
        return line
    kind = next(kind for kind, setting in KINDS.items() if setting == registry.setting)
    own = ", ".join(f"parts.{kind}.{key} = {default}" for key, default in settings)
    return f"{line} Settings: {own}.".strip()
