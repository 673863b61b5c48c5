"""Named recipes: settings that differ from the defaults of `config`.

A recipe is a plain dictionary of dotted settings. Every one of them can be overridden by the user.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from ffstream.errors import ConfigError

Setting = str | int | float | bool

RECIPES: dict[str, Mapping[str, Setting]] = {}
DESCRIPTIONS: dict[str, str] = {}  # by recipe: a line for `ffstream recipes`, or ""

AUTO, DEFAULT, DEEP = "auto", "inject", "deep"
_MANY_LAYERS = 9  # more than two stacks of four layers have
_IMAGE_SETS = ("mnist", "fashion-mnist", "kmnist", "cifar10")  # of enough pixels: a shift by two changes little
_LEARNING = ("labels", "negatives", "objective", "augmentation", "schedule")


_REGISTERED_BY: dict[str, str] = {}  # modules, by recipe


def register_recipe(name: str, settings: Mapping[str, Setting], description: str = "") -> None:
    """Make `--recipe name` known. `settings` maps dotted settings such as "objective.scale" to values.

    `description` is one line for `ffstream recipes`. A module that is run again may change its own recipes. Raises
    ConfigError for a name that another module has registered with other settings.
    """
    module = sys._getframe(1).f_globals.get("__name__", "__main__")
    if name in RECIPES and RECIPES[name] != settings and _REGISTERED_BY.get(name) != module:
        raise ConfigError(f"recipe {name!r}: is registered already, with other settings; choose another name")
    _REGISTERED_BY[name] = module
    RECIPES[name] = dict(settings)
    DESCRIPTIONS[name] = description


def choose_recipe(num_layers: object, data: object, asked: Iterable[str]) -> str:
    """The recipe of a configuration that names none: for deep networks, the recipe that gains most with depth.

    That recipe (`deep`) needs images, and decides everything that a layer learns. So it is chosen only for data sets of
    images, and only if none of the settings that are given (`asked`, dotted names or names of sections) says how to
    learn.
    """
    is_open = not {name.partition(".")[0] for name in asked} & set(_LEARNING)
    is_deep = type(num_layers) is int and num_layers >= _MANY_LAYERS and data in _IMAGE_SETS
    return DEEP if is_open and is_deep else DEFAULT


# One cached row per sample. This recipe is the defaults.
register_recipe(
    "inject",
    {},
    "h = relu(W x + b + U[label]) at every layer, cross-entropy over the goodness of the true and a hard wrong label.",
)
# Hinton 2022, section 3.3: the threshold equals the width. A wrong label is drawn with the likelihood that the layer
# gives it, as Hinton's released program does. The program's peer normalisation (0.03) is left out, as it raised the
# error with hard negatives (docs/ablations/recipes.md).
register_recipe(
    "hinton",
    {
        "batch": 256,
        "network.dropout": 0.0,
        "labels.method": "overlay",
        "negatives.pool": 3,
        "objective.name": "logistic",
        "objective.goodness": "sum_squares",
        "objective.scale": 1.0,
        "optimiser.learning_rate": 2e-3,
    },
    "The paper's (Hinton 2022): the label overlaid on the first pixels, sum of squares against a threshold.",
)
# The goodness of DeeperForward is the mean of activities; squares did better here, on the validation split of MNIST.
register_recipe(
    "grouped",
    {
        "network.dropout": 0.25,
        "labels.method": "groups",
        "objective.goodness": "mean_squares",
        "objective.scale": 3.0,
        "objective.perturbation": 0.0,
    },
    "Units in a group for each class, cross-entropy over the groups' goodness, no negatives (CwComp, DeeperForward).",
)
# The Mono-Forward paper takes the sum as goodness. With the mean, the scale does not depend on the width.
register_recipe(
    "mono",
    {
        "labels.method": "classifier",
        "objective.goodness": "mean",
        "objective.scale": 30.0,
        "optimiser.learning_rate": 4e-3,
    },
    "A linear classifier learnt with each layer, cross-entropy over all labels, no negatives (Mono-Forward).",
)
# For images: each stack reads its own views and pixels. Of all recipes this one gains most with depth
# (docs/ablations/depth.md).
register_recipe(
    "deep",
    {
        **RECIPES["mono"],
        "batch": 128,
        "network.dropout": 0.0,
        "network.stack_features": 0.6,
        "objective.perturbation": 0.02,
        "augmentation.views": 25,
        "augmentation.max_shift": 2,
    },
    "For images and many layers: mono in stacks of four, each with views and a share of the pixels of its own.",
)
# A local classifier of three layers reads each convolution's activities (Belilovsky et al., 2019). What is handed on is
# standardised by channel, without which depth does not pay (docs/ablations/convolution.md).
register_recipe(
    "conv",
    {
        **RECIPES["mono"],
        "batch": 128,
        "standardise": "channels",
        "network.layers": "vgg",
        "network.dropout": 0.0,
        "labels.head_layers": 3,
        "objective.perturbation": 0.0,
        "optimiser.learning_rate": 2e-3,
    },
    "For images: convolutions, each with a local classifier of three layers that is learnt with it (Belilovsky 2019).",
)
# What is handed on is standardised by channel, as for `conv`. Shared weights want a higher rate than dense ones
# (docs/ablations/convolution.md).
register_recipe(
    "conv-ff",
    {
        "batch": 128,
        "standardise": "channels",
        "network.layers": "vgg",
        "network.dropout": 0.0,
        "objective.perturbation": 0.0,
        "optimiser.learning_rate": 2e-2,
    },
    "For images: convolutions by goodness; every channel is told the true label or a hard wrong one (as inject).",
)
# Hinton 2022, section 3.2: no labels; images against hybrids of two. The objective is that of `hinton`, the optimiser
# that of Hinton's program, whose rate of 0.01 on an average of gradients (0.9/0.1) is 0.001 on their sum. Several
# hybrids are cached per sample, as deep layers learn a single one by heart.
register_recipe(
    "unsupervised",
    {
        "batch": 100,
        "network.dropout": 0.0,
        "network.stack_layers": 0,
        "labels.method": "none",
        "negatives.per_sample": 8,
        "objective.name": "logistic",
        "objective.goodness": "sum_squares",
        "objective.scale": 1.0,
        "objective.perturbation": 0.0,
        "objective.peer_normalisation": 0.03,
        "optimiser.name": "sgd",
        "optimiser.learning_rate": 1e-3,
        "optimiser.weight_decay": 1e-3,
        "readout.epochs": 10,
        "readout.learning_rate": 0.003,
        "readout.weight_decay": "auto",
    },
    "Without labels (Hinton 2022, section 3.2): images against hybrids of two; read out by softmax.",
)
# As SCFF (2025), with the objective of `unsupervised` on a mean, as planes of layers differ in size. Where regions of a
# hybrid meet, a convolution sees an edge that no image has, so that images are told from sums.
register_recipe(
    "conv-unsupervised",
    {
        "batch": 128,
        "standardise": "channels",
        "network.layers": "vgg",
        "network.dropout": 0.0,
        "labels.method": "none",
        "negatives.per_sample": 1,
        "negatives.images": "sums",
        "objective.name": "logistic",
        "objective.goodness": "mean_squares",
        "objective.scale": 1.0,
        "objective.perturbation": 0.0,
        "optimiser.learning_rate": 2e-3,
        "readout.epochs": 10,
        "readout.learning_rate": 0.003,
    },
    "For images without labels: convolutions, images against what is mixed of two (SCFF); read out by softmax.",
)
