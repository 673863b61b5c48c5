"""Goodness: one number per sample, high for positive and low for negative samples (Hinton 2022, section 2).

A goodness is a function of a layer's activities, shape (n, num_units), and is differentiated with respect to them; the
layer knows how its activities depend on its preactivations. The goodnesses of this file are sums or means over units,
so that a layer can be cut into tiles of units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ffstream.ground.registry import Registry


class Goodness(ABC):
    """A differentiable goodness. A subclass needs `value`; `gradient` may be overridden by a closed form.

    A goodness that is a sum or a mean over units says so in `over_units`, as "sum" or "mean"; layers can then be cut
    into tiles. A goodness whose gradient is zero for every activity that is zero sets `is_flat_at_zero`; a layer with a
    ReLU then need not mask the gradient.
    """

    over_units: str | None = None
    is_flat_at_zero: bool = False

    @abstractmethod
    def value(self, activities: Tensor) -> Tensor:
        """Goodness of each row: (n, num_units) -> (n,)."""

    def gradient(self, activities: Tensor, upstream: Tensor, out: Tensor | None = None) -> Tensor:
        """Gradient with respect to the activities: (n, num_units), (n,) -> (n, num_units) or (n, 1).

        `upstream` is dL/dgoodness. The result is (n, 1) if the gradient is the same for all units. With `out`, which
        may be the activities themselves, the result is (n, num_units) and is written there.
        """
        with torch.enable_grad():
            leaf = activities.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(leaf), leaf, upstream)
        return gradient if out is None else out.copy_(gradient)

    def weight(self, num_part: int, num_units: int) -> float:
        """The factor that turns the value of `num_part` units into their share of the value of `num_units`."""
        return num_part / num_units if self.over_units == "mean" else 1.0

    def default_threshold(self, num_units: int) -> float:
        """The threshold theta for `threshold = "auto"`: the goodness of a row of unit RMS."""
        return float(self.value(torch.ones(1, 1).expand(1, num_units)))  # expand allocates no row


class SquaredGoodness(Goodness):
    """sign * sum(h^2), or its mean over units. A negative sign makes positive samples quiet (Hinton 2022, sec. 2)."""

    is_flat_at_zero = True

    def __init__(self, *, mean: bool, sign: int) -> None:
        self.over_units = "mean" if mean else "sum"
        self._sign = sign

    def value(self, activities: Tensor) -> Tensor:
        """Goodness of each row: (n, num_units) -> (n,)."""
        # vector_norm reads the rows once and writes no squared copy of them.
        length: Tensor = torch.linalg.vector_norm(activities, dim=1)
        return length.square() * self._factor(activities)

    def gradient(self, activities: Tensor, upstream: Tensor, out: Tensor | None = None) -> Tensor:
        """2 h * upstream."""
        return torch.mul(activities, (upstream * (2 * self._factor(activities))).unsqueeze(1), out=out)

    def _factor(self, activities: Tensor) -> float:
        return self._sign / (activities.shape[1] if self.over_units == "mean" else 1)


class LinearGoodness(Goodness):
    """sum(h), or its mean over units (DeeperForward, Sun et al. 2025)."""

    def __init__(self, *, mean: bool) -> None:
        self.over_units = "mean" if mean else "sum"

    def value(self, activities: Tensor) -> Tensor:
        """Goodness of each row: (n, num_units) -> (n,)."""
        return activities.sum(dim=1) * self.factor(activities.shape[1])

    def gradient(self, activities: Tensor, upstream: Tensor, out: Tensor | None = None) -> Tensor:
        """`upstream` times a constant, the same for all units."""
        by_row = (upstream * self.factor(activities.shape[1])).unsqueeze(1)
        return by_row if out is None else out.copy_(by_row)

    def factor(self, num_units: int) -> float:
        """The factor by which the sum over `num_units` units is multiplied."""
        return 1 / num_units if self.over_units == "mean" else 1.0


GOODNESSES: Registry[Goodness] = Registry("goodness", "objective.goodness")
GOODNESSES.register("sum_squares", SquaredGoodness(mean=False, sign=1), "Sum of squared activities (Hinton 2022).")
GOODNESSES.register("mean_squares", SquaredGoodness(mean=True, sign=1), "Mean of squared activities.")
GOODNESSES.register("neg_sum_squares", SquaredGoodness(mean=False, sign=-1), "The same sum, low for positive samples.")
GOODNESSES.register("neg_mean_squares", SquaredGoodness(mean=True, sign=-1), "The same mean, low for positive samples.")
GOODNESSES.register("sum", LinearGoodness(mean=False), "Sum of activities.")
GOODNESSES.register("mean", LinearGoodness(mean=True), "Mean of activities (DeeperForward, Sun et al. 2025).")
