"""Whether the errors of a network gather in a stretch of the file that its images come from. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_CELLS, _LEAST_CELL = 64, 5  # parts of the file between which a stretch is looked for, and images in each
_LEAST_IMAGES = 20  # of a stretch, and of the rest of the file
_HIGHER = 0.2  # by which the error in the stretch must be above that elsewhere, among images of the same classes
_BY_ACCIDENT = 1e-5  # probability of such a stretch anywhere in the file, of errors in a random order
_LEAST_BLOCKS = 8  # from which it is seen whether errors come in runs


@dataclass(frozen=True)
class _Errors:
    """Errors in the order of the file: 1 or 0 for each image, what its class lets expect, and its class."""

    wrong: Tensor  # (n,) float64
    expected: Tensor  # (n,) float64, the share of its class that is wrong
    own: Tensor  # (n,) int64

    @classmethod
    def of(cls, wrong: Tensor, labels: Tensor, places: Tensor) -> _Errors:
        order = places.argsort()
        hits = wrong[order].double()
        _, own, counts = labels[order].unique(return_inverse=True, return_counts=True)
        shares = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, own, hits) / counts
        return cls(hits, shares[own], own)

    def __len__(self) -> int:
        return len(self.wrong)

    @property
    def excess(self) -> Tensor:
        """How much more of an image is wrong than of its class, (n,); the sum over each class is zero."""
        return self.wrong - self.expected

    def is_within(self, start: int, stop: int) -> Tensor:
        """Whether each image lies in a stretch, (n,) bool."""
        number = torch.arange(len(self))
        return (number >= start) & (number < stop)

    def measure_rise(self, is_within: Tensor) -> float:
        """By how much the error is higher in a stretch than elsewhere, among images of the same class.

        A class that lies wholly within the stretch, or wholly elsewhere, has no say.
        """
        counts = torch.bincount(self.own).double()
        within = torch.bincount(self.own[is_within], minlength=len(counts)).double()
        compared = float((within * (counts - within) / counts).sum())
        return float(self.excess[is_within].sum()) / compared if compared else 0.0


def find_stretch(wrong: Tensor, labels: Tensor, places: Tensor, noun: str) -> str | None:
    """A warning if far more images are wrong in a stretch of the file than elsewhere; None otherwise.

    `wrong` (n,) says which predictions are wrong, `labels` (n,) are the classes, and `places` (n,) the numbers of the
    images in their file. Each image is compared with those of its class, so that a file that is sorted by class, of
    which some are harder, has no such stretch. Nor has one whose errors come in runs throughout, or grow in a line.
    """
    errors = _Errors.of(wrong, labels, places)
    num_cells = min(_MOST_CELLS, len(errors) // _LEAST_CELL)
    if num_cells < 2 * _LEAST_IMAGES // _LEAST_CELL:
        return None
    edges = torch.linspace(0, len(errors), num_cells + 1).round().long()
    starts, stops = torch.combinations(edges, 2).unbind(dim=1)
    start, stop, gain = _find_best(errors, starts, stops)
    for _ in range(2):  # the ends are moved one after the other, from the edges of cells to single images
        start, stop, gain = _find_best(errors, _list_near(start, edges), torch.tensor([stop]))
        start, stop, gain = _find_best(errors, torch.tensor([start]), _list_near(stop, edges))
    is_within, num_tried = errors.is_within(start, stop), len(starts)
    if errors.measure_rise(is_within) < _HIGHER or _is_line(errors.excess, is_within):
        return None
    if math.log(num_tried) - gain / measure_runs(errors.excess, is_within) > math.log(_BY_ACCIDENT):
        return None
    numbers = places.sort().values
    return (
        f"of the {noun} {int(numbers[start]):,} to {int(numbers[stop - 1]):,}, counted from 0, "
        f"{float(errors.wrong[is_within].mean()):.0%} are taken for another class, and of all others "
        f"{float(errors.wrong[~is_within].mean()):.0%}; see whether in that stretch of the file the labels belong to "
        "the images (a row may be missing there, so that all labels after it are one off), and whether its images are "
        "turned, mirrored, in other units or of another origin"
    )


def measure_runs(excess: Tensor, is_within: Tensor | None = None) -> float:
    """How much more the sums of errors vary between parts of a file than if errors had no order; 1 or more.

    `excess` (n,) is what is wrong beyond expectation, in the order of the file. Images that follow each other may be of
    one person or time, so that they count for fewer than they are. What differs between a stretch and the rest, if one
    is given (n,), is no sign of it, and is taken out.
    """
    number, rest = torch.arange(len(excess)), excess - excess.mean()
    if is_within is not None:
        for part in (is_within, ~is_within):
            rest[part] = excess[part] - excess[part].mean()
    found, size, total = 1.0, _LEAST_CELL, float(rest.square().sum())
    while total and len(rest) // size >= _LEAST_BLOCKS:
        sums = torch.zeros(len(rest) // size + 1, dtype=torch.float64).index_add_(0, number // size, rest)
        found = max(found, float(sums.square().sum()) / total)
        size *= 2
    return found


def _find_best(errors: _Errors, start: Tensor, stop: Tensor) -> tuple[int, int, float]:
    """Of stretches from `start` (m,) to `stop` (m,), or (1,), the one in which errors gather most.

    Also returns the logarithm of how much likelier its errors are by a rate within and one elsewhere than by those of
    the classes alone (Kulldorff 1997, for a scan of one dimension).
    """
    wrong, expected = (torch.cat([torch.zeros(1), each.cumsum(0)]) for each in (errors.wrong, errors.expected))
    within, num = (stop - start).double(), len(errors)
    hits, awaited = wrong[stop] - wrong[start], expected[stop] - expected[start]
    outside = (num - within).clamp(min=1e-9)
    gain = _diverge(hits, awaited, within) + _diverge(wrong[-1] - hits, wrong[-1] - awaited, outside)
    is_allowed = (within >= _LEAST_IMAGES) & (num - within >= _LEAST_IMAGES) & (hits > awaited)
    gain = gain.masked_fill(~is_allowed, 0.0)
    best = int(gain.argmax())
    return int(start.expand_as(gain)[best]), int(stop.expand_as(gain)[best]), float(gain[best])


def _diverge(hits: Tensor, awaited: Tensor, num: Tensor) -> Tensor:
    """The logarithm of a ratio of likelihoods: of `hits` of `num` at their own rate, and at that of `awaited`."""
    misses, remaining = (num - hits).clamp(min=0), (num - awaited).clamp(min=1e-12)
    found: Tensor = torch.xlogy(hits, hits / awaited.clamp(min=1e-12)) + torch.xlogy(misses, misses / remaining)
    return found


def _list_near(end: int, edges: Tensor) -> Tensor:
    """The places within a cell of an end of a stretch, in order."""
    size = int(edges.diff().max())
    return torch.arange(max(end - size, 0), min(end + size, int(edges[-1])) + 1)


def _is_line(excess: Tensor, is_within: Tensor) -> bool:
    """Whether errors that grow or shrink in a line through the file explain the excess (n,) as well as a stretch."""
    line = torch.arange(len(excess), dtype=torch.float64)
    step = is_within.double()
    by_line, by_step = (
        float((excess @ (each - each.mean())).square() / (each - each.mean()).square().sum()) for each in (line, step)
    )
    return by_line >= by_step
