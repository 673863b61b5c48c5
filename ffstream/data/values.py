"""Statistics of image values, by which images in other units than the training images are detected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

WHITE = 255  # the value of white in a picture, whose values are bytes
_MOST_IMAGES = 4096  # images, at most, from which means and spreads are taken
_PART_FEATURES = 1 << 16  # values whose squares are in memory at once; few, as new memory costs page faults
ENOUGH_IMAGES = 50  # images; the mean, spread and sign of fewer say little about their units
_RATIO = 8.0  # the largest ratio of magnitudes in the same units
_SPREADS = 1.0  # the largest difference of means in the same units, in training spreads
_SPREAD_RATIO = 3.0
_SHIFT, _SPREAD_OF_FEATURE = 4.0, 10.0  # least shift of a feature's mean, in spreads, and ratio of spreads
_MEDIAN_SHIFT, _MEDIAN_SPREAD = 1.0, 2.5  # the same for the medians over standardised features
_NUM_COLOURS = 3
_TINT = 0.04  # the largest difference of the channels of a grey image, as a share of white
_SOME_COLOURED = 0.05  # share of images; a smaller one may have been missed in training images that are all grey
_RARELY = 0.01  # probability below which so many grey images are no accident
_MOST = 0.5  # share of images
_EQUAL = 1e-6  # relative difference of equal values of which some were rounded
_BY_CHANCE = 1e-7  # probability below which an accident is ruled out, small as features may be many
_NUM_CANDIDATES = 5  # images; the most frequent of their values of a feature is its usual value
_GAP, _LEAST_SHARE = 20.0, 0.02  # the least ratio of magnitudes between two units, and share of the images in each
_CLASS_SPREADS, _CLASS_SPREAD_RATIO = 0.5, 1.5  # _SPREADS and _SPREAD_RATIO for images that are all of one class
_MOST_CLASSES, _FEW = 100, 5  # classes that are described, and the images that each needs
_ROUNDING = 0.05  # share of the largest value; values this little below zero do not count as negative


@dataclass(frozen=True)
class Values:
    """The least and the largest value of images, and the mean and the standard deviation of a sample of them."""

    num_images: int
    low: float
    high: float
    mean: float
    spread: float
    classes: tuple[tuple[float, float], ...] = ()  # mean and spread of the first classes of training images
    coloured: float | None = None  # share of images whose three channels differ; None without such channels

    @classmethod
    def of(cls, images: Tensor, labels: Tensor | None = None) -> Values:
        """Measure images (n, ...), a part at a time, and each of their classes where labels (n,) are given."""
        low, high = (float(end) for end in torch.aminmax(images))
        some = images[:: -(-len(images) // _MOST_IMAGES)]
        sums = torch.zeros(2, dtype=torch.float64)
        for images_of_part in some.split(max(_PART_FEATURES // some[0].numel(), 1)):
            for part in images_of_part.flatten().split(_PART_FEATURES):
                values = part.double()
                sums += torch.stack([values.sum(), values.square().sum()])
        mean, square = (sums / some.numel()).tolist()
        found = cls(len(images), low, high, mean, max(square - mean**2, 0.0) ** 0.5, (), _share_coloured(images))
        return found if labels is None else replace(found, classes=_describe_classes(images, labels))

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any]) -> Values:
        """The inverse of `to_mapping`."""
        fields = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        return cls(**fields | {"classes": tuple((mean, spread) for mean, spread in found.get("classes", []))})

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest."""
        found = {name: value for name, value in asdict(self).items() if name != "classes" and value is not None}
        return found | ({"classes": [list(pair) for pair in self.classes]} if self.classes else {})

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def describe(self) -> str:
        """The range and the mean in words, for a message."""
        return f"{self.low:g} to {self.high:g}, {self.mean:g} on average"


def find_other_units(found: Values, trained: Values) -> str | None:
    """A warning if the values `found` are in other units than those of the training images; None otherwise.

    For few images, only the magnitude counts, and negative values where training had none: a single image may be all
    black or all white. For many, the mean and the spread count as well, but not a small magnitude, as the rare largest
    values may be missing. Images like those of a single class pass.
    """
    are_other = found.largest > trained.largest * _RATIO
    are_other |= found.num_images < ENOUGH_IMAGES and found.largest * _RATIO < trained.largest
    are_other |= trained.low >= 0 and found.low < -_ROUNDING * found.largest
    if found.num_images >= ENOUGH_IMAGES and trained.spread > 0:
        is_odd = abs(found.mean - trained.mean) > _SPREADS * trained.spread
        is_odd |= not 1 / _SPREAD_RATIO <= found.spread / trained.spread <= _SPREAD_RATIO
        is_odd |= (trained.low < -_ROUNDING * trained.largest) and found.low >= 0
        are_other |= is_odd and not any(_is_like(found, *each) for each in trained.classes)
    if not are_other:
        return _find_other_colour(found, trained)
    return (
        f"their values ({found.describe()}) do not look like those of the training images ({trained.describe()}), in "
        "whose units they are read; bring them to these units"
    )


