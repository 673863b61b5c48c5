"""What the images of each class look like on average, by which a split whose features or labels mean others is found.

Such a split has its columns, channels or axes in another order, values that are negated or in other units, or classes
that are numbered in another way. Its features may have the same mean and spread as in the training split all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ffstream.data.arrangements import list_arrangements, thin_out
from ffstream.data.image_access import Images
from ffstream.data.mean_images import MeanImages, measure_features
from ffstream.data.numberings import list_numberings
from ffstream.data.plane import find_plane
from ffstream.data.positions import Other, Pair, Position
from ffstream.data.sample import MOST_IMAGES, draw_sample

_MOST_FEATURES = 4096  # that are looked at; a picture of 32 x 32 in colour has 3072
_MOST_VALUES = 1 << 17  # of the mean images of all classes; of many classes, fewer features tell them apart
_LEAST_FEATURES = 512  # of however many classes
_ENOUGH = 5  # images of a class in each split; the mean of fewer says little
_OTHER = 0.75  # place between training (0) and training in another order (1) from which a split has the other order
_SURELY = 4.0  # standard errors by which a place differs from that of training
_SURELY_NO_PEOPLE = 2.5  # the same, of errors as large as they are if the split may be of a few other people
_UNLIKE = 0.6  # share of the expected correlation below which the features, or the labels, mean something else
# The correlation of class means that two splits of one kind of data are expected to have; where it is lower, there are
# too few images, or the classes hardly differ on average, and nothing is said of units.
_CLEAR = 0.7
_FAR = 2.2  # ratio of the distances between class means, in either direction, that is not of the same units


@dataclass(frozen=True)
class ClassMeans:
    """The mean images of the training classes, in spreads of their features."""

    shape: tuple[int, ...]  # of the features that are looked at
    features: Tensor  # (k,) their numbers
    mean: Tensor  # (k,) of each feature; of a picture, of all features of its channel
    spread: Tensor  # (k,) the same
    found: MeanImages

    @classmethod
    def of(cls, images: Images, labels: Tensor) -> ClassMeans:
        """Measure images (n, *shape) with labels (n,)."""
        most = min(_MOST_VALUES // (int(labels.max()) + 1), _MOST_FEATURES)
        features, shape = thin_out(images.shape[1:], max(most, _LEAST_FEATURES))
        mean, spread = _pool(*measure_features(images, features), shape)
        return cls(shape, features, mean, spread, MeanImages.of(images, labels, features, mean, spread))

    def find_other(self, images: Images, labels: Tensor) -> str | None:
        """A warning if the class means of a split are unlike those of the training split; None otherwise.

        `images` are (n, *shape), their labels (n,).
        """
        split = MeanImages.of(images, labels, self.features, self.mean, self.spread)
        num_classes = min(len(split.counts), len(self.found.counts))
        is_known = (split.counts[:num_classes] >= _ENOUGH) & (self.found.counts[:num_classes] >= _ENOUGH)
        known = is_known.nonzero().flatten()
        if len(known) < 2:
            return None
        pair = Pair.of(split, self.found, known)
        fitting = self._find_orders(pair, known.tolist())
        if any(each.fits for each in fitting):
            return _describe(fitting, pair)
        return _find_unlike(pair) or (_describe(fitting, pair) if fitting else None)

    def _find_orders(self, pair: Pair, known: list[int]) -> list[Position]:
        """Where a split surely is, of the other orders of features or classes, in the order in which they are named."""
        positions = (pair.find_position(other, _OTHER) for other in self._list_others(pair, known))
        return [each for each in positions if each is not None and each.place >= _SURELY * each.error]

    def _list_others(self, pair: Pair, known: list[int]) -> Iterator[Other]:
        theirs, errors, found = pair.theirs, pair.their_errors, self.found.means[known]
        raw = found * self.spread + self.mean
        factor = torch.where(self.spread > 0, 1 / self.spread.clamp(min=1e-300), 0.0)
        for name, order in list_arrangements(self.shape):
            means = (raw[:, order] - self.mean) * factor
            yield Other(name, pair.centre(means), partial(_reorder, errors, order, self.spread, factor))
        yield Other("negated, or inverted in brightness", -theirs, errors.neg)
        for name, order in list_numberings(pair.mine, theirs, pair.weights, known):
            yield Other(name, pair.centre(theirs[order]), partial(errors.index_select, 0, order))


def _reorder(errors: Tensor, order: Tensor, spread: Tensor, factor: Tensor) -> Tensor:
    """Errors (classes, parts, features) of features in another order, which have units `spread`, or 1 / `factor`."""
    return errors[:, :, order] * (spread[order] * factor)


def _pool(mean: Tensor, spread: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of a picture, the mean and the spread over all features of a channel, so that they are the same in any order."""
    plane = find_plane(shape)
    if plane is None:
        return mean, spread
    means, squares = (each.view(plane) for each in (mean, spread.square()))
    pooled = means.mean(dim=(1, 2), keepdim=True)
    squares = (squares + (means - pooled).square()).mean(dim=(1, 2), keepdim=True)
    spread = torch.where(squares.sqrt() > 1e-9 * pooled.abs(), squares.sqrt(), 0.0)
    return pooled.expand(plane).flatten(), spread.expand(plane).flatten()


