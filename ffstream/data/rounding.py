"""Finds what wide numbers lose as 32-bit floats: small differences beside a large offset, and very small numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDE = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)  # float32 cannot hold these exactly
_SMALLEST = torch.finfo(torch.float32).tiny  # float32 holds numbers below it with fewer digits, or takes them for 0
_SHARE = 1 / 50  # share of a feature's range above which a rounding error is reported


class Rounding:
    """The range and the largest rounding error of each feature, collected while an array is read in order."""

    def __init__(self, num_features: int) -> None:
        self._num_features = num_features
        self._low, self._high = (
            torch.full((num_features,), end, dtype=torch.float64) for end in (torch.inf, -torch.inf)
        )
        self._error = torch.zeros(num_features, dtype=torch.float64)

    def add(self, start: int, values: Tensor, by_feature: Sequence[int] | None = None) -> None:
        """Take account of values (n,), the first of which is element `start` of the flattened array.

        `by_feature` is the shape of an array that was written in Fortran order: feature by feature.
        """
        places = torch.arange(start, start + len(values))
        if by_feature is None:
            features = places % self._num_features
        else:
            axes = range(len(by_feature) - 2, -1, -1)  # the first axis of an image runs fastest
            order = torch.arange(self._num_features).view(tuple(by_feature[1:])).permute(*axes).flatten()
            features = order[places // by_feature[0]]
        wide = values.double()
        self._low.scatter_reduce_(0, features, wide, "amin")
        self._high.scatter_reduce_(0, features, wide, "amax")
        self._error.scatter_reduce_(0, features, (wide - wide.float().double()).abs(), "amax")

    def describe(self) -> str | None:
        """A warning if features lose differences by rounding; None otherwise."""
        spread = self._high - self._low
        is_lost = (self._error > _SHARE * spread) & (spread > 0)
        if not bool(is_lost.any()):
            return None
        largest = torch.maximum(self._low.abs(), self._high.abs())
        is_small = largest < _SMALLEST  # rounding such numbers loses differences without any offset
        said = []
        for lost in (is_lost & ~is_small, is_lost & is_small):
            if not bool(lost.any()):
                continue
            first = int(lost.nonzero()[0])
            more = f" and {int(lost.sum()) - 1} more" if int(lost.sum()) > 1 else ""
            words = (
                f"are {float(largest[first]):.3g} at most, which numbers of 32 bits take for 0, or nearly so; bring "
                "them to larger units"
                if bool(is_small[first])
                else f"vary by {float(spread[first]):.3g} only, around {float(self._high[first]):.3g}, which numbers "
                "of 32 bits do not hold; subtract that offset"
            )
            said.append(f"the values of feature {first}{more} {words}")
        return "; ".join(said)