def _find_other_colour(found: Values, trained: Values) -> str | None:
    """A warning if images are all grey although training images are in colour, or the other way round; else None."""
    if found.coloured is None or trained.coloured is None:
        return None
    if found.coloured == 0 and (1 - trained.coloured) ** min(found.num_images, _MOST_IMAGES) < _RARELY:
        return f"all are grey, and {100 * trained.coloured:.0f} % of the training images are in colour"
    if trained.coloured == 0 and found.coloured >= _SOME_COLOURED:
        return f"{100 * found.coloured:.0f} % of them are in colour, and all training images are grey"
    return None


def is_coloured(images: Tensor) -> Tensor:
    """Which of images (n, height, width, 3) or (n, 3, height, width) show colours: (n,) bool.

    White is 255 for bytes, else the largest value of all these images.
    """
    channels = images if images.shape[-1] == _NUM_COLOURS else images.movedim(1, -1)
    channels = channels.float()
    most = (channels.amax(dim=-1) - channels.amin(dim=-1)).flatten(1).amax(dim=1)
    return most > _TINT * (WHITE if images.dtype == torch.uint8 else float(channels.abs().amax()))


def _share_coloured(images: Tensor) -> float | None:
    if images.ndim != 4 or _NUM_COLOURS not in (images.shape[-1], images.shape[1]):
        return None
    index = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:_MOST_IMAGES]
    parts = index.split(max(_PART_FEATURES // images[0].numel(), 1))
    return float(torch.cat([is_coloured(images[part]) for part in parts]).double().mean())


def find_shifted(found: Tensor, trained: Tensor) -> str | None:
    """A warning if some features of images (n, *shape) are in other units than in the training images; else None.

    Only features that are nonzero in most training images are compared, and those that are constant there. Fewer than
    50 images are not judged.
    """
    if min(len(found), len(trained)) < ENOUGH_IMAGES:
        return None
    mean, spread, share, usual, usual_share = _describe_features(trained)
    other_mean, other_spread, _, _, still_usual = _describe_features(found, usual)
    is_shifted = (other_mean - mean).abs() > _SHIFT * spread
    is_shifted |= other_spread > _SPREAD_OF_FEATURE * spread
    # A feature that nearly always has the same value may well be constant in a few images.
    is_narrow = (other_spread * _SPREAD_OF_FEATURE < spread) & (usual_share ** len(found) < _BY_CHANCE)
    is_shifted |= is_narrow
    # Of a constant feature, some images may differ where its values are rare; most of them do not by chance.
    is_shifted = torch.where(spread > 0, is_shifted & (share > _MOST), still_usual < 1 - _MOST)
    shifted = is_shifted.nonzero().flatten().tolist()
    if not shifted:
        return None
    first = shifted[0]
    others = f" and {len(shifted) - 1} more" if len(shifted) > 1 else ""
    return (
        f"feature {first}{others} of {len(mean)} have other values than in the training images (mean {mean[first]:g} "
        f"and spread {spread[first]:g} there, {other_mean[first]:g} and {other_spread[first]:g} here); bring them to "
        "the same units"
    )


def find_mixed(images: Tensor) -> str | None:
    """A warning if some of the images (n, *shape) are in other units than the rest; None otherwise.

    The largest magnitudes of the images then form two groups with a gap between them. Fewer than 50 are not judged.
    """
    if len(images) < ENOUGH_IMAGES:
        return None
    largest = torch.cat([part.flatten(1).double().abs().amax(dim=1) for part in images.split(_MOST_IMAGES)])
    order = largest.argsort()
    sizes = largest[order].clamp(min=float(largest[largest > 0].min()) if bool((largest > 0).any()) else 1.0)
    gaps = sizes[1:] / sizes[:-1]
    few = max(int(_LEAST_SHARE * len(images)), 1)
    within = gaps[few - 1 : len(gaps) - few + 1]
    if not len(within) or float(within.max()) < _GAP:
        return None
    position = few + int(within.argmax())
    is_less = 2 * position < len(images)
    some = order[:position] if is_less else order[position:]
    return (
        f"in {len(some)} of {len(images)}, such as image {int(some.min())}, all values are {float(within.max()):.0f} "
        f"times {'smaller' if is_less else 'larger'} than in the rest, as if in other units; bring all to the same"
    )


def measure_rows(rows: Tensor) -> tuple[float, float] | None:
    """The medians of |mean| and spread over the features of standardised rows (n, features); None if none varies."""
    mean, spread, *_ = _describe_features(rows)
    varies = (rows != rows[0]).any(dim=0)
    if not bool(varies.any()):
        return None
    return float(mean[varies].abs().median()), float(spread[varies].median())


def find_shifted_rows(rows: Tensor, classes: Mapping[str, float] | None) -> str | None:
    """A warning if standardised images, rows (n, features), are in other units than the training images; else None.

    Fewer than 50 rows are not judged. `classes` holds the limits within which the training images of any single class
    lie, where these are known.
    """
    found = measure_rows(rows) if len(rows) >= ENOUGH_IMAGES else None
    if found is None:
        return None
    (shift, ratio), limits = found, classes or {"shift": 0.0, "least_spread": 1.0, "most_spread": 1.0}
    is_near = shift <= _MEDIAN_SHIFT + limits["shift"]
    if is_near and limits["least_spread"] / _MEDIAN_SPREAD <= ratio <= limits["most_spread"] * _MEDIAN_SPREAD:
        return None
    return (
        f"standardised by mean and spread of the training images, most features have a mean of {shift:.3g} and a "
        f"spread of {ratio:.3g}, where 0 and 1 are expected; bring them to the units of the training images"
    )


def _is_like(found: Values, mean: float, spread: float) -> bool:
    """Whether images are like those of a class with this mean and spread."""
    is_as_wide = spread / _CLASS_SPREAD_RATIO <= found.spread <= spread * _CLASS_SPREAD_RATIO
    return is_as_wide and abs(found.mean - mean) <= _CLASS_SPREADS * spread


def _describe_classes(images: Tensor, labels: Tensor) -> tuple[tuple[float, float], ...]:
    """The mean and spread of each of the first classes with enough images, from a sample of images and labels (n,)."""
    step = -(-len(images) // _MOST_IMAGES)
    some, its_labels = images[::step], labels[::step]
    sums = torch.empty(len(some), 2, dtype=torch.float64)
    size = max(_PART_FEATURES // some[0].numel(), 1)
    for start, part in zip(range(0, len(some), size), some.split(size), strict=True):
        values = part.flatten(1).double()
        sums[start : start + len(part)] = torch.stack([values.mean(dim=1), values.square().mean(dim=1)], dim=1)
    num_classes = int(its_labels.max()) + 1
    by_class = torch.zeros(num_classes, 2, dtype=torch.float64).index_add_(0, its_labels, sums)
    counts = torch.bincount(its_labels, minlength=num_classes)
    is_known = counts >= _FEW
    means, squares = (by_class[is_known] / counts[is_known].unsqueeze(1))[:_MOST_CLASSES].unbind(1)
    spreads = (squares - means.square()).clamp(min=0.0).sqrt()
    return tuple(zip(means.tolist(), spreads.tolist(), strict=True))


def _describe_features(images: Tensor, usual: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What is known of each feature, from a sample of the images; five tensors (features,).

    They are its mean, its spread, the share of images in which it is not zero, its usual value, which may be given, and
    the share of images in which it has that value.
    """
    index = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:_MOST_IMAGES]
    sums = torch.zeros(4, images[0].numel(), dtype=torch.float64)
    some = images[index[:_NUM_CANDIDATES]].flatten(1).double()
    usual = some.mode(dim=0).values if usual is None else usual
    rounding = _EQUAL * usual.abs()
    start = some[0]  # it is subtracted first, as squares of large values would lose small spreads
    for part in index.split(max(_PART_FEATURES // images[0].numel(), 1)):
        values = images[part].flatten(1).double()
        sums[2] += (values != 0).sum(dim=0)
        sums[3] += ((values - usual).abs() <= rounding).sum(dim=0)
        values -= start
        sums[0] += values.sum(dim=0)
        sums[1] += values.square().sum(dim=0)
    mean, square, share, usual_share = sums / len(index)
    return mean + start, (square - mean.square()).clamp(min=0.0).sqrt(), share, usual, usual_share