def _describe(fitting: list[Position], pair: Pair) -> str:
    """A warning that names the nearest of the orders in which a split may be."""
    best = min(fitting, key=lambda each: each.misfit)
    # Orders that differ by less than what chance may move are all named.
    names = [
        each.other.name
        for each in fitting
        if each.misfit - best.misfit <= pair.distance(each.other.means, best.other.means) / 2
    ]
    more, rest = ("", "") if best.fits else ("more ", " than those that are given, though not quite like them either")
    return (
        f"they look {more}like training images that are {' or '.join(names[:3])}{rest} (between the mean images of the "
        f"training classes as they are, at 0, and these in the other order, at 1, theirs lie at {best.place:.2f} with "
        f"a standard error of {best.error:.2g}); bring them to the order that they have in training"
    )


def _find_unlike(pair: Pair) -> str | None:
    """A warning if a split means neither what training means nor what it means in a known order; None otherwise.

    The means of the classes are compared by their correlation over classes and features. For splits of one kind of data
    it is the smaller, the fewer images there are; how small, follows from the variance within classes.
    """
    mine, theirs, own = pair.mine, pair.theirs, pair.their_errors
    noise, length = pair.multiply_errors(own, own), pair.multiply(theirs, theirs)
    signal = length - noise
    error = pair.error_along(theirs)
    product = pair.multiply(mine, theirs)
    if signal <= 0 or abs(signal - product) < _SURELY * error:
        return None
    mine_noise = max(pair.expected_distance - noise, 0.0)
    expected = signal / math.sqrt(length * (signal + mine_noise))
    own_length = pair.multiply(mine, mine)
    correlation = product / math.sqrt(length * own_length) if own_length else 0.0
    ratio = product / signal
    if max(correlation / expected, ratio) < _UNLIKE:
        excess = pair.find_excess(pair.distance(mine, theirs))
        if signal - product < _SURELY_NO_PEOPLE * error * math.sqrt(excess):
            return None
        return (
            "their classes differ in other features than those of the training images (the classes' mean images have a "
            f"correlation of {correlation:.2f} with those of training, where {expected:.2f} is expected); "
            "bring features, channels, axes and labels to the order and the sign that they have in training, "
            "unless the two splits come from different sources, such as other people or copies of a few originals"
        )
    excess = pair.find_excess(own_length - product**2 / length)
    if expected < _CLEAR or 1 / _FAR <= ratio <= _FAR or abs(signal - product) < _SURELY * error * math.sqrt(excess):
        return None
    return (
        f"the mean images of their classes lie {ratio:.2g} times as far apart as those of the training images, "
        "as if in other units; bring them to the same units"
    )


def draw_alike(labels: Tensor, trained_labels: Tensor) -> Tensor:
    """Numbers of training images, at random, whose labels have the shares that `labels` (n,) have.

    Classes that training lacks are left out.
    """
    generator = torch.Generator().manual_seed(0)
    wanted = labels[draw_sample(len(labels))]
    shares = torch.bincount(wanted).double() / len(wanted)
    num_drawn = min(len(trained_labels), MOST_IMAGES)
    found = [
        own[torch.randint(len(own), (max(round(share * num_drawn), 1),), generator=generator)]
        for label, share in enumerate(shares.tolist())
        if share and len(own := (trained_labels == label).nonzero().flatten())
    ]
    if not found:
        return draw_sample(len(trained_labels))
    drawn = torch.cat(found)
    return drawn[torch.randperm(len(drawn), generator=generator)]
