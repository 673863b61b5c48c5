"""Whether the mean of images is that of a mixture of the training classes, by which images of another kind are found.

Images to be predicted have no labels, and may all be of one class. But however many are of each class, the means of
their features are a weighted mean of the class means. Noise, values that were rounded to zero, and pixels in another
order are not like that, though all values together may look as in training.

Rows that were chosen by what they hold, such as people above an age, or dark pictures, are of no mixture either, though
nothing is wrong with them. Such a choice moves one feature and those that vary with it: a large part of few features,
and of any number of features that have a common cause. So the means of few features are not compared, and those of
others count only if they are farther off than such a choice would move them.

A class may have kinds, such as persons or topics, and rows may be of one of them alone. Their mean is that of a mixture
of kinds then, which are groups of training images, and each row is about as near to a kind as training images are.
Pixels in another order may have such a mean, but are not near to any kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values, read_columns
from ffstream.data.sample import PART_VALUES, draw_sample
from ffstream.data.values import ENOUGH_IMAGES

_MOST_FEATURES, _MOST_MEANS = 256, 1 << 13  # that are kept; of more classes than that allows, nothing is
_MOST_TRAINED, _FEW_IMAGES = 2048, 10  # training images, and least number of those of a class, that are measured
_MOST_SPREADS = 3.0  # from the mean, at which values are cut off, as those of a heavy tail would outweigh all others
# The square of the distance from the nearest mixture, in spreads and on average over features: it is about 1 over the
# number of images for images of the same kind, in all features alike at worst.
# It was 0.12 at most for 50 images and more of one digit, and 0.4 for one digit where classes are odd and even ones.
_FAR, _TIMES_EXPECTED = 0.45, 30.0
_FEW_FEATURES = 64  # of an image, below which means are not compared
# Within classes, features vary most along one direction, and a choice of images moves their mean by this many spreads
# along it at most, as values are cut off there. The brightest 50 of 1000 pictures of CIFAR-10 were 1.5 spreads off.
_MOST_CHOSEN = _MOST_SPREADS
# Share in training of images that are whole throughout, and of whole numbers where features are few, up to which images
# may not all be whole.
_MOST_WHOLE = 0.01
_RARELY = 1e-7  # probability below which it is no accident that all values are whole numbers
_LEAST_SPREAD = 1e-6  # of values in spreads, once they are cut off; a smaller one is of rounding
# Kinds of images that are looked for, each in so many training images or more, and the steps in which this is done.
_MOST_KINDS, _NUM_LOOKS = 64, 8
_NEAR_KIND = 1.5  # times as far from the nearest kind as training images, up to which images are of known kinds
_NUM_STEPS = 100  # towards the nearest mixture
_DIGITS = 4  # that are kept of each number


@dataclass(frozen=True)
class Mixtures:
    """Of some features (k,): mean and spread in training, where values are cut off, and the means of classes."""

    features: Tensor  # (k,) their numbers
    mean: Tensor  # (k,)
    spread: Tensor  # (k,) above 0
    class_labels: Tensor  # (classes,)
    class_means: Tensor  # (classes, k) of values in spreads from the mean, which are cut off
    cut_spread: Tensor  # (k,) the spread of these values
    kind_means: Tensor  # (kinds, k) the same of groups of images that are alike, whatever their classes
    kind_distance: float  # mean square distance of an image from its kind, on average over features
    common: float  # share of the variance within classes that lies along one direction, over all k features
    whole_share: float  # share of the values other than 0 that are whole numbers
    whole_images: float  # share of the images all of whose values are whole numbers

    @classmethod
    def of(cls, images: Images, labels: Tensor) -> Mixtures | None:
        """Measure a sample of training images (n, *shape); None where there are too many classes or nothing varies."""
        index = draw_sample(len(images), _MOST_TRAINED)
        known, place, counts = labels[index].unique(return_inverse=True, return_counts=True)
        num_kept = min(_MOST_FEATURES, _MOST_MEANS // len(known))
        features = draw_sample(count_values(images), num_kept).sort().values
        if not len(features) or int(counts.min()) < _FEW_IMAGES:
            return None
        values = _take(images, index, features)
        mean, spread = values.mean(dim=0), values.std(dim=0, correction=0)
        varies = _cut(values, mean, spread.clamp(min=1e-300)).std(dim=0, correction=0) > _LEAST_SPREAD
        if not bool(varies.any()):
            return None
        features, values, mean, spread = features[varies], values[:, varies], mean[varies], spread[varies]
        cut = _cut(values, mean, spread)
        means = torch.zeros(len(known), len(features), dtype=torch.float64).index_add_(0, place, cut)
        num_whole, num_values = _count_whole(values)
        cut_spread, whole_share = cut.std(dim=0, correction=0), num_whole / max(num_values, 1)
        means /= counts.unsqueeze(1)
        common = _measure_common((cut - means[place]) / cut_spread)
        kinds = _find_kinds(cut / cut_spread)
        kind_distance = _measure_nearness(cut / cut_spread, kinds) if len(kinds) else 0.0
        is_whole = (values == values.round()).all(dim=1) & (values != 0).any(dim=1)  # of an empty image, nothing counts
        whole_images = float(is_whole.double().mean())
        more = (kinds * cut_spread, kind_distance, common, whole_share, whole_images)
        return cls(features, mean, spread, known, means, cut_spread, *more)

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any], num_features: int) -> Mixtures | None:
        """The inverse of `to_mapping`, for images of so many features; None if the mapping does not fit them."""
        features, labels, num = found["features"], found["class_labels"], len(found["features"])
        kinds = found.get("kind_means", [])  # not in runs of earlier versions, nor is the share of whole images
        lists = [found["mean"], found["spread"], found["cut_spread"], *found["class_means"], *kinds]
        are_all = len(found["class_means"]) == len(labels) > 0 and all(len(each) == num > 0 for each in lists)
        if not are_all or max(features) >= num_features or min(found["spread"] + found["cut_spread"]) <= 0:
            return None
        names = ("mean", "spread", "class_means", "cut_spread")
        mean, spread, class_means, cut_spread = (torch.tensor(found[name], dtype=torch.float64) for name in names)
        whole = (torch.tensor(numbers, dtype=torch.int64) for numbers in (features, labels))
        own_features, class_labels = whole
        common = float(found.get("common", 1.0))  # in runs of earlier versions, all may have a common cause
        whole_share, whole_images = float(found["whole_share"]), float(found.get("whole_images", 0.0))
        kind_means = torch.tensor(kinds, dtype=torch.float64).reshape(-1, num)
        more = (kind_means, float(found.get("kind_distance", 0.0)), common, whole_share, whole_images)
        return cls(own_features, mean, spread, class_labels, class_means, cut_spread, *more)

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest, rounded."""
        numbers = {name: getattr(self, name) for name in ("mean", "spread", "class_means", "cut_spread", "kind_means")}
        rounded = {name: _round(value) for name, value in numbers.items()}
        whole = {"features": self.features.tolist(), "class_labels": self.class_labels.tolist()}
        shares = {"whole_share": self.whole_share, "whole_images": self.whole_images}
        distances = {name: float(f"{getattr(self, name):.{_DIGITS}g}") for name in ("common", "kind_distance")}
        return whole | rounded | distances | shares

    def measure(self, images: Images, labels: Tensor | None = None) -> float:
        """The mean square distance of the mean of images (n, *shape) from the nearest mixture, or that of `labels`."""
        index = draw_sample(len(images))
        mean = _cut(_take(images, index, self.features), self.mean, self.spread).mean(dim=0) / self.cut_spread
        corners = self.class_means / self.cut_spread
        if labels is None:
            nearest = _project(mean, corners)
        else:
            own = labels[index]
            shares = torch.stack([(own == label).double().mean() for label in self.class_labels])
            nearest = shares @ corners / shares.sum()
        return float((mean - nearest).square().mean())

    def _are_of_known_kinds(self, images: Images, limit: float) -> bool:
        """Whether images (n, *shape) are those of a few kinds that occur in training, such as those of one person.

        Their mean is then that of a mixture of kinds but for `limit`, and each image is near to one kind.
        """
        if not len(self.kind_means):
            return False
        index = draw_sample(len(images), _MOST_TRAINED)
        rows = _cut(_take(images, index, self.features), self.mean, self.spread) / self.cut_spread
        kinds = self.kind_means / self.cut_spread
        corners = torch.cat([self.class_means / self.cut_spread, kinds])
        distance = float((rows.mean(dim=0) - _project(rows.mean(dim=0), corners)).square().mean())
        return distance <= limit and _measure_nearness(rows, kinds) <= _NEAR_KIND * self.kind_distance

    def find_other(self, images: Images, labels: Tensor | None = None) -> str | None:
        """A warning if images (n, *shape), with labels (n,) if they are known, are of no mixture; None otherwise.

        Of fewer than 50 different images, nothing counts but that all of their values are whole numbers, nor of images
        with few features.
        """
        has_few_features = count_values(images) < _FEW_FEATURES
        num_whole, num_values = _count_whole(_take(images, draw_sample(len(images)), self.features))
        # They may be rows without amounts, say, or of people who give whole stars.
        may_be_whole = self.whole_images > _MOST_WHOLE or (has_few_features and self.whole_share > _MOST_WHOLE)
        if num_whole == num_values and not may_be_whole and self.whole_share**num_values < _RARELY:
            return (
                f"all of their values are whole numbers, as are {self.whole_share:.0%} of those in training other than "
                "0; give them as floats, as they were before they were rounded"
            )
        if has_few_features or (labels is not None and not bool(torch.isin(labels, self.class_labels).all())):
            return None
        some = images if len(images) <= 10 * ENOUGH_IMAGES else images[draw_sample(len(images), 10 * ENOUGH_IMAGES)]
        num_different = len(_take(some, torch.arange(len(some)), self.features).unique(dim=0))
        if num_different < ENOUGH_IMAGES:
            return None
        distance = self.measure(images, labels)
        num = len(images) if num_different == len(some) else num_different
        limit = max(_FAR, _MOST_CHOSEN**2 * self.common, _TIMES_EXPECTED / num)
        if distance <= limit or self._are_of_known_kinds(images, limit):
            return None
        return (
            f"their mean image is unlike any mixture of the training classes: over {len(self.features)} features it is "
            f"{distance**0.5:.2g} spreads away from the nearest one; they may show other things than those in training "
            "do, or their values were rounded, or their features or pixels come in another order"
        )


