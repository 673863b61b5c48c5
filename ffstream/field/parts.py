"""The parts that a configuration names, of which some may be a user's own: what a run has to remember of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ffstream.data.sources import SOURCES
from ffstream.errors import ConfigError, RunError, RunMismatchError
from ffstream.field.goodness import GOODNESSES
from ffstream.field.labels import LABEL_METHODS
from ffstream.field.layers import LAYER_KINDS
from ffstream.field.negatives import NEGATIVE_SAMPLERS
from ffstream.field.objectives import OBJECTIVES
from ffstream.field.optimisers import OPTIMISERS
from ffstream.field.similarity import SIMILARITIES
from ffstream.ground.plugins import Untrusted, import_recorded
from ffstream.ground.registry import Registry
from ffstream.settings.config import Config
from ffstream.settings.limits import check_fields
from ffstream.settings.names import KINDS

# By the setting that names one of them.
REGISTRIES: dict[str, Registry[Any]] = {
    "labels.method": LABEL_METHODS,
    "objective.name": OBJECTIVES,
    "objective.goodness": GOODNESSES,
    "objective.similarity": SIMILARITIES,
    "negatives.sampler": NEGATIVE_SAMPLERS,
    "optimiser.name": OPTIMISERS,
    "network.kind": LAYER_KINDS,
}
_DATA = "data"

# Of each foreign part, by "setting=name": the module that registers it, and the digests of the sources that make it.
Record = dict[str, dict[str, Any]]


def complete_parts(config: Config) -> Config:
    """A configuration with the settings of its parts' own written out, so that a run keeps those that were defaults.

    Raises ConfigError for a part that is not registered, or a setting that it does not have or allow.
    """
    found: dict[str, Any] = {}
    for kind, setting in KINDS.items():
        name, given = config.part(setting)
        prefix = f"parts.{kind}."
        if name == "none" and setting == "objective.similarity":
            if given:
                raise ConfigError(
                    f"config {prefix}{next(iter(given))}: found with objective.similarity=none; leave it out"
                )
            continue
        settings = REGISTRIES[setting].make_settings(name, given, prefix)
        if settings is not None:
            check_fields(settings, prefix=prefix)
            found |= {f"{prefix}{item.name}": getattr(settings, item.name) for item in dataclasses.fields(settings)}
    return config.override(found)


def describe_parts(config: Config) -> Record:
    """What is to be remembered of the parts that a configuration names and that do not come with this package."""
    return {
        f"{setting}={name}": _describe(registry, name)
        for setting, registry, name in _list_parts(config)
        if name in registry and not registry.is_built_in(name)
    }


def restore_parts(record: Mapping[str, Any], noun: str, untrusted: Untrusted, *, accept: bool = False) -> None:
    """Have the parts of a run, or of an exported network, registered as they were when it was trained.

    `noun` begins errors, and of what is `untrusted` nothing is imported. Raises RunError for a part
    that is not there, and RunMismatchError for one whose source is another by now, unless `accept` takes it as it is.
    """
    for key, part in record.items():
        setting, _, name = key.partition("=")
        registry = SOURCES if setting == _DATA else REGISTRIES.get(setting)
        if registry is None:
            continue
        words = f"{noun}: needs the {registry.noun} {name!r}"
        if name not in registry:
            import_recorded(part["module"], part["sources"], words, accept=accept, untrusted=untrusted)
            for other in [each for each in part["sources"] if not f"{part['module']}.".startswith(f"{each}.")]:
                if name not in registry:  # registered by a helper, which the module that defines the part calls
                    import_recorded(other, part["sources"], words, accept=accept, untrusted=untrusted)
        if name not in registry:
            raise RunError(f"{words}, which module {part['module']} does not register any more; restore that module")
        if setting != _DATA and not accept:  # data are known by their own digest
            _check_source(registry, name, part, words)


def _check_source(registry: Registry[Any], name: str, part: Mapping[str, Any], words: str) -> None:
    here = registry.sources_of(name)
    differing = [module for module, digest in part["sources"].items() if here.get(module) != digest]
    if differing:
        raise RunMismatchError(
            f"{words}; the source of {differing[0]} is not what it was; restore it, or take it as it is with "
            "--accept-environment"
        )


def _describe(registry: Registry[Any], name: str) -> dict[str, Any]:
    return {"module": registry.modules_of(name)[0], "sources": registry.sources_of(name)}


def _list_parts(config: Config) -> list[tuple[str, Registry[Any], str]]:
    """Setting, registry and name of each part that a configuration names."""
    flat = config.to_flat()
    found = [(setting, registry, str(flat[setting])) for setting, registry in REGISTRIES.items()]
    return [*found, (_DATA, SOURCES, config.data)]
