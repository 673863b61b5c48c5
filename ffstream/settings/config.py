"""The configuration of a run: frozen dataclasses, one a section, read from and written to TOML.

A setting is named by its dotted path: `layers`, `objective.scale`. Precedence, lowest first: the defaults here, the
recipe, the TOML file, `--set` and the other command-line options. No torch is imported here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffstream.errors import ConfigError, nearest
from ffstream.ground.files import read_regular
from ffstream.settings.limits import check_fields, limit
from ffstream.settings.recipes import DEFAULT, RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A section left out is filled in by the recipe when the Config is made; typed Any so that the field keeps its own type.
_FROM_RECIPE: Any = None
_MOST_SAMPLES = 10_000_000  # of a batch, or a shard; their labels are there while a run is planned

# Settings that may change between two sessions of one run without changing what a layer learns. The data are known by
# their digest and not by where they lie.
_FREE_SETTINGS = ("layers", "device", "data", "data_root", "bad_images", "cache.tier", "cache.folder")
# Settings that were added later, and what every run before did: it is left out where a run is identified, so that
# older runs stay what they are.
LATER_SETTINGS: dict[str, Any] = {"standardise": "none"}
_FREE_SECTIONS = ("memory", "readout")


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of one layer and what surrounds it."""

    kind: str = "linear"  # a registered layer kind: linear, or local (windows of the image)
    input_skip: bool = False  # every layer also reads the normalised image, concatenated to the layer below
    # Layers in a stack: the next one reads the images again, in place of the layer below. 0: all layers are one stack.
    stack_layers: int = limit(4, at_least=0)
    # Share of an image's features that each stack reads, but for the first, which reads all: others for every stack.
    stack_features: float = limit(1.0, above=0.0, at_most=1.0)
    # Units on the device at once: a layer of more grows by tiles. auto: all, or as many as the budget has room for.
    tile_units: int | str = limit("auto", at_least=1, word="auto")
    dropout: float = limit(0.3, at_least=0.0, at_most=0.99)  # on the rows that a layer reads, while it trains


@dataclass(frozen=True)
class LabelsConfig:
    """How labels and a layer meet."""

    # injection and overlay show a layer the true and K wrong labels; groups and classifier read the goodness of every
    # label off one label-free pass, without negatives; none shows images against hybrids.
    method: str = limit("injection", choices=("injection", "overlay", "groups", "classifier", "none"))
    embedding_std: float = limit(1.0, above=0.0)  # injection, classifier: each label's row ~ N(0, std^2)


@dataclass(frozen=True)
class NegativesConfig:
    """Which wrong labels, or hybrid images where there are no labels, a layer is trained against."""

    sampler: str = "hard"  # a registered negative sampler
    per_step: int = limit(1, at_least=1)  # K: wrong labels, or hybrids, a sample in each step
    per_sample: int | str = limit("all", at_least=1, word="all")  # R: wrong labels (overlay), or hybrids, cached
    # Of those wrong labels, how many drawn at random a hard one is chosen from (overlay): each is a row to multiply.
    pool: int | str = limit("all", at_least=1, word="all")
    # Of the random bits that become a hybrid's mask; more make larger regions.
    blurs: int = limit(6, at_least=1, at_most=1000)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The layer-local objective: objective(scale * (goodness - threshold))."""

    name: str = "cross_entropy"  # a registered objective
    goodness: str = "mean_squares"  # a registered goodness
    threshold: float | str = limit("auto", word="auto")  # theta; auto: the width for sums, 1 for means
    scale: float = limit(10.0, above=0.0)  # one over the temperature
    # How far each feature that a layer reads is moved, while it trains, in the direction that raises the loss:
    # adversarial training of one layer, or of its first tile. Features have unit RMS. It costs a second pass of a step.
    perturbation: float = limit(0.05, at_least=0.0)
    # A registered term on the cosines between samples' outputs, which show no label; it is added to the objective.
    similarity: str = limit("none", word="none")
    similarity_weight: float = limit(0.1, above=0.0)
    peer_normalisation: float = limit(0.0, at_least=0.0)  # strength (Hinton's program: 0.03)
    peer_momentum: float = limit(0.9, at_least=0.0, below=1.0)  # of the running mean activity of each unit


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser and its schedule: constant until `decay_start` of the steps, then linear to zero."""

    name: str = limit("adam", choices=("adam", "adamw", "sgd"))
    learning_rate: float = limit(2e-3, above=0.0)
    weight_decay: float = limit(0.0, at_least=0.0)
    momentum: float = limit(0.9, at_least=0.0, below=1.0)  # sgd only
    decay_start: float = limit(0.5, at_least=0.0, at_most=1.0)
    state_dtype: str = limit("fp32", choices=("fp32", "bf16"))  # bf16: half the memory, in which averages are kept


