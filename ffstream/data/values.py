"""The values of images: by them it is told whether some are in the units of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_MOST_IMAGES = 4096  # whose mean and spread are taken, evenly spread over all
_PART_FEATURES = 1 << 18  # of images whose squares exist at once
ENOUGH_IMAGES = 50  # whose mean, spread and sign say something of their units
_RATIO = 8.0  # of magnitudes in the same units, at the most
_SPREADS = 1.0  # between means in the same units, at the most
_SPREAD_RATIO = 3.0
_SHIFT, _SPREAD_OF_FEATURE = 4.0, 10.0  # of a feature's mean, by its spread, and between its spreads, in other units
_MEDIAN_SHIFT, _MEDIAN_SPREAD = 1.0, 2.5  # the same, of most features at once, where each is standardised
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

    Of few images only the magnitude is asked, and negative values where there were none: one alone may be all black or
    all white.
    """
    are_other = not trained.largest / _RATIO <= found.largest <= trained.largest * _RATIO
    are_other |= trained.low >= 0 and found.low < -_ROUNDING * found.largest
    if found.num_images >= ENOUGH_IMAGES and trained.spread > 0:
        are_other |= abs(found.mean - trained.mean) > _SPREADS * trained.spread
        are_other |= not 1 / _SPREAD_RATIO <= found.spread / trained.spread <= _SPREAD_RATIO
        are_other |= (trained.low < -_ROUNDING * trained.largest) and found.low >= 0
    if not are_other:
        return None
    return (
        f"their values ({found.describe()}) do not look like those of the training images ({trained.describe()}), in "
        "whose units they are read; bring them to these units"
    )


def find_shifted(found: Tensor, trained: Tensor) -> str | None:
    """What says that some features of images (n, *shape) are in other units than those of the training images.

    Of features that are not zero in most training images; of fewer than 50 images nothing is said.
    """
    if min(len(found), len(trained)) < ENOUGH_IMAGES:
        return None
    (mean, spread, share), (other_mean, other_spread, _) = (_describe_features(each) for each in (trained, found))
    is_told = (share > 0.5) & (spread > 0)
    is_shifted = (other_mean - mean).abs() > _SHIFT * spread
    is_shifted |= (other_spread > _SPREAD_OF_FEATURE * spread) | (other_spread * _SPREAD_OF_FEATURE < spread)
    shifted = (is_shifted & is_told).nonzero().flatten().tolist()
    if not shifted:
        return None
    first = shifted[0]
    others = f" and {len(shifted) - 1} more" if len(shifted) > 1 else ""
    return (
        f"feature {first}{others} (of {len(mean)}) do not look like those of the training images ({mean[first]:g} on "
        f"average there, with a spread of {spread[first]:g}; here {other_mean[first]:g} and {other_spread[first]:g}); "
        "bring them to the same units"
    )


def find_shifted_rows(rows: Tensor) -> str | None:
    """What says that standardised images, rows (n, features), are in other units than those for training.

    Of fewer than 50 nothing is said.
    """
    if len(rows) < ENOUGH_IMAGES:
        return None
    mean, spread, _ = _describe_features(rows)
    varies = (rows != rows[0]).any(dim=0)
    if not bool(varies.any()):
        return None
    shift, ratio = float(mean[varies].abs().median()), float(spread[varies].median())
    if shift <= _MEDIAN_SHIFT and 1 / _MEDIAN_SPREAD <= ratio <= _MEDIAN_SPREAD:
        return None
    return (
        f"standardised as the training images are, most features are {shift:.3g} from their mean there, and have a "
        f"spread of {ratio:.3g}, where 0 and 1 are meant; bring them to the units of the training images"
    )


def _describe_features(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each feature of many images: the mean, the spread, and the share of images in which it is not zero."""
    index = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:_MOST_IMAGES]
    sums = torch.zeros(3, images[0].numel(), dtype=torch.float64)
    start = images[index[0]].flatten().double()  # differences to it, as squares of large values lose small spreads
    for part in index.split(max(_PART_FEATURES // images[0].numel(), 1)):
        values = images[part].flatten(1).double()
        sums[2] += (values != 0).sum(dim=0)
        values -= start
        sums[0] += values.sum(dim=0)
        sums[1] += values.square().sum(dim=0)
    mean, square, share = sums / len(index)
    return mean + start, (square - mean.square()).clamp(min=0.0).sqrt(), share
