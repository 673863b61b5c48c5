"""What the images of each class look like on average, by which a split whose features or labels mean others is found.

Such a split has its columns, channels or axes in another order, values that are negated or in other units, or classes
that are numbered in another way. Its features may have the same mean and spread as in the training split all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_IMAGES, _MOST_FEATURES, _MOST_CLASSES = 4096, 2048, 200  # that are looked at
_PART_VALUES = 1 << 16
_ENOUGH = 5  # images of a class in each split; the mean of fewer says little
# The correlation of class means that two splits of one kind of data are expected to have; where it is lower, there are
# too few images, or the classes hardly differ on average, and nothing is said.
_CLEAR = 0.7
_UNLIKE = 0.5  # share of the expected correlation below which the features, or the labels, mean something else
_FAR = 2.2  # ratio of the distances between class means, in either direction, that is not of the same units


@dataclass(frozen=True)
class _Means:
    counts: Tensor  # (classes,) images
    means: Tensor  # (classes, features)
    variances: Tensor  # (features,) within classes
    spreads: Tensor  # (features,) over all images


def draw_alike(labels: Tensor, trained_labels: Tensor) -> Tensor:
    """Numbers of training images, at random, whose labels have the shares that `labels` (n,) have.

    Classes that training lacks are left out.
    """
    generator = torch.Generator().manual_seed(0)
    wanted = labels[_draw(len(labels), _MOST_IMAGES)]
    shares = torch.bincount(wanted).double() / len(wanted)
    num_drawn = min(len(trained_labels), _MOST_IMAGES)
    found = [
        own[torch.randint(len(own), (max(round(share * num_drawn), 1),), generator=generator)]
        for label, share in enumerate(shares.tolist())
        if share and len(own := (trained_labels == label).nonzero().flatten())
    ]
    if not found:
        return _draw(len(trained_labels), _MOST_IMAGES)
    drawn = torch.cat(found)
    return drawn[torch.randperm(len(drawn), generator=generator)]


def find_other_classes(images: Tensor, labels: Tensor, trained: Tensor, trained_labels: Tensor) -> str | None:
    """A warning if the class means of a split are unlike those of the training split; None otherwise.

    `images` and `trained` are (n, *shape), their labels (n,). The means of the classes are compared by their
    correlation over classes and features, which are weighted by their spread in training. For splits of one kind of
    data it is the smaller, the fewer images there are; how small, follows from the variance within classes.
    """
    features = _draw(trained[0].numel(), _MOST_FEATURES)
    found, wanted = _measure(images, labels, features), _measure(trained, trained_labels, features)
    num_classes = min(len(found.counts), len(wanted.counts))
    is_known = (found.counts[:num_classes] >= _ENOUGH) & (wanted.counts[:num_classes] >= _ENOUGH)
    varies = wanted.spreads > 0
    num_known = int(is_known.sum())
    if num_known < 2 or not bool(varies.any()):
        return None
    mine, theirs = (_contrast(each, wanted, is_known, varies) for each in (found, wanted))
    noise = float((wanted.variances[varies] / wanted.spreads[varies].square()).sum()) * (1 - 1 / num_known)
    mine_noise, theirs_noise = (
        noise * float((1 / each.counts[:num_classes][is_known]).sum()) for each in (found, wanted)
    )
    signal = float(theirs.square().sum()) - theirs_noise
    if signal <= 0:
        return None
    expected = signal / math.sqrt((signal + theirs_noise) * (signal + mine_noise))
    if expected < _CLEAR:
        return None
    product = float((mine * theirs).sum())
    length = float(mine.norm() * theirs.norm())
    correlation = product / length if length else 0.0
    if correlation < _UNLIKE * expected:
        return (
            f"their classes differ in other features than those of the training images (the classes' mean images have "
            f"a correlation of {correlation:.2f} with those of training, where {expected:.2f} is expected); bring "
            "features, channels, axes and labels to the order and the sign that they have in training"
        )
    ratio = product / signal
    if not 1 / _FAR <= ratio <= _FAR:
        return (
            f"the mean images of their classes lie {ratio:.2g} times as far apart as those of the training images, as "
            "if in other units; bring them to the same units"
        )
    return None


def _contrast(means: _Means, wanted: _Means, is_known: Tensor, varies: Tensor) -> Tensor:
    """Class means (classes, features) in training spreads, less the mean of all classes."""
    scaled = means.means[: len(is_known)][is_known][:, varies] / wanted.spreads[varies]
    return scaled - scaled.mean(dim=0)


def _draw(num: int, most: int) -> Tensor:
    return torch.randperm(num, generator=torch.Generator().manual_seed(0))[:most]


def _measure(images: Tensor, labels: Tensor, features: Tensor) -> _Means:
    """Measure some features of a sample of images, a part at a time."""
    index = _draw(len(images), _MOST_IMAGES)
    index = index[labels[index] < _MOST_CLASSES]
    num_classes = int(labels[index].max()) + 1 if len(index) else 0
    counts = torch.bincount(labels[index], minlength=num_classes).double()
    shape = (num_classes, len(features))
    sums, squares = torch.zeros(shape, dtype=torch.float64), torch.zeros(len(features), dtype=torch.float64)
    start = images[0].flatten()[features].double()  # subtracted first, as squares of large values lose small spreads
    for part in index.split(max(_PART_VALUES // images[0].numel(), 1)):
        rows = images[part].flatten(1)[:, features].double() - start
        sums.index_add_(0, labels[part], rows)
        squares += rows.square().sum(dim=0)
    means = sums / counts.clamp(min=1).unsqueeze(1)
    num_images = max(len(index), 1)
    between = (counts.unsqueeze(1) * means.square()).sum(dim=0)
    variances = (squares - between).clamp(min=0) / max(num_images - int((counts > 0).sum()), 1)
    overall = squares / num_images - (sums.sum(dim=0) / num_images).square()
    spreads = overall.clamp(min=0).sqrt()
    return _Means(counts, means + start, variances, torch.where(spreads > 1e-9 * start.abs(), spreads, 0.0))
