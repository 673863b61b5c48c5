"""Ranks, by which values are compared whatever their units and tails."""

from __future__ import annotations

from torch import Tensor


def rank(values: Tensor) -> Tensor:
    """The rank of each value (n,), from 1, in float64; values that are equal share the mean of their ranks."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    found: Tensor = (counts.cumsum(0) - (counts - 1) / 2).double()[place]
    return found