def _take(images: Images, index: Tensor, features: Tensor) -> Tensor:
    """Some features (k,) of the images `index` (n,), in double precision: (n, k)."""
    return read_columns(images, features, PART_VALUES, index).double()


def _count_whole(values: Tensor) -> tuple[int, int]:
    """The number of whole numbers among the values other than 0, and the number of these values."""
    is_there = values != 0
    return int((is_there & (values == values.round())).sum()), int(is_there.sum())


def _cut(values: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    return ((values - mean) / spread).clamp(-_MOST_SPREADS, _MOST_SPREADS)


def _measure_common(residuals: Tensor) -> float:
    """The share of the number of features k that the largest eigenvalue of the mean square of residuals (n, k) is."""
    return float(torch.linalg.matrix_norm(residuals, ord=2)) ** 2 / residuals.numel()


def _find_kinds(points: Tensor) -> Tensor:
    """Means of groups of points (n, k) that are alike, (kinds, k), by k-means with centres that are far apart."""
    generator = torch.Generator().manual_seed(0)
    num = min(_MOST_KINDS, len(points) // _FEW_IMAGES, _MOST_MEANS * 2 // points.shape[1])
    centres = points[:1]
    nearest = (points - centres).square().sum(dim=1)
    for _ in range(num - 1):
        if not bool((nearest > 0).any()):
            break
        new = points[torch.multinomial(nearest, 1, generator=generator)]
        centres = torch.cat([centres, new])
        nearest = torch.minimum(nearest, (points - new).square().sum(dim=1))
    for _ in range(_NUM_LOOKS):
        own = torch.cdist(points, centres).argmin(dim=1)
        counts = torch.bincount(own, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, own, points)
        centres, counts = (sums / counts.clamp(min=1).unsqueeze(1))[counts > 0], counts[counts > 0]
    return centres[counts >= _FEW_IMAGES]  # a few images far from all others are of no kind


def _measure_nearness(points: Tensor, centres: Tensor) -> float:
    """The mean square distance of points (n, k) from the nearest of centres (m, k), on average over k."""
    return float(torch.cdist(points, centres).amin(dim=1).square().mean()) / points.shape[1]


def _round(values: Tensor) -> Any:
    if values.dim() > 1:
        return [_round(row) for row in values]
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def _project(point: Tensor, corners: Tensor) -> Tensor:
    """The point nearest to `point` (k,) among the weighted means of `corners` (n, k), by steps of Frank and Wolfe."""
    nearest = corners[(corners - point).square().sum(dim=1).argmin()]
    for _ in range(_NUM_STEPS):
        direction = corners[(corners @ (nearest - point)).argmin()] - nearest
        square = float(direction.square().sum())
        step = float((point - nearest) @ direction) / max(square, 1e-300)
        if step <= 0:
            break
        nearest = nearest + min(step, 1.0) * direction
    return nearest
