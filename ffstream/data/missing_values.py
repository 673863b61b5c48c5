"""Numbers that stand for missing values, such as -9999: a network would learn from them as from any others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

COPIED_VALUES = 1 << 20  # values of images that are copied at once
# Numbers that stand for missing values: nines, powers of ten, and the limits of integer types.
_CODES = {float("9" * length) for length in range(2, 10)} | {1e10, 1e15, 1e20, 1e30}
_CODES |= {32767.0, 32768.0, 65535.0, 2147483647.0, 2147483648.0}
_FAR = 5.0  # any other number that stands for missing values, relative to the largest real value
_MOST_CODES, _LEAST_OTHERS = 4, 3  # most distinct numbers that stand for missing values, fewest others
_LEAST_NEGATIVE = 0.1  # size of a negative number that stands for missing values, relative to the largest value


def find_code(images: Tensor, index: Tensor) -> str | None:
    """A number of images (n, *shape) that seems to stand for missing values, in words; None if there is none.

    Known ones are looked for in all images, others in those whose numbers are in `index`.
    """
    return _find_known_code(images) or _find_far_code(images, index)


def _find_known_code(images: Tensor) -> str | None:
    """A number such as -9999 that occurs several times in a feature whose other values are all far from it."""
    if not images.is_floating_point():  # bytes cannot be far from such a number
        return None
    rows = images.flatten(1)
    ends = [rows.amin(dim=0), rows.amax(dim=0)]
    codes = torch.tensor(sorted(_CODES))
    if not any(bool(torch.isin(end.abs(), codes).any()) for end in ends):
        return None
    said = []
    for end, is_least in zip(ends, (True, False), strict=True):
        is_code = torch.isin(end.abs(), codes)
        num_there, next_to, others_end = torch.zeros(3, rows.shape[1], dtype=torch.float64).unbind()
        next_to, others_end = next_to + (torch.inf if is_least else -torch.inf), ends[int(is_least)].double()
        first = len(rows)
        for start, part in numbered_parts(rows):
            is_there = (part == end) & is_code
            num_there += is_there.sum(dim=0)
            if first == len(rows) and bool(is_there.any()):
                first = start + int(is_there.any(dim=1).nonzero()[0])
            rest = part.double().masked_fill(part == end, torch.inf if is_least else -torch.inf)
            next_to = torch.minimum(next_to, rest.amin(0)) if is_least else torch.maximum(next_to, rest.amax(0))
        spread, distance = (others_end - next_to).abs(), (next_to - end).abs()
        is_missing = is_code & (num_there > 0) & torch.isfinite(next_to) & (distance >= spread) & (spread > 0)
        for value in end[is_missing].unique().tolist():
            features = (is_missing & (end == value)).nonzero().flatten()
            count = int(num_there[features].sum())
            if count > 1:
                said.append(
                    f"the value {value:g} occurs {count:,} times in the training images, in {name_features(features)}, "
                    f"far from every other there (the first: image {first})"
                )
    return "; ".join(said[:2]) or None


def _find_far_code(images: Tensor, index: Tensor) -> str | None:
    """A few numbers of any kind that occur several times, far larger than the other values of their features."""
    index = index[: max(COPIED_VALUES // images[0].numel(), _LEAST_OTHERS)]
    rows = images[index].flatten(1).float()
    magnitudes, counts = rows[rows != 0].double().abs().unique(return_counts=True)
    is_gap = magnitudes[1:] >= _FAR * magnitudes[:-1]
    for position in is_gap.nonzero().flatten().tolist():
        num_above, times = len(magnitudes) - position - 1, counts[position + 1 :]
        is_code = num_above <= _MOST_CODES and position + 1 >= _LEAST_OTHERS and int(times.min()) > 1
        if not is_code or 2 * int(times.sum()) > int(counts.sum()):
            continue
        is_there = rows.double().abs() > float(magnitudes[position])
        features = is_there.any(dim=0).nonzero().flatten()
        if float(is_there[:, features].double().mean()) > 0.6:  # these features are rather in larger units
            continue
        if all(_is_standardised_binary(rows[:, feature]) for feature in features.tolist()):
            continue
        values = rows[is_there].unique().tolist()
        first = int(index[is_there.any(dim=1).nonzero()[0]])
        words = f"value {values[0]:g} occurs" if len(values) == 1 else f"values {_list(values)} occur"
        ratio = float(magnitudes[position + 1] / magnitudes[position])
        return (
            f"the {words} {int(times.sum()):,} times in {len(rows):,} of the training images, in "
            f"{name_features(features)}, {ratio:.3g} times as large as any other (the first: image {first})"
        )
    return _find_negative_code(rows, index, magnitudes)


def _is_standardised_binary(column: Tensor) -> bool:
    """Whether a column has two values, a mean near 0 and a spread near 1: its rare value then has to be large."""
    return len(column.unique()) == 2 and abs(float(column.mean())) < 0.5 and 0.5 < float(column.std()) < 2


def _find_negative_code(rows: Tensor, index: Tensor, magnitudes: Tensor) -> str | None:
    """A negative number that occurs several times and is the only negative one."""
    least = rows.amin()
    is_there = rows < 0
    if float(least) >= 0 or len(magnitudes) <= _LEAST_OTHERS or -float(least) < _LEAST_NEGATIVE * float(magnitudes[-1]):
        return None
    if not bool((rows[is_there] == least).all()):
        return None
    features = is_there.any(dim=0).nonzero().flatten()
    features = features[[not _is_signed_choice(rows[:, feature]) for feature in features.tolist()]]
    is_there = is_there & torch.isin(torch.arange(rows.shape[1]), features)
    if int(is_there.sum()) < 2 or float(is_there[:, features].double().mean()) > 0.6:
        return None
    return (
        f"the value {float(least):g} occurs {int(is_there.sum()):,} times in {len(rows):,} of the training images, in "
        f"{name_features(features)}, and no other value is negative (the first: image "
        f"{int(index[is_there.any(dim=1).nonzero()[0]])})"
    )


def _is_signed_choice(column: Tensor) -> bool:
    """Whether a column holds -1 and 1, and maybe 0, and nothing else: no and yes, or down, level and up."""
    return set(column.unique().tolist()) in ({-1.0, 1.0}, {-1.0, 0.0, 1.0})


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:_MOST_CODES])


def name_features(features: Tensor) -> str:
    """The features in words, with their numbers counted from 0."""
    numbers = features.tolist()
    if len(numbers) == 1:
        return f"feature {numbers[0]}"
    shown = ", ".join(str(number) for number in numbers[:5])
    return f"{len(numbers)} features ({shown}{', ...' if len(numbers) > 5 else ''})"


def numbered_parts(images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Parts of images, each with the number of its first image."""
    start = 0
    for part in images.split(max(COPIED_VALUES // images[0].numel(), 1)):
        yield start, part
        start += len(part)
