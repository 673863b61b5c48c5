"""The options that commands share, and those that are settings, whose help is the text that `settings` has for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ffstream.settings.config import find_setting
from ffstream.settings.names import DATA_SETS, METHODS, SPLITS
from ffstream.settings.recipes import RECIPES

DATA, NETWORK, TRAINING, MEMORY, RUN = "Data", "Network", "Training", "Memory and device", "The run"

# Options whose setting has another name.
RENAMED = {
    "network": "network.layers",
    "stack_layers": "network.stack_layers",
    "lr": "optimiser.learning_rate",
    "patience": "optimiser.patience",
    "negatives_per_sample": "negatives.per_sample",
    "order": "schedule.order",
    "window": "schedule.window_samples",
    "replays": "schedule.replays",
    "follow": "schedule.follow",
    "cache": "cache.tier",
    "cache_dir": "cache.folder",
    "cache_dtype": "cache.dtype",
    "views": "augmentation.views",
    "restream": "augmentation.restream",
    "max_shift": "augmentation.max_shift",
    "transforms": "augmentation.transforms",
    "budget": "memory.budget",
    "host_budget": "memory.host_budget",
    "disk_budget": "memory.disk_budget",
}
# Words that a shell offers for settings that may have other values too.
_WORDS = {"recipe": tuple(RECIPES), "data": DATA_SETS, "device": ("auto", "cpu", "cuda", "xpu", "mps")}


def setting_option(name: str, metavar: str, panel: str, *, flag: str = "", is_of_run: bool = False) -> Any:
    """An option that is a setting, with the setting's help and default, and the words that a shell completes.

    `name` is the name of the command's parameter. `flag` is the whole name of an option that takes no value. With
    `is_of_run`, the default is the value that an existing run has.
    """
    found = find_setting(RENAMED.get(name, name))
    default, choices = found.default, found.choices
    text, _, of_empty = found.text.partition(" Empty: ")
    if not all(word in text for word in choices):
        text = f"{text} Allowed: {', '.join(choices[:-1])} or {choices[-1]}."
    if flag:
        return typer.Option(flag, help=text, rich_help_panel=panel)
    shown = of_empty.rstrip(".") or ("auto" if default is None else default)
    if any(RENAMED.get(name, name) in recipe for recipe in RECIPES.values()):
        shown = f"{shown}, unless the recipe has another"
    return typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=metavar,
        help=f"{text} Default: {'what the run has' if is_of_run else shown}.",
        show_default=False,  # else the default of `OneDevice` would be shown twice
        rich_help_panel=panel,
        autocompletion=_complete(_WORDS.get(name, choices)),
    )


def word_option(name: str, words: tuple[str, ...], text: str) -> Any:
    """An option whose value is one of some words."""
    return typer.Option(f"--{name}", metavar="WORD", help=text, autocompletion=_complete(words))


def _complete(words: tuple[str, ...]) -> Callable[[str], list[str]] | None:
    return (lambda incomplete: [word for word in words if word.startswith(incomplete)]) if words else None


# readable=False: typer would report an unreadable file as a wrong option, while the code that reads it says more.
RunDir = Annotated[Path, typer.Argument(readable=False, metavar="RUN", help="The run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str | None, setting_option("device", "NAME", MEMORY)]
OneDevice = Annotated[str, setting_option("device", "NAME", MEMORY)]
FirstLayer = Annotated[
    int, typer.Option("--first-layer", metavar="N", help="First layer that counts in each stack, from 1.")
]
Cache = Annotated[str | None, setting_option("cache", "TIER", MEMORY)]
CacheDir = Annotated[str | None, setting_option("cache_dir", "FOLDER", MEMORY)]
Budget = Annotated[str | None, setting_option("budget", "SIZE", MEMORY)]
DeviceOfRun = Annotated[str | None, setting_option("device", "NAME", MEMORY, is_of_run=True)]
CacheOfRun = Annotated[str | None, setting_option("cache", "TIER", MEMORY, is_of_run=True)]
CacheDirOfRun = Annotated[str | None, setting_option("cache_dir", "FOLDER", MEMORY, is_of_run=True)]
BudgetOfRun = Annotated[str | None, setting_option("budget", "SIZE", MEMORY, is_of_run=True)]
DataRootOfRun = Annotated[str | None, setting_option("data_root", "FOLDER", DATA, is_of_run=True)]
Method = Annotated[
    str,
    word_option(
        "method",
        METHODS,
        "How labels are read out: goodness (the sum over layers), fitted (its layers weighted as fits the validation "
        "split), softmax (a linear readout), or auto: goodness if labels were shown.",
    ),
]
SplitName = Annotated[str, word_option("split", SPLITS, "The split: test, validation or train.")]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch the data of the run where they are missing.", rich_help_panel=DATA)
]
DataRoot = Annotated[str | None, setting_option("data_root", "FOLDER", DATA)]
MovedData = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="Where the data of the run are now, if moved.", rich_help_panel=DATA),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="A module that registers parts of your own; may be repeated, as in $FFSTREAM_PLUGINS.",
        rich_help_panel=RUN,
    ),
]
AcceptEnvironment = Annotated[
    bool,
    typer.Option(
        "--accept-environment",
        help="Go on although torch, the processor, a part of your own or something else that decides bits has changed.",
        rich_help_panel=RUN,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace a file that this command did not write; never an input or a file of a run."),
]
