"""The names of what comes along, so that a wrong one is answered before torch is imported; and words of functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ffstream.errors import ConfigError, DataError, nearest, say_unknown, say_unknown_data
from ffstream.ground.files import exists, expand_home

DATA_SETS = ("digits", "mnist", "fashion-mnist", "kmnist", "cifar10")
METHODS = ("auto", "goodness", "fitted", "softmax")  # of reading out
SPLITS = ("test", "validation", "train")

# By the setting that names one of them: what the parts are called, and their names.
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "labels.method": ("label method", ("injection", "overlay", "groups", "classifier", "none")),
    "objective.name": ("objective", ("cross_entropy", "logistic", "pairwise")),
    "objective.goodness": (
        "goodness",
        ("mean_squares", "sum_squares", "neg_sum_squares", "neg_mean_squares", "mean", "sum"),
    ),
    "objective.similarity": ("similarity", ("none", "matching", "contrastive")),
    "negatives.sampler": ("negative sampler", ("uniform", "hard")),
    "optimiser.name": ("optimiser", ("adam", "adamw", "sgd")),
    "network.kind": ("layer kind", ("linear", "local")),
}


# What settings of a part's own are called by, `parts.goodness.power`: the setting that names the part, by its kind.
KINDS = {
    "labels": "labels.method",
    "objective": "objective.name",
    "goodness": "objective.goodness",
    "similarity": "objective.similarity",
    "sampler": "negatives.sampler",
    "optimiser": "optimiser.name",
    "layer": "network.kind",
}


def check_names(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError or DataError for settings that name a part, or data, that do not come along.

    Only where no module of a user's own is imported: it may register others.
    """
    for setting, (noun, names) in PARTS.items():
        if settings[setting] not in names:
            raise ConfigError(say_unknown(setting, noun, settings[setting], names))
    data = settings["data"]
    is_lone = data.replace("-", "").isalnum()  # and no path
    roots = [Path(), expand_home(settings["data_root"])] if settings["data_root"] else [Path()]
    if is_lone and data not in DATA_SETS and not any(exists(root / data) for root in roots):
        raise DataError(say_unknown_data(data, DATA_SETS))


def check_word(noun: str, word: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError for a word that is not allowed."""
    if word not in allowed:
        raise ConfigError(f"{noun} {word!r}: unknown; {nearest(word, allowed)}")
