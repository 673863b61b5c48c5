"""Names of built-in parts and data sets, and words that functions accept: to refuse wrong ones without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ffstream.errors import ConfigError, DataError, nearest, say_unknown, say_unknown_data
from ffstream.ground.files import exists, expand_home

DATA_SETS = ("digits", "mnist", "fashion-mnist", "kmnist", "cifar10")
METHODS = ("auto", "goodness", "fitted", "softmax")  # of reading out a prediction
SPLITS = ("test", "validation", "train")

# For each setting that selects a part: the noun for these parts, and the names of the built-in ones.
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
    "network.kind": ("layer kind", ("linear", "local", "conv", "block")),
}


# For each kind of part, as it stands in `parts.goodness.power`: the setting that selects the part.
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
    """Raise ConfigError for a part, or DataError for a data set, that is not built in; data may also be a path.

    To be called only if no module of the user's own is imported, as it may register more names.
    """
    for setting, (noun, names) in PARTS.items():
        if settings[setting] not in names:
            raise ConfigError(say_unknown(setting, noun, settings[setting], names))
    data = settings["data"]
    is_lone = data.replace("-", "").isalnum()  # a plain word, without the slashes and dots of a path
    roots = [Path(), expand_home(settings["data_root"])] if settings["data_root"] else [Path()]
    if is_lone and data not in DATA_SETS and not any(exists(root / data) for root in roots):
        raise DataError(say_unknown_data(data, DATA_SETS))


def check_word(noun: str, word: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError for a word that is not allowed."""
    if word not in allowed:
        raise ConfigError(f"{noun} {word!r}: unknown; {nearest(word, allowed)}")