@dataclass(frozen=True)
class CacheConfig:
    """The activation cache."""

    tier: str = limit("auto", choices=("auto", "device", "host", "disk"))
    # Where the disk tier makes a folder of the run's own; "" is RUN/cache, which may be a link to another disk.
    folder: str = ""
    # int8: half of what bf16 takes, with a scale for each row.
    dtype: str = limit("bf16", choices=("bf16", "fp16", "fp32", "int8"))
    # Samples a shard, also the block of the block shuffle; a batch of more is made of whole shards. auto: 4096, or as
    # many as the budget has room for.
    shard_samples: int | str = limit("auto", at_least=1, at_most=_MOST_SAMPLES, word="auto")


@dataclass(frozen=True)
class AugmentationConfig:
    """Shifted training images: some views of each, cached once, or fresh ones for every epoch."""

    views: int = limit(1, at_least=1)  # of each image, itself included; an epoch visits one
    restream: bool = False  # shifts anew for every epoch, put through the finished layers again
    max_shift: int = limit(2, at_least=0)  # pixels in each direction; zeros come in


@dataclass(frozen=True)
class MemoryConfig:
    """What a run may take: sizes such as "1.5GiB". auto: most of what is free when it starts."""

    budget: str = limit("auto", size=True)  # of the device; on a CPU, of a layer's work, cache and data left out
    host_budget: str = limit("auto", size=True)  # of this process, the interpreter included
    disk_budget: str = limit("auto", size=True)  # of the run directory


