"""A layer that has learnt nothing, as no unit of it is active any more."""

from __future__ import annotations

from ffstream.training.observer import LayerFigures

# The largest goodness, of right and of wrong rows, at which all units count as silent. Layers that learn nothing of raw
# photographs end at 0 to 0.0004; the least of any that learnt something was 0.006 (two layers of 64, recipe inject).
_SILENT = 1e-3


def find_silent(figures: LayerFigures) -> str | None:
    """A warning if a finished layer has no goodness for anything; None otherwise."""
    if not max(abs(figures.goodness_positive), abs(figures.goodness_negative)) < _SILENT:
        return None
    return (
        f"layer {figures.layer}: has a goodness of {figures.goodness_positive:.2g} for right rows and of "
        f"{figures.goodness_negative:.2g} for wrong ones, as if all its units had fallen silent, so that neither it "
        "nor the layers above it tell images apart; bring the data to units in which each feature has a mean of 0, as "
        "--standardise features does, and start anew"
    )
