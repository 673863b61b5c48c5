"""Whether a network errs as much as one that has learnt nothing, which always guesses the most frequent class. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffstream.ground.binomial import sum_upper_tail

_BY_CHANCE = 0.01  # probability that guessing is right as often, below which a network has learnt a little
_RARELY = 5e-3  # probability that a network that has learnt errs as often, below which this is no accident
# A network counts as one that has learnt if it avoids this share of the errors of always guessing one class. Small
# tables with noisy labels, and 100 digits for training, still let a network avoid half of them or more.
_LEARNT = 0.25
_ENOUGH = 20  # images; of fewer, the most frequent class may be so frequent by accident
_MOST = 0.5  # share of a class from which the error is a poor measure, as guessing that class hardly errs


def find_chance(confusion: Sequence[Sequence[int]], class_names: Sequence[str], split_name: str) -> str | None:
    """A warning if predictions for a split are no better than always guessing one class; None otherwise.

    `confusion` has true classes in rows and predicted classes in columns. Nothing is said where the split is too small
    to tell this from a network that has learnt a little.
    """
    counts = torch.tensor(confusion, dtype=torch.int64)
    by_class, predicted = counts.sum(dim=1), counts.sum(dim=0)
    num, num_right = int(counts.sum()), int(counts.diagonal().sum())
    most, label = (int(found) for found in by_class.max(dim=0))
    if most == num or num < _ENOUGH:  # images of one class say nothing about telling classes apart
        return None
    share = most / num
    is_chance = sum_upper_tail(num_right, num, share) > _BY_CHANCE
    is_chance &= sum_upper_tail(num - num_right, num, (1 - share) * (1 - _LEARNT)) < _RARELY
    # The most frequent class may be guessed always, by which images of other classes count.
    is_chance |= int(predicted[label]) == num and (1 - _LEARNT) ** (num - most) < _RARELY
    if not is_chance:
        return None
    why = f", as {share:.1%} of the images are of that class" if share > _MOST else ""
    return (
        f"the {split_name} error of {1 - num_right / num:.3f} is no better than chance: always guessing class "
        f"{class_names[label]!r} errs in {1 - share:.3f}{why}; see whether the labels belong to the images (they may "
        "be in another order), whether the learning rate is far too high or too low, and whether it was trained enough"
    )


def find_chance_of(scores: Tensor, labels: Tensor, class_names: Sequence[str], split_name: str) -> str | None:
    """The same for scores (n, C), of which the largest is that of the predicted class, and labels (n,)."""
    num_classes = len(class_names)
    return find_chance(count_confusion(scores.argmax(dim=1), labels, num_classes), class_names, split_name)


def count_confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> list[list[int]]:
    """Numbers of samples by true class (rows) and predicted class (columns): C x C from (n,) and (n,)."""
    pairs = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return [[int(count) for count in row] for row in pairs.view(num_classes, num_classes)]
