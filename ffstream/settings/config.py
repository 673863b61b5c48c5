"""The configuration of a run: settings and sections of settings, read from and written to TOML.

A setting is named by its dotted path: `layers`, `objective.scale`. Precedence, lowest first: the defaults here, the
recipe, the TOML file, `--set` and the other command-line options. No torch is imported here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffstream.errors import ConfigError, nearest
from ffstream.settings.layer_list import LayerLine, list_lines, read_layers
from ffstream.settings.limits import check_fields, documented, list_settings, setting, show
from ffstream.settings.names import KINDS
from ffstream.settings.parts import PARTS, check_modules, check_parts
from ffstream.settings.reads import BELOW, IMAGE
from ffstream.settings.recipes import AUTO, DEFAULT, RECIPES, choose_recipe
from ffstream.settings.sections import (
    MOST_SAMPLES,
    AugmentationConfig,
    CacheConfig,
    LabelsConfig,
    MemoryConfig,
    NegativesConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimiserConfig,
    ReadoutConfig,
    ScheduleConfig,
)
from ffstream.settings.toml import read_toml, write_value
from ffstream.settings.transform_list import read_transforms

# A section left out is filled in by the recipe when the Config is made; typed Any so that the field keeps its own type.
_FROM_RECIPE: Any = None

# Settings that may change between two sessions of one run without changing what a layer learns. The data are identified
# by their digest and not by their path.
_FREE_SETTINGS = ["layers", "device", "data", "data_root", "bad_images", "plugins", "save_every"]
_FREE_SETTINGS += ["cache.tier", "cache.folder", "schedule.follow"]
# Settings that were added later, each with the value that describes what all runs did before. A setting of this value
# is left out of a run's identity, so that the identities of older runs do not change.
LATER_SETTINGS: dict[str, Any] = {"standardise": "none", "plugins": (), "save_every": "auto", "network.layers": ()}
LATER_SETTINGS |= {"augmentation.transforms": (), "labels.head_layers": 1, "optimiser.patience": 0, "init_from": ""}
LATER_SETTINGS |= {"negatives.images": "hybrids", "schedule.order": "sequential"}
LATER_SETTINGS |= {"schedule.window_samples": "all", "schedule.replays": 4}
_FREE_SECTIONS = ("memory", "readout")


@documented
@dataclass(frozen=True)
class Config:
    """Everything that decides what a run does.

    `Config(layers=40, width=512, data="mnist")` is complete: what is left out comes from the recipe. A single nested
    setting is changed with `config.override({"objective.scale": 10.0})`, which keeps the recipe.

    Raises ConfigError for a value of the wrong type or out of range.
    """

    recipe: str = setting(
        AUTO,
        "A named set of settings (`ffstream recipes` lists them). auto: inject, or deep for 9 layers or more of mnist "
        "and the like.",
    )
    data: str = setting(
        "digits",
        "digits, mnist, fashion-mnist, kmnist or cifar10; or a folder of images by class, a .safetensors or .npz file.",
    )
    data_root: str = setting("", "Where archives lie. Empty: $FFSTREAM_DATA, or the user's cache folder.")
    bad_images: str = setting(
        "refuse",
        "What to do about files of an image folder that cannot be read: refuse the data, or skip those files.",
        choices=("refuse", "skip"),
    )
    standardise: str = setting(
        AUTO,
        "Bring each feature, or channel, to a mean of 0 and a spread of 1 over the training images. auto: channels "
        "with recipe conv, else none.",
        choices=("auto", "none", "features", "channels"),
    )
    validation_fraction: float = setting(
        1 / 12, "Share of the training data that is held out for validation.", at_least=0.0, below=1.0
    )
    layers: int = setting(4, "The number of layers.", at_least=1, at_most=1_000_000)
    width: int = setting(512, "Units of a layer.", at_least=1, at_most=1 << 18)
    epochs: int = setting(20, "Epochs for each layer; in rounds, how many of them there are.", at_least=1)
    batch: int | str = setting(
        _FROM_RECIPE,
        "Samples in a step. auto: about 64 steps an epoch, of 64 to 512 samples.",
        at_least=1,
        at_most=MOST_SAMPLES,
        word="auto",
    )
    micro_batch: int | str = setting(
        "auto",
        "Samples of a batch on the device at once; gradients are summed. auto: all, or as many as there is room for.",
        at_least=1,
        word="auto",
    )
    seed: int = setting(0, "The seed of everything random.", at_least=0)
    device: str = setting("auto", "The device: auto, cpu, cuda or cuda:N, xpu, mps.")
    precision: str = setting(
        "auto",
        "The type of the operands of matrix products. auto: bf16 where the device has such products, fp16 on GPUs that "
        "have only these, else fp32. Weights stay fp32.",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    save_every: str = setting(
        "auto",
        "How often the progress of a layer is saved: a time such as 30s, also within an epoch. auto: after each epoch.",
        duration=True,
    )
    init_from: str = setting(
        "",
        "The folder of another run: a layer starts from the one of the same number there if its kind, and the names "
        "and shapes of its parameters, are the same. Empty: none, all layers start anew.",
    )
    plugins: tuple[str, ...] = setting(
        (), "Modules that register parts of your own, such as my_package.my_module; imported before anything else."
    )
    parts: Any = ()  # settings of registered parts by dotted name, such as "goodness.power"; given as a mapping
    network: NetworkConfig = _FROM_RECIPE
    labels: LabelsConfig = _FROM_RECIPE
    negatives: NegativesConfig = _FROM_RECIPE
    objective: ObjectiveConfig = _FROM_RECIPE
    optimiser: OptimiserConfig = _FROM_RECIPE
    schedule: ScheduleConfig = _FROM_RECIPE
    cache: CacheConfig = _FROM_RECIPE
    augmentation: AugmentationConfig = _FROM_RECIPE
    memory: MemoryConfig = _FROM_RECIPE
    readout: ReadoutConfig = _FROM_RECIPE

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", check_modules(self.plugins))
        object.__setattr__(self, "parts", check_parts(self.parts))
        if self.recipe == AUTO:
            given = [name for name in _SECTIONS if getattr(self, name) is not None]
            object.__setattr__(self, "recipe", choose_recipe(self.layers, self.data, given))
        if not isinstance(self.recipe, str):
            raise ConfigError(f"config recipe: found {self.recipe!r}, allowed {', '.join(sorted(RECIPES))}")
        is_complete = self.batch is not None and all(getattr(self, name) is not None for name in _SECTIONS)
        if self.recipe not in RECIPES and not is_complete:  # if everything is given, no recipe is needed
            raise ConfigError(f"config recipe: unknown recipe {self.recipe!r}; {nearest(self.recipe, RECIPES)}")
        recipe = RECIPES.get(self.recipe, {})
        if self.batch is None:
            object.__setattr__(self, "batch", recipe.get("batch", "auto"))
        if self.standardise == AUTO:
            object.__setattr__(self, "standardise", recipe.get("standardise", "none"))
        for name, section in _SECTIONS.items():
            if getattr(self, name) is None:
                settings = {key.partition(".")[2]: v for key, v in recipe.items() if key.startswith(f"{name}.")}
                object.__setattr__(self, name, section(**settings))
            if not isinstance(getattr(self, name), section):
                raise ConfigError(
                    f"config {name}: found {getattr(self, name)!r}, allowed a {section.__name__}; a single setting is "
                    f'changed with Config(...).override({{"{name}.key": value}})'
                )
            check_fields(getattr(self, name), prefix=f"{name}.", skipped=("layers", "transforms"))
        check_fields(self, prefix="", skipped=(*_SECTIONS, "plugins", "parts"))
        if self.augmentation.transforms != ():
            transforms = read_transforms(self.augmentation.transforms)
            object.__setattr__(self, "augmentation", dataclasses.replace(self.augmentation, transforms=transforms))
        if self.network.layers != ():
            self._read_layers()

    def _read_layers(self) -> None:
        """Write the layers that are listed in one form, as one stack; take their number and largest width from them."""
        object.__setattr__(self, "network", dataclasses.replace(self.network, layers=read_layers(self.network.layers)))
        lines = self.list_layers()
        if not lines:
            return
        for number, line in enumerate(lines, 1):
            line.find_reads(number)
            if self.network.input_skip and line.reads != BELOW:
                raise ConfigError(
                    f"config network.input_skip: found true, but layer {number} of network.layers says what it reads "
                    f"(reads={line.reads}); leave one of them out, as input_skip means reads=below+image everywhere"
                )
        object.__setattr__(self, "network", dataclasses.replace(self.network, stack_layers=0))
        object.__setattr__(self, "layers", len(lines))
        object.__setattr__(self, "width", max(line.width for line in lines))

    def list_layers(self) -> list[LayerLine]:
        """The layers one by one, if they are listed; else none."""
        return list_lines(self.network.layers, self.layers) if self.network.layers else []

    def shorten(self, num_layers: int) -> Config:
        """The configuration of the first layers alone, whether they are listed or not."""
        if not self.network.layers or num_layers == self.layers:
            return self.override({"layers": num_layers})
        lines = tuple(map(str, self.list_layers()[:num_layers]))
        return dataclasses.replace(self, network=dataclasses.replace(self.network, layers=lines))

    def list_reads(self) -> list[str]:
        """What each layer reads, as it is written in a list of layers; the first one of a stack reads the image."""
        usual = f"{BELOW}+{IMAGE}" if self.network.input_skip else BELOW
        found = [usual if line.reads == BELOW else line.reading for line in self.list_layers()] or [usual] * self.layers
        num_in_stack = self.network.stack_layers or self.layers
        return [each if place % num_in_stack else IMAGE for place, each in enumerate(found)]

    def count_epochs(self, layer: int) -> int:
        """The epochs of the layer with this index, or of each of its tiles."""
        lines = self.list_layers()
        return (lines[layer].num_epochs if lines else None) or self.epochs

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Config:
        """Make a Config from nested settings, as a TOML file holds them. Raises ConfigError."""
        flat = flatten(settings)
        recipe = flat.pop("recipe", AUTO)
        if recipe == AUTO:
            recipe = choose_recipe(flat.get("layers", cls.layers), flat.get("data", cls.data), flat)
        is_unknown = isinstance(recipe, str) and recipe not in RECIPES
        if is_unknown and cls().to_flat().keys() - {"recipe"} <= flat.keys() | LATER_SETTINGS.keys():
            return dataclasses.replace(cls(recipe=DEFAULT).override(flat), recipe=recipe)
        return cls(recipe=recipe).override(flat)

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any]) -> Config:
        """Make a Config from what `to_mapping` gave, maybe in an earlier version. Raises ConfigError.

        What that version did not know has the value that describes what it did, whatever the recipe says today.
        """
        return cls.from_mapping(LATER_SETTINGS | flatten(settings))

    @classmethod
    def from_toml(cls, path: str | Path) -> Config:
        """Read a TOML file. Raises ConfigError when it is absent, unreadable or holds an unknown setting."""
        return cls.from_mapping(read_toml(path))

    def override(self, settings: Mapping[str, Any]) -> Config:
        """A copy with dotted settings replaced, such as {"objective.scale": 10.0}. Raises ConfigError."""
        known = self.to_flat()
        for key in settings:
            if key not in known and not key.startswith(PARTS):
                raise ConfigError(f"config {key}: unknown setting; {nearest(key, known)}")
        recipe = settings.get("recipe", self.recipe)
        if isinstance(recipe, str) and recipe != self.recipe:
            if recipe not in RECIPES:
                raise ConfigError(f"config recipe: unknown recipe {recipe!r}; {nearest(recipe, RECIPES)}")
            raise ConfigError(
                f"config recipe: found {recipe!r}, allowed only when a Config is made: Config(recipe={recipe!r})"
            )
        top = {key: value for key, value in settings.items() if "." not in key}
        own = {key.removeprefix(PARTS): value for key, value in settings.items() if key.startswith(PARTS)}
        if own:
            top["parts"] = dict(self.parts) | own
        for name in _SECTIONS:
            part = {key.partition(".")[2]: v for key, v in settings.items() if key.startswith(f"{name}.")}
            if part:
                top[name] = dataclasses.replace(getattr(self, name), **part)
        made = dataclasses.replace(self, **top)
        for name, words in (("layers", "lists {} layers"), ("width", "has layers of {} units or channels at most")):
            if made.network.layers and settings.get(name, getattr(made, name)) != getattr(made, name):
                raise ConfigError(
                    f"config {name}: found {show(settings[name])}, but network.layers "
                    f"{words.format(getattr(made, name))}; leave one of them out"
                )
        if made.network.layers and settings.get("network.stack_layers"):
            raise ConfigError(
                f"config network.stack_layers: found {show(settings['network.stack_layers'])}, allowed 0 with "
                "network.layers, whose layers make one stack; leave one of them out"
            )
        return made

    def to_mapping(self) -> dict[str, Any]:
        """Nested plain settings, the inverse of `from_mapping`."""
        nested = dataclasses.asdict(self)
        own = nested.pop("parts")
        return nested | ({"parts": dict(own)} if own else {})

    def part(self, setting: str) -> tuple[str, dict[str, Any]]:
        """The name of the part that a dotted setting selects, and the part's own settings by name."""
        section, _, key = setting.partition(".")
        kind = next(kind for kind, named in KINDS.items() if named == setting)
        own = {name.partition(".")[2]: value for name, value in self.parts if name.startswith(f"{kind}.")}
        return getattr(getattr(self, section), key), own

    def to_flat(self) -> dict[str, Any]:
        """Settings by dotted path."""
        return flatten(self.to_mapping())

    def to_toml(self) -> str:
        """The TOML text that `from_toml` reads back to an equal Config."""
        lines, sections = [], []
        for name, value in self.to_mapping().items():
            if isinstance(value, dict):
                rows = [f"{key} = {write_value(entry)}" for key, entry in value.items()]
                sections.append("\n".join([f"[{name}]", *rows]))
            else:
                lines.append(f"{name} = {write_value(value)}")
        return "\n".join(lines) + "\n\n" + "\n\n".join(sections) + "\n"

    @property
    def in_rounds(self) -> bool:
        """Whether every layer is trained for one epoch in turn, again and again."""
        return self.schedule.order != "sequential"

    @property
    def restreams(self) -> bool:
        """Whether a layer's input is made anew for each of its epochs, through the finished layers below it.

        In rounds it is not: fresh images pass through all layers once a round, each as it has just been trained.
        """
        return self.augmentation.restream and not self.in_rounds

    def identity(self) -> dict[str, Any]:
        """The settings that decide what a layer learns: two runs that agree on them share their layers.

        How many rounds there are is not among them: a run may be given more.
        """
        free = [*_FREE_SETTINGS, "epochs"] if self.in_rounds else _FREE_SETTINGS
        return {
            key: list(value) if isinstance(value, tuple) else value  # as it is when it is read again
            for key, value in self.to_flat().items()
            if key not in free and key.partition(".")[0] not in _FREE_SECTIONS
            if LATER_SETTINGS.get(key, ...) != value
        }

    def fingerprint(self) -> str:
        """Digest of `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Config) -> list[str]:
        """Lines "key: mine, theirs" for the settings of `identity` in which the two differ."""
        mine, theirs = self.identity(), other.identity()
        mine, theirs = LATER_SETTINGS | mine, LATER_SETTINGS | theirs
        names = [*mine, *(key for key in theirs if key not in mine)]
        return [f"{key}: {mine.get(key)!r}, {theirs.get(key)!r}" for key in names if mine.get(key) != theirs.get(key)]


_SECTIONS: dict[str, Any] = {
    "network": NetworkConfig,
    "labels": LabelsConfig,
    "negatives": NegativesConfig,
    "objective": ObjectiveConfig,
    "optimiser": OptimiserConfig,
    "schedule": ScheduleConfig,
    "cache": CacheConfig,
    "augmentation": AugmentationConfig,
    "memory": MemoryConfig,
    "readout": ReadoutConfig,
}


@dataclass(frozen=True)
class SettingFacts:
    """Facts about a setting that hold before it has a value."""

    default: Any  # None if the recipe decides it
    text: str
    choices: tuple[str, ...]  # all values that it may have, where they can be listed


def find_setting(name: str) -> SettingFacts:
    """Facts about a setting, by its dotted name. Raises KeyError for an unknown name."""
    section, _, key = name.rpartition(".")
    fields = {item.name: item for item in dataclasses.fields(_SECTIONS[section] if section else Config)}
    item = fields[key]
    return SettingFacts(item.default, item.metadata["help"], tuple(item.metadata.get("choices", ())))


def describe_settings() -> list[tuple[str, list[tuple[str, Any, str]]]]:
    """Dotted name, default and help of each setting, by section; the section is "" for settings outside of any."""
    found = [("", list_settings(Config))]
    for section, kind in _SECTIONS.items():
        found.append((section, [(f"{section}.{name}", default, text) for name, default, text in list_settings(kind)]))
    return found


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested settings into settings by dotted path. Raises ConfigError for an unknown section."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and name == "parts":
            for kind, own in value.items():  # TOML nests dotted names
                given = (
                    {f"{kind}.{key}": entry for key, entry in own.items()} if isinstance(own, Mapping) else {kind: own}
                )
                flat.update({f"{PARTS}{key}": entry for key, entry in given.items()})
        elif isinstance(value, Mapping) and name in _SECTIONS:
            flat.update({f"{name}.{key}": entry for key, entry in value.items()})
        elif isinstance(value, Mapping):
            raise ConfigError(f"config [{name}]: unknown section; {nearest(name, _SECTIONS)}")
        elif name in _SECTIONS:
            raise ConfigError(f"config {name}: found {value!r}, allowed a section of settings, [{name}]")
        else:
            flat[name] = value
    return flat
