"""The mean image of each class of a split, and how far chance may move it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values
from ffstream.data.sample import PART_VALUES, draw_sample

_MOST_CLASSES = 200  # that are looked at
_MOST_SPREADS = 3.0  # from the mean, at which values are cut off
# Parts of a class, of images that follow each other, whose means are compared. Images that follow each other may be of
# one person, or copies of one original; then the means of parts differ as if there were few images.
_NUM_PARTS = 8


@dataclass(frozen=True)
class MeanImages:
    """Of values in spreads of the training images, each within _MOST_SPREADS of their mean.

    The squares of a class's errors along any direction sum up to the squared standard error of its mean image.
    """

    counts: Tensor  # (classes,) images
    means: Tensor  # (classes, features)
    errors: Tensor  # (classes, _NUM_PARTS, features)

    @classmethod
    def of(cls, images: Images, labels: Tensor, features: Tensor, mean: Tensor, spread: Tensor) -> MeanImages:
        """Measure some features (k,) of a sample of images (n, *shape), in units of `spread` around `mean`, both (k,).

        A feature of a table that is rarely anything but zero has a small spread; without a limit, the one image in
        which it is not would weigh more than all others. A feature without a spread is 0 in all images.
        """
        index = draw_sample(len(images)).sort().values
        index = index[labels[index] < _MOST_CLASSES]
        own = labels[index]
        num_classes = int(own.max()) + 1 if len(index) else 0
        counts = torch.bincount(own, minlength=num_classes).double()
        parts = _cut_classes(own, counts)
        sizes = torch.bincount(parts, minlength=num_classes * _NUM_PARTS).double()
        sums = torch.zeros(num_classes * _NUM_PARTS, len(features), dtype=torch.float64)
        factor = torch.where(spread > 0, 1 / spread.clamp(min=1e-300), 0.0)
        done = 0
        for rows in take_parts(images, index, features):
            scaled = ((rows - mean) * factor).clamp_(-_MOST_SPREADS, _MOST_SPREADS)
            sums.index_add_(0, parts[done : done + len(rows)], scaled)
            done += len(rows)
        sums, sizes = sums.view(num_classes, _NUM_PARTS, len(features)), sizes.view(num_classes, _NUM_PARTS, 1)
        means = sums.sum(dim=1) / counts.clamp(min=1).unsqueeze(1)
        num_parts = (sizes > 0).sum(dim=1, keepdim=True)
        share = (num_parts / (num_parts - 1).clamp(min=1)).sqrt() / counts.clamp(min=1).view(-1, 1, 1)
        return cls(counts, means, (sums - sizes * means.unsqueeze(1)) * share)


def measure_features(images: Images, features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the spread of some features of a sample of images; the spread of equal values is 0."""
    index = draw_sample(len(images))
    start = images[0].flatten()[features].double()  # subtracted first, as squares of large values lose small spreads
    sums = torch.zeros(2, len(features), dtype=torch.float64)
    for rows in take_parts(images, index, features):
        rows = rows - start
        sums[0] += rows.sum(dim=0)
        sums[1] += rows.square_().sum(dim=0)
    mean, square = sums / len(index)
    spread = (square - mean.square()).clamp(min=0).sqrt()
    return mean + start, torch.where(spread > 1e-9 * start.abs(), spread, 0.0)


def take_parts(images: Images, index: Tensor, features: Tensor) -> Iterator[Tensor]:
    """Some features of the images `index`, part by part, in double precision."""
    is_whole = len(features) == count_values(images)
    for part in index.split(max(PART_VALUES // count_values(images), 1)):
        rows = images[part].flatten(1)
        yield (rows if is_whole else rows[:, features]).double()


def _cut_classes(labels: Tensor, counts: Tensor) -> Tensor:
    """For each image of a sample, in order, which of `_NUM_PARTS` equal parts of its class it is in: (n,) numbers."""
    order = labels.argsort(stable=True)
    starts = counts.cumsum(dim=0) - counts
    ranks = torch.empty(len(labels), dtype=torch.float64)
    ranks[order] = torch.arange(len(labels), dtype=torch.float64) - starts[labels[order]]
    return labels * _NUM_PARTS + (ranks * _NUM_PARTS / counts[labels]).long().clamp(max=_NUM_PARTS - 1)
