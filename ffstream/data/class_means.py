"""What the images of each class look like on average, by which a split whose features or labels mean others is found.

Such a split has its columns, channels or axes in another order, values that are negated or in other units, or classes
that are numbered in another way. Its features may have the same mean and spread as in the training split all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.data.arrangements import arrange
from ffstream.data.plane import find_plane
from ffstream.data.sample import MOST_IMAGES, PART_VALUES, draw_sample

_MOST_FEATURES, _MOST_CLASSES = 4096, 200  # that are looked at; a picture of 32 x 32 in colour has 3072 features
_ENOUGH = 5  # images of a class in each split; the mean of fewer says little
# The correlation of class means that two splits of one kind of data are expected to have; where it is lower, there are
# too few images, or the classes hardly differ on average, and nothing is said.
_CLEAR = 0.7
_UNLIKE = 0.5  # share of the expected correlation below which the features, or the labels, mean something else
_NUM_BLOCKS = 5  # parts of a class whose means are compared, to see whether images are independent of each other
# Another arrangement fits if it reaches this share of the expected correlation, where the one that is given reaches no
# more than that share of what the other reaches.
_FITS, _FALLS_SHORT = 0.85, 0.8
# Errors by which two classes have to be nearer to each other's means than to their own, if all of the error lay in the
# one direction that counts. In a table it may; that of pictures is spread over ten directions and more: of classes that
# are alike, no two were 0.5 apart (MNIST, digits, CIFAR-10).
_SWAPPED_ROWS, _SWAPPED_PICTURES = 5.0, 1.5
_MOST_SPREADS = 3.0  # from the mean, at which values are cut off
_SURELY = 3.0  # errors by which what the two splits have in common differs from what is expected
_MOST_DIRECTIONS = 40  # in which class means may err independently of each other, of pictures for example
_FAR = 2.2  # ratio of the distances between class means, in either direction, that is not of the same units


@dataclass(frozen=True)
class _Means:
    """Of values in spreads of the training images, each within _MOST_SPREADS of their mean."""

    counts: Tensor  # (classes,) images
    means: Tensor  # (classes, features)
    errors: Tensor  # (classes,) what the variance of the mean of one image a class would be, summed over features


@dataclass(frozen=True)
class ClassMeans:
    """The means of some features of the training images of each class, in spreads of these features."""

    shape: tuple[int, ...]  # of an image
    features: Tensor  # (k,) their numbers
    mean: Tensor  # (k,) of each feature
    spread: Tensor  # (k,) of each feature, above 0
    rest: Tensor  # the values of the features that are the same in all images
    found: _Means

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> ClassMeans:
        """Measure images (n, *shape) with labels (n,)."""
        features = draw_sample(images[0].numel(), _MOST_FEATURES)
        mean, spread = _measure_features(images, features)
        rest = mean[spread == 0]
        features, mean, spread = (each[spread > 0] for each in (features, mean, spread))
        found = _measure(images, labels, features, mean, spread)
        return cls(tuple(images.shape[1:]), features, mean, spread, rest, found)

    def find_other(self, images: Tensor, labels: Tensor) -> str | None:
        """A warning if the class means of a split are unlike those of the training split; None otherwise.

        `images` are (n, *shape), their labels (n,). The means of the classes are compared by their correlation over
        classes and features, which are weighted by their spread in training. For splits of one kind of data it is the
        smaller, the fewer images there are; how small, follows from the variance within classes.
        """
        if not len(self.features):
            return None
        found, wanted = _measure(images, labels, self.features, self.mean, self.spread), self.found
        num_classes = min(len(found.counts), len(wanted.counts))
        is_known = (found.counts[:num_classes] >= _ENOUGH) & (wanted.counts[:num_classes] >= _ENOUGH)
        num_known = int(is_known.sum())
        if num_known < 2:
            return None
        mine, theirs = (each.means[:num_classes][is_known] for each in (found, wanted))
        given = mine
        mine, theirs = mine - mine.mean(dim=0), theirs - theirs.mean(dim=0)
        # By class, as a rare one may differ from the others by nothing but a larger spread.
        errors = wanted.errors[:num_classes][is_known] * (1 - 1 / num_known)
        mine_noise, theirs_noise = (
            float((errors / each.counts[:num_classes][is_known]).sum()) for each in (found, wanted)
        )
        signal = float(theirs.square().sum()) - theirs_noise
        if signal <= 0:
            return None
        expected = signal / math.sqrt((signal + theirs_noise) * (signal + mine_noise))
        if expected < _CLEAR:
            return None
        product, correlation = float((mine * theirs).sum()), _correlate(mine, theirs)
        said = f"have a correlation of {correlation:.2f} with those of training, where {expected:.2f} is expected"
        # Few features, or classes, have few directions to err in: there, chance may turn means around.
        num_directions = min(len(self.features) * (num_known - 1), _MOST_DIRECTIONS)
        error = math.sqrt((signal + theirs_noise) * (mine_noise + theirs_noise) / num_directions)
        fitting = [(_correlate(arranged, theirs), name) for name, arranged in self._rearrange(given)]
        best, name = max(fitting, default=(0.0, ""))
        is_surely_better = (best - correlation) * float(mine.norm() * theirs.norm()) >= _SURELY * error
        if is_surely_better and best > _FITS * expected and correlation < _FALLS_SHORT * best:
            return (
                f"they look like training images that are {name} (the classes' mean images {said}, and {best:.2f} "
                f"if they are taken for images {name}); bring them to the arrangement that they have in training"
            )
        is_sure = abs(signal - product) >= _SURELY * error
        if is_sure and correlation < _UNLIKE * expected:
            return (
                "their classes differ in other features than those of the training images (the classes' mean images "
                f"{said}); "
                "bring features, channels, axes and labels to the order and the sign that they have in training, "
                "unless the two splits come from different sources, such as other people or copies of a few originals"
            )
        ratio = product / signal
        if is_sure and not 1 / _FAR <= ratio <= _FAR:
            return (
                f"the mean images of their classes lie {ratio:.2g} times as far apart as those of the training images, "
                "as if in other units; bring them to the same units"
            )
        known = is_known.nonzero().flatten().tolist()
        least = _SWAPPED_ROWS if find_plane(self.shape) is None else _SWAPPED_PICTURES
        swapped = _find_swapped(mine, theirs, errors / found.counts[:num_classes][is_known], least)
        if swapped is not None:
            one, other = (known[place] for place in swapped)
            return (
                f"those of class {one} look like training images of class {other}, and the other way round; number the "
                "classes as in training"
            )
        return None

    def _rearrange(self, means: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Means (classes, k) in other arrangements of their features, around their mean, each with its name."""
        num_features = math.prod(self.shape)
        if num_features > _MOST_FEATURES:
            return
        whole = torch.zeros(len(means), num_features, dtype=torch.float64)
        whole[:, self.features] = means * self.spread + self.mean
        if len(self.features) < num_features:  # those without a spread are the same in all images
            rest = torch.ones(num_features, dtype=torch.bool)
            rest[self.features] = False
            whole[:, rest] = self.rest
        for name, arranged in arrange(whole, self.shape):
            scaled = ((arranged[:, self.features] - self.mean) / self.spread).clamp(-_MOST_SPREADS, _MOST_SPREADS)
            yield name, scaled - scaled.mean(dim=0)


