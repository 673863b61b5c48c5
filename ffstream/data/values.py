"""The values of images: by them it is told whether some are in the units of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_MOST_IMAGES = 4096  # whose mean and spread are taken, evenly spread over all
_PART_FEATURES = 1 << 18  # of images whose squares exist at once
_ENOUGH_IMAGES = 50  # whose mean, spread and sign say something of their units
_RATIO = 8.0  # of magnitudes in the same units, at the most
_SPREADS = 1.0  # between means in the same units, at the most
_SPREAD_RATIO = 3.0
_ROUNDING = 0.05  # of the largest value: as far below zero values may be that are meant to be none


@dataclass(frozen=True)
class Values:
    """The least and the largest value of some images, and the mean and the standard deviation of many."""

    num_images: int
    low: float
    high: float
    mean: float
    spread: float

    @classmethod
    def of(cls, images: Tensor) -> Values:
        """Of images (n, ...), a part at a time."""
        low, high = (float(end) for end in torch.aminmax(images))
        some = images[:: -(-len(images) // _MOST_IMAGES)]
        sums = torch.zeros(2, dtype=torch.float64)
        for images_of_part in some.split(max(_PART_FEATURES // some[0].numel(), 1)):
            for part in images_of_part.flatten().split(_PART_FEATURES):
                values = part.double()
                sums += torch.stack([values.sum(), values.square().sum()])
        mean, square = (sums / some.numel()).tolist()
        return cls(len(images), low, high, mean, max(square - mean**2, 0.0) ** 0.5)

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any]) -> Values:
        """From what `to_mapping` gave."""
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def describe(self) -> str:
        """In words."""
        return f"{self.low:g} to {self.high:g}, {self.mean:g} on average"


def find_other_units(found: Values, trained: Values) -> str | None:
    """What says that values are in other units than those of the training images; None if nothing does.

    Of few images only the magnitude is asked: one alone may be all black or all white.
    """
    are_other = not trained.largest / _RATIO <= found.largest <= trained.largest * _RATIO
    if found.num_images >= _ENOUGH_IMAGES and trained.spread > 0:
        are_other |= abs(found.mean - trained.mean) > _SPREADS * trained.spread
        are_other |= not 1 / _SPREAD_RATIO <= found.spread / trained.spread <= _SPREAD_RATIO
        are_other |= (trained.low < -_ROUNDING * trained.largest) and found.low >= 0
        are_other |= (found.low < -_ROUNDING * found.largest) and trained.low >= 0
    if not are_other:
        return None
    return (
        f"their values ({found.describe()}) do not look like those of the training images ({trained.describe()}), in "
        "whose units they are read; bring them to these units"
    )
