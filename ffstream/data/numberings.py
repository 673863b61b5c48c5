"""Other ways to number the classes, as a split may have that was labelled by another program. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_MOST_PAIRS = 5  # of classes, of those that lie nearest to each other's means


def list_numberings(mine: Tensor, theirs: Tensor, weights: Tensor, known: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield ways to number the classes: what the images are, and the training class in the place of each class.

    `mine` and `theirs` (classes, features) are means around their mean, of a split and of training, of the classes
    `known`, which have `weights` (classes,). There are too many ways to try all: tried are two classes the other way
    round, where the means suggest it, all classes moved on by one, and each class taken for its nearest in training.
    """
    num_classes = len(known)
    places, seen = torch.arange(num_classes), set()
    for order in (
        *_list_pairs(mine, theirs, weights),
        places.roll(1),
        places.roll(-1),
        torch.cdist(mine, theirs).argmin(dim=1),
    ):
        numbers = tuple(order.tolist())
        is_other = len(set(numbers)) == num_classes and numbers != tuple(range(num_classes))
        if is_other and numbers not in seen:
            seen.add(numbers)
            yield _describe(numbers, known), order


def _list_pairs(mine: Tensor, theirs: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """Orders of the classes with two of them exchanged: those of which each looks like the other in training."""
    products = (mine - theirs) @ theirs.T
    toward = weights.unsqueeze(1) * (products - products.diagonal().unsqueeze(1))  # from a class to each other
    apart = (weights.unsqueeze(0) + weights.unsqueeze(1) - (weights.unsqueeze(0) - weights.unsqueeze(1)).square()).abs()
    places = (toward + toward.T) / (apart * torch.cdist(theirs, theirs).square()).clamp(min=1e-300)
    places = places.triu(diagonal=1).flatten()
    best = places.topk(min(_MOST_PAIRS, len(places)))
    for place, number in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if place <= 0:
            return
        one, other = divmod(number, len(theirs))
        order = torch.arange(len(theirs))
        order[[one, other]] = torch.tensor([other, one])
        yield order


def _describe(numbers: tuple[int, ...], known: list[int]) -> str:
    moved = [(known[place], known[number]) for place, number in enumerate(numbers) if place != number]
    if len(moved) == 2:
        return "numbered with classes {} and {} the other way round".format(*moved[0])
    some = ", ".join(f"{place} for {number}" for place, number in moved[:3])
    return f"numbered with class {some}{', and so on' if len(moved) > 3 else ''}"
