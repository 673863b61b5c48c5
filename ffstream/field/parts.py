"""The parts that a configuration names, and what a run records of those that a user has added."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

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
from ffstream.settings.layer_list import LayerLine
from ffstream.settings.limits import check_fields
from ffstream.settings.names import KINDS

# Each registry by the setting that names one of its parts.
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

# By "setting=name", for each part that is not built in: the module that registers it, and the digests of its sources.
Record = dict[str, dict[str, Any]]


def complete_parts(config: Config) -> Config:
    """The configuration with every setting of its parts written out, so that a run also records those left at defaults.

    Raises ConfigError for a part that is not registered, or for a setting that the part does not have or allow.
    """
    found: dict[str, Any] = {}
    left_out: set[str] = set()
    for kind, setting in KINDS.items():
        name, given = config.part(setting)
        prefix = f"parts.{kind}."
        if name == "none" and setting == "objective.similarity":
            if given:
                raise ConfigError(
                    f"config {prefix}{next(iter(given))}: is a setting of a similarity term, and "
                    "objective.similarity is none; leave it out"
                )
            continue
        if setting == "network.kind" and config.network.layers:
            if given:
                raise ConfigError(
                    f"config {prefix}{next(iter(given))}: is a setting of layers that are all alike, and "
                    "network.layers lists them; write it there, as in conv64(kernel=5)"
                )
            found["network.layers"] = tuple(str(_complete_line(line)) for line in config.list_layers())
            continue
        settings = REGISTRIES[setting].make_settings(name, given, prefix)
        if settings is not None:
            check_fields(settings, prefix=prefix)
            recorded = _list_recorded(settings)
            found |= {f"{prefix}{key}": value for key, value in recorded.items()}
            left_out |= {f"{kind}.{key}" for key in given.keys() - recorded.keys()}
    if left_out:
        config = dataclasses.replace(config, parts={key: v for key, v in config.parts if key not in left_out})
    completed = config.override(found)
    if not GOODNESSES.is_built_in(config.objective.goodness):
        _check_goodness(completed)
    return completed


def _complete_line(line: LayerLine) -> LayerLine:
    """A layer of a list with every option of its kind written out. Raises ConfigError for one that it does not have."""
    noun = f"network.layers: {line.kind} {line.width}: "
    settings = LAYER_KINDS.make_settings(line.kind, line.kind_options, noun)
    if settings is None:
        return line
    check_fields(settings, prefix=noun)
    of_training = {key: value for key, value in line.options if key not in line.kind_options}
    return LayerLine(line.kind, line.width, tuple(sorted((of_training | _list_recorded(settings)).items())))


def _list_recorded(settings: Any) -> dict[str, Any]:
    """A part's own settings as a run records them, without those that say what the part did before it had them."""
    return {
        item.name: value
        for item in dataclasses.fields(settings)
        if (value := getattr(settings, item.name)) != item.default or not item.metadata.get("later")
    }


def _check_goodness(config: Config) -> None:
    """Raise ConfigError for a goodness of a user's own that does not give one number for each row."""
    value = GOODNESSES.of(config).value(torch.ones(2, 3))
    if getattr(value, "shape", None) != (2,):
        found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ConfigError(
            f"config objective.goodness: value of {config.objective.goodness!r} gives {found} for activities of shape "
            "(2, 3), allowed (2,), one number for each row; ffstream.testing.check_goodness tells more"
        )


def describe_parts(config: Config) -> Record:
    """The record of all parts that a configuration names and that do not come with this package."""
    return {
        f"{setting}={name}": _describe(registry, name)
        for setting, registry, name in _list_parts(config)
        if name in registry and not registry.is_built_in(name)
    }


def restore_parts(record: Mapping[str, Any], noun: str, untrusted: Untrusted, *, accept: bool = False) -> None:
    """Import the parts of a run, or of an exported network, and check that they are as they were in training.

    Error messages begin with `noun`. Nothing that is `untrusted` is imported. Raises RunError for a part that is
    missing, and RunMismatchError for one whose source has changed, unless `accept` is true.
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
                if name not in registry:  # the module that defines the part calls a helper that registers it
                    import_recorded(other, part["sources"], words, accept=accept, untrusted=untrusted)
        if name not in registry:
            raise RunError(f"{words}, which module {part['module']} does not register any more; restore that module")
        if setting != _DATA and not accept:  # data are checked by a digest of their own
            _check_source(registry, name, part, words)


def _check_source(registry: Registry[Any], name: str, part: Mapping[str, Any], words: str) -> None:
    here = registry.sources_of(name)
    differing = [module for module, digest in part["sources"].items() if here.get(module) != digest]
    if differing:
        raise RunMismatchError(
            f"{words}; the source of module {differing[0]} has changed since; restore it, or take it as it is "
            "with --accept-environment"
        )


def _describe(registry: Registry[Any], name: str) -> dict[str, Any]:
    return {"module": registry.modules_of(name)[0], "sources": registry.sources_of(name)}


def _list_parts(config: Config) -> list[tuple[str, Registry[Any], str]]:
    """Setting, registry and name of each part that a configuration names."""
    flat = config.to_flat()
    found = [(setting, registry, str(flat[setting])) for setting, registry in REGISTRIES.items()]
    if config.network.layers:
        kinds = dict.fromkeys(line.kind for line in config.list_layers())
        found = [each for each in found if each[1] is not LAYER_KINDS]
        found += [(LAYER_KINDS.setting, LAYER_KINDS, kind) for kind in kinds]
    return [*found, (_DATA, SOURCES, config.data)]