@dataclass(frozen=True)
class ReadoutConfig:
    """The softmax readout on the normalised activities of all but the first layer."""

    epochs: int = limit(5, at_least=1)  # a layer
    batch: int = limit(256, at_least=1)
    learning_rate: float = limit(0.01, above=0.0)
    # Times the learning rate is what a step takes off. auto: 3, and of fewer than 2000 units as little as their square.
    weight_decay: float | str = limit(0.003, at_least=0.0, word="auto")


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run does.

    `Config(layers=40, width=500, data="mnist")` is complete: the sections come from the recipe. A single nested
    setting is changed with `config.override({"objective.scale": 10.0})`.

    Raises ConfigError for a value of the wrong type or out of range.
    """

    recipe: str = DEFAULT
    data: str = "digits"  # a registered source, a folder of images by class, a .safetensors or a .npz file
    data_root: str = ""  # where torchvision's archives lie; "" is $FFSTREAM_DATA or the user's cache folder
    bad_images: str = limit("refuse", choices=("refuse", "skip"))  # files of a folder that cannot be read
    # Each feature, or each channel, of an image is brought to a mean of 0 and a spread of 1 over the training images.
    standardise: str = limit("none", choices=("none", "features", "channels"))
    validation_fraction: float = limit(1 / 12, at_least=0.0, below=1.0)  # of the training data
    layers: int = limit(4, at_least=1, at_most=1_000_000)
    width: int = limit(500, at_least=1, at_most=1 << 18)  # units a layer
    epochs: int = limit(20, at_least=1)  # a layer
    batch: int | str = limit(_FROM_RECIPE, at_least=1, at_most=_MOST_SAMPLES, word="auto")
    # Samples of a batch on the device at once; their gradients are summed. auto: all, or as many as there is room for.
    micro_batch: int | str = limit("auto", at_least=1, word="auto")
    seed: int = limit(0, at_least=0)
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    precision: str = limit("auto", choices=("auto", "bf16", "fp32"))  # of the matrix products; weights stay fp32
    network: NetworkConfig = _FROM_RECIPE
    labels: LabelsConfig = _FROM_RECIPE
    negatives: NegativesConfig = _FROM_RECIPE
    objective: ObjectiveConfig = _FROM_RECIPE
    optimiser: OptimiserConfig = _FROM_RECIPE
    cache: CacheConfig = _FROM_RECIPE
    augmentation: AugmentationConfig = _FROM_RECIPE
    memory: MemoryConfig = _FROM_RECIPE
    readout: ReadoutConfig = _FROM_RECIPE

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, str):
            raise ConfigError(f"config recipe: found {self.recipe!r}, allowed {', '.join(sorted(RECIPES))}")
        if self.recipe not in RECIPES:
            raise ConfigError(f"config recipe: unknown recipe {self.recipe!r}; {nearest(self.recipe, RECIPES)}")
        recipe = RECIPES[self.recipe]
        if self.batch is None:
            object.__setattr__(self, "batch", recipe.get("batch", "auto"))
        for name, section in _SECTIONS.items():
            if getattr(self, name) is None:
                settings = {key.partition(".")[2]: v for key, v in recipe.items() if key.startswith(f"{name}.")}
                object.__setattr__(self, name, section(**settings))
            if not isinstance(getattr(self, name), section):
                raise ConfigError(
                    f"config {name}: found {getattr(self, name)!r}, allowed a {section.__name__}; a single setting is "
                    f'changed with Config(...).override({{"{name}.key": value}})'
                )
            check_fields(getattr(self, name), prefix=f"{name}.")
        check_fields(self, prefix="", skipped=_SECTIONS)

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Config:
        """Make a Config from nested settings, as a TOML file holds them. Raises ConfigError."""
        flat = _flatten(settings)
        base = cls(recipe=flat["recipe"]) if isinstance(flat.get("recipe"), str) else cls()
        return base.override(flat)

    @classmethod
    def from_toml(cls, path: str | Path) -> Config:
        """Read a TOML file. Raises ConfigError when it is absent, unreadable or holds an unknown setting."""
        return cls.from_mapping(read_toml(path))

    def override(self, settings: Mapping[str, Any]) -> Config:
        """A copy with dotted settings replaced, such as {"objective.scale": 10.0}. Raises ConfigError."""
        known = self.to_flat()
        for key in settings:
            if key not in known:
                raise ConfigError(f"config {key}: unknown setting; {nearest(key, known)}")
        recipe = settings.get("recipe", self.recipe)
        if isinstance(recipe, str) and recipe in RECIPES and recipe != self.recipe:
            raise ConfigError(
                f"config recipe: found {recipe!r}, allowed when the Config is made: Config(recipe={recipe!r})"
            )
        top = {key: value for key, value in settings.items() if "." not in key}
        for name in _SECTIONS:
            part = {key.partition(".")[2]: v for key, v in settings.items() if key.startswith(f"{name}.")}
            if part:
                top[name] = dataclasses.replace(getattr(self, name), **part)
        return dataclasses.replace(self, **top)

    def to_mapping(self) -> dict[str, Any]:
        """Nested plain settings, the inverse of `from_mapping`."""
        return dataclasses.asdict(self)

    def to_flat(self) -> dict[str, Any]:
        """Settings by dotted path."""
        return _flatten(self.to_mapping())

    def to_toml(self) -> str:
        """The TOML text that `from_toml` reads back to an equal Config."""
        lines, sections = [], []
        for name, value in self.to_mapping().items():
            if isinstance(value, dict):
                rows = [f"{key} = {_toml_value(entry)}" for key, entry in value.items()]
                sections.append("\n".join([f"[{name}]", *rows]))
            else:
                lines.append(f"{name} = {_toml_value(value)}")
        return "\n".join(lines) + "\n\n" + "\n\n".join(sections) + "\n"

    def identity(self) -> dict[str, Any]:
        """The settings that decide what a layer learns: two runs that agree on them share their layers."""
        return {
            key: value
            for key, value in self.to_flat().items()
            if key not in _FREE_SETTINGS and key.partition(".")[0] not in _FREE_SECTIONS
            if LATER_SETTINGS.get(key, ...) != value
        }

    def fingerprint(self) -> str:
        """Digest of `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Config) -> list[str]:
        """Lines "key: mine, theirs" for the settings of `identity` in which the two differ."""
        mine, theirs = self.identity(), other.identity()
        mine, theirs = LATER_SETTINGS | mine, LATER_SETTINGS | theirs
        return [f"{key}: {mine[key]!r}, {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]


_SECTIONS: dict[str, Any] = {
    "network": NetworkConfig,
    "labels": LabelsConfig,
    "negatives": NegativesConfig,
    "objective": ObjectiveConfig,
    "optimiser": OptimiserConfig,
    "cache": CacheConfig,
    "augmentation": AugmentationConfig,
    "memory": MemoryConfig,
    "readout": ReadoutConfig,
}


def read_toml(path: str | Path) -> dict[str, Any]:
    """Nested settings of a TOML file. Raises ConfigError when it is absent, no regular file, or does not parse."""
    try:
        data = read_regular(path)
    except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"config file {path}: cannot be read ({reason})") from error
    return parse_toml(data, f"config file {path}")


def parse_toml(data: bytes, noun: str) -> dict[str, Any]:
    """Nested settings of TOML text. Raises ConfigError, beginning with `noun`, when it does not parse."""
    try:
        return _load_toml(data.decode())
    except RecursionError:
        raise ConfigError(f"{noun}: nested too deep; allowed sections of settings") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{noun}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{noun}: not valid TOML ({error})") from error
    except ValueError as error:
        raise ConfigError(f"{noun}: {_MANY_DIGITS}") from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `section.key=value` into the dotted key and a TOML value; a bare word is a string. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: found no '=', allowed section.key=value, for example objective.scale=10")
    if "\n" in value:
        raise ConfigError(f"--set {key.strip()}: found several lines, allowed section.key=value")
    try:
        return key.strip(), _load_toml(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except RecursionError:
        raise ConfigError(f"--set {key.strip()}: nested too deep; allowed section.key=value") from None
    except ValueError as error:
        raise ConfigError(f"--set {key.strip()}: {_MANY_DIGITS}") from error


_MANY_DIGITS = "found a number with thousands of digits, allowed what 64 bits hold"


def _load_toml(text: str) -> dict[str, Any]:
    """Raises TOMLDecodeError, RecursionError, and a plain ValueError for numbers that Python neither reads nor says."""
    found = tomllib.loads(text)
    repr(found)  # a number of base 16 may have any length, until it is said in base 10
    return found


def _toml_value(value: Any) -> str:
    """JSON is TOML for our types, but for characters that JSON writes as surrogates and DEL, which TOML escapes."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and name in _SECTIONS:
            flat.update({f"{name}.{key}": entry for key, entry in value.items()})
        elif isinstance(value, Mapping):
            raise ConfigError(f"config [{name}]: unknown section; {nearest(name, _SECTIONS)}")
        elif name in _SECTIONS:
            raise ConfigError(f"config {name}: found {value!r}, allowed a section of settings, [{name}]")
        else:
            flat[name] = value
    return flat