def _correlate(mine: Tensor, theirs: Tensor) -> float:
    length = float(mine.norm() * theirs.norm())
    return float((mine * theirs).sum()) / length if length else 0.0


def _find_swapped(mine: Tensor, theirs: Tensor, squared_errors: Tensor, least: float) -> tuple[int, int] | None:
    """Two classes whose means (classes, k) lie the other way round in a split, by `least` errors; None without any.

    `squared_errors` (classes,) are those of the means of the split.
    """
    products = theirs @ mine.T  # of a class in training with each of the split
    own = products.diagonal()
    along = own.unsqueeze(0) + own.unsqueeze(1) - products - products.T  # of the differences of two classes
    distances = torch.cdist(theirs, theirs)
    errors = (squared_errors.unsqueeze(0) + squared_errors.unsqueeze(1)).sqrt()
    far = -along / (distances * errors).clamp(min=1e-300)
    far.fill_diagonal_(0.0)
    place = int(far.argmax())
    return divmod(place, len(far)) if float(far.flatten()[place]) > least else None


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


def _parts(images: Tensor, index: Tensor, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of `index`, and some features of these images in double precision."""
    for part in index.split(max(PART_VALUES // images[0].numel(), 1)):
        yield part, images[part].flatten(1)[:, features].double()


def _measure_features(images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the spread of some features of a sample of images; the spread of equal values is 0."""
    index = draw_sample(len(images))
    start = images[0].flatten()[features].double()  # subtracted first, as squares of large values lose small spreads
    sums = torch.zeros(2, len(features), dtype=torch.float64)
    for _, rows in _parts(images, index, features):
        sums += torch.stack([(rows - start).sum(dim=0), (rows - start).square().sum(dim=0)])
    mean, square = sums / len(index)
    spread = (square - mean.square()).clamp(min=0).sqrt()
    return mean + start, torch.where(spread > 1e-9 * start.abs(), spread, 0.0)


def _measure(images: Tensor, labels: Tensor, features: Tensor, mean: Tensor, spread: Tensor) -> _Means:
    """Measure some features of a sample of images, in units of their training `spread` around their training `mean`.

    A feature that is rarely anything but zero has a small spread; without a limit, the one image in which it is not
    would weigh more than all others. Images that follow each other may be of one person, or copies of one original: the
    images of a class count for as many as the means of its parts, in the order of the split, agree like.
    """
    index = draw_sample(len(images)).sort().values
    index = index[labels[index] < _MOST_CLASSES]
    num_classes = int(labels[index].max()) + 1 if len(index) else 0
    counts = torch.bincount(labels[index], minlength=num_classes).double()
    blocks = torch.zeros(len(images), dtype=torch.int64)  # numbers of parts of classes
    blocks[index] = _cut_classes(labels[index], counts)
    block_counts = torch.bincount(blocks[index], minlength=num_classes * _NUM_BLOCKS).double()
    sums = torch.zeros(num_classes * _NUM_BLOCKS, len(features), dtype=torch.float64)
    squares = torch.zeros(num_classes, dtype=torch.float64)
    for part, rows in _parts(images, index, features):
        scaled = ((rows - mean) / spread).clamp(-_MOST_SPREADS, _MOST_SPREADS)
        sums.index_add_(0, blocks[part], scaled)
        squares.index_add_(0, labels[part], scaled.square().sum(dim=1))
    means = sums.view(num_classes, _NUM_BLOCKS, -1).sum(dim=1) / counts.clamp(min=1).unsqueeze(1)
    between = counts * means.square().sum(dim=1)
    errors = (squares - between).clamp(min=0) / (counts - 1).clamp(min=1)
    apart = (sums / block_counts.clamp(min=1).unsqueeze(1)).view(num_classes, _NUM_BLOCKS, -1) - means.unsqueeze(1)
    of_blocks = (block_counts.view(num_classes, _NUM_BLOCKS) * apart.square().sum(dim=2)).sum(dim=1)
    return _Means(counts, means, torch.maximum(errors, of_blocks / (_NUM_BLOCKS - 1)))


def _cut_classes(labels: Tensor, counts: Tensor) -> Tensor:
    """For each image of a sample, in order, which of `_NUM_BLOCKS` equal parts of its class it is in: (n,) numbers."""
    order = labels.argsort(stable=True)
    starts = counts.cumsum(dim=0) - counts
    ranks = torch.empty(len(labels), dtype=torch.float64)
    ranks[order] = torch.arange(len(labels), dtype=torch.float64) - starts[labels[order]]
    return labels * _NUM_BLOCKS + (ranks * _NUM_BLOCKS / counts[labels]).long().clamp(max=_NUM_BLOCKS - 1)
