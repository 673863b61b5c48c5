"""Values that many held-out samples share and no training sample has, as numbers that stand for missing values are.

Training data may have been cleaned of such numbers, and a test split, or rows to be predicted, not. Samples of one kind
are exchangeable: of k that share a value, all are held out with a probability of the held-out share to the power k.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffstream.data.image_access import Images, read_columns
from ffstream.data.missing_values import COPIED_VALUES, are_codes, name_features
from ffstream.data.sample import draw_sample

_TABLE_DIMS, _MOST_FEATURES = 2, 1024  # of the rows of a table, whose features are looked at one by one
_BY_CHANCE = 1e-7  # probability below which an accident is ruled out, small as features may be many
_LEAST_TIMES = 3  # of a value in the sample of held-out rows in which it is looked for
_MOST_SHARE = 0.75  # of the held-out samples; a feature that has new values in more is in other units, or of a new time
_MOST_VALUES = 4  # new values of a feature, and of all that are named; more are of other people, or of other rounding
_NEAR = 1 / 256  # relative difference of values that are equal but for rounding, also to bfloat16
_MOST_KEPT = 16  # distinct values of a feature that are all kept; of other features, numbers for missing values
# Distance from the training range, in ranges, from which a code is named in a single feature, as the oldest of other
# people may be 99, and any number in several features.
_FAR = 0.5
_NEARLY_ALL = 0.8  # share of the new values that must be those named; other people bring new values of all kinds


class _Range(NamedTuple):
    """Where the training values of a feature lie."""

    low: float
    high: float
    mean: float
    spread: float

    @classmethod
    def of(cls, column: Tensor) -> tuple[_Range, Tensor]:
        """Measure a column (n,); also its distinct values, sorted."""
        column = column.double()
        own = column.unique()
        return cls(float(own[0]), float(own[-1]), float(column.mean()), float(column.std(correction=0))), own

    def is_beyond(self, value: float, by: float) -> bool:
        """Whether a value lies outside of the range, by so many ranges or more."""
        return max(self.low - value, value - self.high) >= by * (self.high - self.low)

    def is_apart(self, value: float) -> bool:
        """Whether a value is not about the mean, which is what is put for missing values."""
        return abs(value - self.mean) > self.spread


@dataclass(frozen=True)
class TrainedValues:
    """Of each feature of the rows of a table: its range, and its values where these are few, or the codes among them.

    Codes are numbers that people write for missing values.
    """

    num_rows: int
    low: list[float]
    high: list[float]
    mean: list[float]
    spread: list[float]
    values: list[list[float]]
    are_all: list[bool]  # whether the values are all that the feature has

    @classmethod
    def of(cls, images: Images) -> TrainedValues | None:
        """Read a sample of training images (n, *shape); None of pictures, and of very many features."""
        if not _is_table(images):
            return None
        ranges, values, are_all = [], [], []
        index = draw_sample(len(images))
        for column in _read_rows(images, index).unbind(1):
            range_, own = _Range.of(column)
            ranges.append(range_)
            are_all.append(len(own) <= _MOST_KEPT)
            values.append((own if are_all[-1] else own[_may_be_missing(own)]).tolist())
        low, high, mean, spread = (list(each) for each in zip(*ranges, strict=True))
        return cls(len(index), low, high, mean, spread, values, are_all)

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any], num_features: int) -> TrainedValues | None:
        """The inverse of `to_mapping`, for rows of so many features; None if the mapping does not fit them."""
        if any(len(found[name]) != num_features for name in cls.__dataclass_fields__ if name != "num_rows"):
            return None
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def find_new(self, images: Images) -> str | None:
        """A warning if many rows (n, features) share a value that no training row has, as far as it is known."""
        if not _is_table(images):
            return None
        return _find_new(images, self.num_rows, self._look_up, f"none of {self.num_rows:,} training images")

    def _look_up(self, feature: int, values: Tensor) -> tuple[Tensor, _Range]:
        is_new = ~_are_near(values, torch.tensor(self.values[feature], dtype=torch.float64))
        if not self.are_all[feature]:
            is_new &= _may_be_missing(values)
        return is_new, _Range(*(each[feature] for each in (self.low, self.high, self.mean, self.spread)))


def find_new(images: Images, trained: Images) -> str | None:
    """A warning if many rows (n, features) share a value that no training row has; None otherwise, and of pictures."""

    if not _is_table(images):
        return None
    index = draw_sample(len(trained))
    some = _read_rows(trained, index)

    def look_up(feature: int, values: Tensor) -> tuple[Tensor, _Range]:
        range_, own = _Range.of(some[:, feature])
        is_new = ~_are_near(values, own)
        if len(index) < len(trained) and bool(is_new.any()):
            range_, own = _Range.of(_read_column(trained, feature))
            is_new = ~_are_near(values, own)
        return is_new, range_

    return _find_new(images, len(trained), look_up, "no training image")


def _is_table(images: Images) -> bool:
    return len(images.shape) == _TABLE_DIMS and images.shape[1] <= _MOST_FEATURES


def _read_rows(images: Images, index: Tensor) -> Tensor:
    return read_columns(images, torch.arange(images.shape[1]), COPIED_VALUES, index)


def _read_column(images: Images, feature: int) -> Tensor:
    return read_columns(images, torch.tensor([feature]), COPIED_VALUES)[:, 0]


def _may_be_missing(values: Tensor) -> Tensor:
    return are_codes(values) | (values == 0)


def _are_near(values: Tensor, others: Tensor) -> Tensor:
    """Which of some values (k,) are, but for rounding, among others that are sorted (m,)."""
    if not len(others):
        return torch.zeros(len(values), dtype=torch.bool)
    place = torch.searchsorted(others, values)
    ends = torch.stack([others[(place - 1).clamp(min=0)], others[place.clamp(max=len(others) - 1)]])
    return ((ends - values).abs() <= _NEAR * values.abs()).any(dim=0)


def _find_new(
    images: Images, num_trained: int, look_up: Callable[[int, Tensor], tuple[Tensor, _Range]], nowhere: str
) -> str | None:
    """A warning of new values in rows (n, features); `look_up` says which values of a feature are, and its range.

    `nowhere` are the words for where such a value does not occur.
    """
    num, num_features = images.shape
    least = math.log(num_features * (num + num_trained) / _BY_CHANCE) / math.log((num + num_trained) / num)
    if num < least:
        return None
    some = _read_rows(images, draw_sample(num))
    found: dict[float, list[int]] = defaultdict(list)  # features by the new value that they have
    may_name: set[float] = set()
    for feature in range(num_features):
        own, counts = some[:, feature].double().unique(return_counts=True)
        own = own[counts >= max(_LEAST_TIMES, 0.5 * least * len(some) / num)]
        if not len(own):
            continue
        is_new, range_ = look_up(feature, own)
        values = own[is_new].tolist()
        if not 0 < len(values) <= _MOST_VALUES or range_.low == range_.high:
            continue
        column = _read_column(images, feature).double()
        if float(torch.isin(column, own[is_new]).double().mean()) > _MOST_SHARE:
            continue
        for value in values:
            # Rows of one person may share a value that no other person has. Where they follow each other, they count
            # once.
            is_there = column == value
            if int(is_there[0]) + int((is_there[1:] & ~is_there[:-1]).sum()) < least:
                continue
            found[value].append(feature)
            is_code = bool(_may_be_missing(torch.tensor([value]))[0])
            is_far = range_.is_beyond(value, _FAR)
            is_alone = is_code and (is_far or value < 0 <= range_.low)
            is_shared = len(found[value]) > 1 and (is_far or (is_code and range_.is_apart(value)))
            if is_alone or is_shared:
                may_name.add(value)
    num_named = sum(len(found[value]) for value in may_name)
    if not may_name or len(may_name) > _MOST_VALUES or num_named < _NEARLY_ALL * sum(map(len, found.values())):
        return None
    return "; ".join(_describe(images, value, found[value], nowhere) for value in sorted(may_name))


def _describe(images: Images, value: float, features: list[int], nowhere: str) -> str:
    numbers = torch.cat([(_read_column(images, feature).double() == value).nonzero().flatten() for feature in features])
    return (
        f"the value {value:g} occurs {len(numbers):,} times, in {name_features(torch.tensor(features))}, and in "
        f"{nowhere} there (the first: image {int(numbers.min())}); if it marks missing values, put there what the "
        "training images have in their place"
    )
