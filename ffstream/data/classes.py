"""Class labels, from any of their common forms to class numbers, and the names of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffstream.data.image_access import Images, read_parts
from ffstream.errors import DataError

_BY_CHANCE = 1e-6  # probability of lacking a class by accident, below which it is reported
_MOST_NAMED = 4  # features in a message
_FEW, _PART_VALUES = 20, 1 << 20  # fewer samples say nothing; values of samples that are compared at once


def to_classes(labels: Tensor, noun: str) -> Tensor:
    """Class numbers (n,) int64 from class numbers of any type, (n,) or (n, 1), or from one-hot labels (n, C).

    Raises DataError for several labels per sample and for targets that are not classes; `noun` begins its message.
    """
    labels = labels.squeeze(1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
    if count_columns(labels.shape) is not None:
        if bool(((labels == 0) | (labels == 1)).all()):
            if bool((labels.sum(dim=1) == 1).all()):
                return labels.long().argmax(dim=1)
            raise DataError(f"{noun}: holds several labels a sample, or none, allowed one class each")
        raise DataError(
            f"{noun}: has shape {tuple(labels.shape)} and values that are not 0 or 1, allowed (n,), the class of each"
        )
    if labels.is_floating_point():
        is_class = (labels == labels.round()) & (labels.abs() < 1 << 53)
        if not bool(is_class.all()):
            raise DataError(
                f"{noun}: holds targets such as {labels[~is_class][0].item():g}, allowed classes, numbered from 0; "
                "Forward-Forward tells classes apart"
            )
    return labels.long()


def count_columns(shape: Sequence[int]) -> int | None:
    """The number of classes C of one-hot labels of shape (n, C); None for labels that are class numbers."""
    return int(shape[1]) if len(shape) == 2 and shape[1] > 1 else None


def check_columns(
    noun: str, shapes: Mapping[str, Sequence[int]], classes: Mapping[str, Tensor], num_classes: int | None = None
) -> int | None:
    """Check that the one-hot labels of all splits have equally many columns, and return how many; None without any.

    `shapes` holds the shape of the labels of each split, `classes` what `to_classes` made of them. Raises DataError
    where the numbers of columns differ or are not `num_classes`; `noun` begins its message. A class that a split lacks
    still needs its column there, as the columns after it would otherwise stand for other classes.
    """
    found = {part: columns for part, shape in shapes.items() if (columns := count_columns(shape)) is not None}
    if not found:
        return None
    first = next(iter(found))
    allowed, why = found[first], f"as {first} labels have"
    if num_classes is not None:
        allowed, why = num_classes, "one a class"
    # If other splits are one-hot, a single column of ones is too: its split lacks all classes but one.
    columns_of_one = [part for part, shape in shapes.items() if tuple(shape[1:]) == (1,)]
    found |= {part: 1 for part in columns_of_one if bool((classes[part] == 1).all())}
    for part, columns in found.items():
        if columns != allowed:
            raise DataError(
                f"{noun}: {part} labels have {columns} column{'s' * (columns != 1)}, allowed {allowed}, {why}; a class "
                "that no sample has needs its column too"
            )
    return allowed


def find_lacking(labels: Tensor, train: Tensor, class_names: Sequence[str]) -> str | None:
    """A warning if `labels` of a split lack a class that is frequent in training, or most classes; None otherwise."""
    counts = torch.bincount(labels, minlength=len(class_names))
    shares = torch.bincount(train, minlength=len(class_names)).double() / len(train)
    is_lacking = (counts == 0) & ((1 - shares) ** len(labels) < _BY_CHANCE)
    if not bool(is_lacking.any()):
        return _find_lacking_together(counts, shares, class_names)
    first = int(is_lacking.nonzero()[0])
    more = f" and {int(is_lacking.sum()) - 1} more" if int(is_lacking.sum()) > 1 else ""
    return (
        f"none of {len(labels)} is class {class_names[first]!r} (label {first}){more}, and "
        f"{float(shares[first]):.0%} of "
        "the training images are; check that both splits number the classes alike"
    )


def _find_lacking_together(counts: Tensor, shares: Tensor, class_names: Sequence[str]) -> str | None:
    """A warning if a split with `counts` of each class has fewer classes than chance leaves out; None otherwise.

    The chance that all its images are of these classes is multiplied by the number of ways to choose as many classes,
    since any others might have been left out as well. `shares` are those of the training images.
    """
    num, is_present = int(counts.sum()), counts > 0
    num_classes, num_present = int((shares > 0).sum()), int(is_present.sum())
    share = float(shares[is_present].sum())
    ways = math.lgamma(num_classes + 1) - math.lgamma(num_present + 1) - math.lgamma(num_classes - num_present + 1)
    if share <= 0 or num_present >= num_classes or num * math.log(share) + ways >= math.log(_BY_CHANCE):
        return None
    first = int(is_present.nonzero()[0])
    more = f" and {num_present - 1} more" if num_present > 1 else ""
    return (
        f"all {num} are of {num_present} of the {num_classes} classes, {class_names[first]!r} (label {first}){more}, "
        f"of which {share:.0%} of the training images are; draw the split at random, as the head of a file that is "
        "sorted by class holds few classes"
    )


def find_renamed(found: Sequence[str], trained: Sequence[str]) -> str | None:
    """A warning if the classes in the data (`found`) have other names than in the run (`trained`); None otherwise.

    Numbers do not count as names, as arrays of the same images may have no other names.
    """
    numbers = [str(number) for number in range(len(found))]
    if list(found) in (list(trained), numbers) or list(trained) == numbers:
        return None
    label = next((label for label, (new, old) in enumerate(zip(found, trained, strict=True)) if new != old), 0)
    return (
        f"label {label} is called {found[label]!r} in the data and {trained[label]!r} in the run; images and labels "
        "are "
        "those of the run, and its names are shown"
    )


def find_label_feature(images: Images, labels: Tensor) -> str | None:
    """A warning if features of a table, images (n, features), tell the label exactly; None otherwise.

    A feature tells it by a value of its own for each class, such as the label itself or that in other units; or each
    class has a feature with two values, one of them for that class alone, as in one-hot labels.
    """
    if len(images.shape) != 2 or len(labels) < _FEW:
        return None
    present = labels.unique()
    if len(present) < 2:
        return None
    first = torch.stack([images[int((labels == label).nonzero()[0])] for label in present])  # (classes, features)
    place = torch.searchsorted(present, labels)
    is_constant = torch.ones(images.shape[1], dtype=torch.bool)  # within each class
    step = max(_PART_VALUES // images.shape[1], 1)
    for rows, own in zip(read_parts(images, step), place.split(step), strict=True):
        is_constant &= (rows == first[own]).all(dim=0)
    candidates = is_constant.nonzero().flatten()
    values = first[:, candidates]  # (classes, candidates)
    ordered = values.sort(dim=0).values
    tells = (ordered[1:] != ordered[:-1]).all(dim=0)
    if bool(tells.any()):
        feature = int(candidates[tells.nonzero()[0]])
        return f"feature {feature} of the training images is their label, which new images do not have; leave it out"
    # A feature that sets a class apart has one value for it and another for all others.
    is_lowest, is_highest = ordered[1] == ordered[-1], ordered[0] == ordered[-2]
    of_class: list[list[int]] = [[] for _ in present]
    for feature, lowest, highest, low, high in zip(
        candidates.tolist(),
        is_lowest.tolist(),
        is_highest.tolist(),
        values.argmin(dim=0).tolist(),
        values.argmax(dim=0).tolist(),
        strict=True,
    ):
        if lowest != highest:  # not both, as all classes have one value then
            of_class[low if lowest else high].append(feature)
    if not all(of_class):
        return None
    names = ", ".join(str(each[0]) for each in of_class[:_MOST_NAMED])
    more = ", ..." if len(of_class) > _MOST_NAMED else ""
    return (
        f"features {names}{more} of the training images are their label, one for each class, which new images do not "
        "have; leave them out"
    )


def to_class_names(names: Any, noun: str) -> tuple[str, ...]:
    """Class names as text, in label order. Raises DataError for anything else; `noun` begins its message."""
    if isinstance(names, (str, bytes, set, frozenset, dict)) or not hasattr(names, "__iter__"):
        kind = type(names).__name__
        raise DataError(f"{noun}: class_names is a {kind}, allowed a tuple or list, in the order of the labels")
    found = []
    for name in names:
        if not isinstance(name, (str, int, np.integer)) or isinstance(name, bool):
            raise DataError(f"{noun}: class_names holds {name!r}, allowed text")
        found.append(str(name))
    twice = [name for number, name in enumerate(found) if name in found[:number]]
    if twice:
        raise DataError(f"{noun}: class_names holds {twice[0]!r} twice, allowed one name for each class")
    return tuple(found)
