"""Named recipes: settings that differ from the defaults of `config.py`.

A recipe is a plain dictionary of dotted settings. Every one of them can be overridden by the user.
"""

from __future__ import annotations

from collections.abc import Mapping

Setting = str | int | float | bool

RECIPES: dict[str, Mapping[str, Setting]] = {
    # Label injection, h = relu(W x + b + U[label]) at every layer, and cross-entropy over the goodness of the true
    # and of K sampled wrong labels. One cached row a sample. These are the defaults themselves.
    "inject": {},
    # Hinton 2022 (arXiv:2212.13345), section 3.3: the label overlaid on the first C pixels, sum of squares against a
    # threshold equal to the width, and the peer normalisation of his released program (0.03 on a running mean of 0.9).
    "hinton": {
        "batch": 256,
        "network.dropout": 0.0,
        "labels.method": "overlay",
        "negatives.per_step": 1,
        "objective.name": "logistic",
        "objective.goodness": "sum_squares",
        "objective.scale": 1.0,
        "objective.peer_normalisation": 0.03,
        "optimiser.learning_rate": 2e-3,
    },
}


def register_recipe(name: str, settings: Mapping[str, Setting]) -> None:
    """Make `--recipe name` known. `settings` maps dotted settings such as "objective.scale" to values."""
    RECIPES[name] = dict(settings)
