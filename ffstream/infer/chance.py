"""Whether the predictions of a network depend on the true classes at all. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ffstream.ground.binomial import sum_upper_tail
from ffstream.ground.ranks import rank

_ABOVE = 2.33  # standard deviations above chance, which one network in a hundred exceeds by accident
# A network that has learnt a little avoids this share of the errors of guessing, or is right this many times as often
# more than by guessing, whichever is less: of a hundred classes, one that is right in 4 of 100 has learnt something.
_LEARNT, _TIMES = 0.25, 3.0
_CLEARLY = 4.0  # standard deviations by which such a network must be above chance for anything to be said
_RARELY = 5e-3  # probability that such a network recognises as few images of the rarer predictions
# Images; of fewer, nothing is said. Nor is it if fewer predictions are of rare classes, as on hard data, and more are
# right than is expected by chance.
_ENOUGH = 20
# Share of the images in one class from which always guessing it is hard to beat, so that scores are asked as well.
_MOST = 0.6
_RANKED = 0.01  # probability that scores in a random order rank the images of any class as high


def find_chance(confusion: Sequence[Sequence[int]], class_names: Sequence[str], split_name: str) -> str | None:
    """A warning if predictions for a split are right no more often than in a random order; None otherwise.

    `confusion` has true classes in rows and predicted classes in columns. The error alone would not do: where most
    images are of one class, a good network may err more often than one that always guesses this class. Nothing is said
    where the split is too small to tell such predictions from those of a network that has learnt a little.
    """
    counts = torch.tensor(confusion, dtype=torch.float64)
    by_class, predicted, right = counts.sum(dim=1), counts.sum(dim=0), counts.diagonal()
    num, num_right = int(counts.sum()), int(right.sum())
    if num < _ENOUGH or int(by_class.max()) == num:  # images of one class say nothing about telling classes apart
        return None
    expected, spread = _expect_right(by_class, predicted)
    by_chance = max(expected, num / len(predicted))
    gained = min(_LEARNT * (num - expected), _TIMES * by_chance)  # images, by a network that has learnt a little
    most = expected + _ABOVE * spread
    if num_right > most or gained < _CLEARLY * spread:
        return None
    label = int(predicted.argmax())
    num_rare = num - int(predicted[label])  # predictions of other classes, of which a few may show a little
    if 0 < num_rare < _ENOUGH and num_right > expected:
        return None
    # Where predictions are of one class almost always, the images of the others show whether anything was learnt.
    is_other = torch.arange(len(predicted)) != label
    num_others, num_right_of_others = int(by_class[is_other].sum()), int(right[is_other].sum())
    share = gained / max(num - expected, 1.0)
    recalled = float((by_class * (predicted / num * (1 - share) + share))[is_other].sum()) / num_others
    if sum_upper_tail(num_others - num_right_of_others, num_others, 1 - recalled) >= _RARELY:
        return None
    if num_rare == 0:
        found = (
            f"all {num:,} images are taken for class {class_names[label]!r}, to which {float(by_class[label]):,.0f} of "
            "them belong"
        )
    else:
        dealt = f"up to {math.ceil(most):,} would be in a random order"
        found = f"{num_right:,} of {num:,} predictions are right, and {dealt}"
    return (
        f"the {split_name} error of {1 - num_right / num:.3f} is no better than chance: {found}; see whether the "
        "labels belong to the images (they may be in another order), whether the learning rate is far too high or too "
        "low, and whether it was trained enough"
    )


def find_chance_of(scores: Tensor, labels: Tensor, class_names: Sequence[str], split_name: str) -> str | None:
    """The same for scores (n, C), of which the largest is that of the predicted class, and labels (n,).

    Where most images are of one class, a network that has learnt to tell them apart may still predict this class for
    all, as no other is likelier for any of them. Its scores show it, and nothing is said.
    """
    num_classes = len(class_names)
    found = find_chance(count_confusion(scores.argmax(dim=1), labels, num_classes), class_names, split_name)
    if found is not None and int(labels.bincount().max()) > _MOST * len(labels) and ranks_classes(scores, labels):
        return None
    return found


def ranks_classes(scores: Tensor, labels: Tensor) -> bool:
    """Whether scores (n, C) rank the images of some class above the others, beyond chance; labels are (n,).

    An image is ranked by how far the score of the class lies above the best of the others (rank sum test, Mann and
    Whitney 1947). Of two classes, one ranks like the other.
    """
    own = labels.unique()
    num_tests = max(len(own) - 1, 1) if scores.shape[1] == 2 else len(own)
    limit = -float(torch.special.ndtri(torch.tensor(_RANKED / num_tests, dtype=torch.float64)))
    return any(_measure_ranks(scores, labels, int(label)) > limit for label in own)


def _measure_ranks(scores: Tensor, labels: Tensor, label: int) -> float:
    """How many standard deviations above chance the images of a class rank by its score."""
    is_own = labels == label
    num_own, num_others = int(is_own.sum()), int((~is_own).sum())
    if not num_own or not num_others:
        return 0.0
    others = scores.clone()
    others[:, label] = -torch.inf
    ranks = rank(scores[:, label] - others.amax(dim=1))
    above = float(ranks[is_own].sum()) - num_own * (num_own + 1) / 2 - num_own * num_others / 2
    return above / math.sqrt(num_own * num_others * (num_own + num_others + 1) / 12)


def count_confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> list[list[int]]:
    """Numbers of samples by true class (rows) and predicted class (columns): C x C from (n,) and (n,)."""
    pairs = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return [[int(count) for count in row] for row in pairs.view(num_classes, num_classes)]


def _expect_right(by_class: Tensor, predicted: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the number of right predictions, were these in a random order.

    Given are the images of each class (C,) and the predictions of each class (C,); all orders are equally likely.
    """
    num = float(by_class.sum())
    pairs = float((by_class * predicted).sum())
    squares = pairs - float((by_class * predicted * (by_class + predicted)).sum()) / num + (pairs / num) ** 2
    return pairs / num, math.sqrt(max(squares, 0.0) / (num - 1))
