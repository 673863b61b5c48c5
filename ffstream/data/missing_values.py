"""Numbers that stand for missing values, such as -9999: a network would learn from them as from any others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ffstream.data.sample import draw_sample

COPIED_VALUES = 1 << 20  # values of images that are copied at once
# Numbers that stand for missing values: nines, powers of ten, and the limits of integer types.
_CODES = {float("9" * length) for length in range(2, 10)} | {1e10, 1e15, 1e20, 1e30}
_CODES |= {32767.0, 32768.0, 65535.0, 2147483647.0, 2147483648.0}
_FAR = 5.0  # any other number that stands for missing values, relative to the largest real value
_MOST_CODES, _LEAST_OTHERS = 4, 3  # most distinct numbers that stand for missing values, fewest others
# A whole number at an end of its feature, whatever other features hold. It occurs in this share of the images or more,
# and three times, but not in most. The gap to the next value is this many times those between the values next to it,
# and this many spreads; of a feature that has few values, these are evenly spaced up to a ratio of gaps.
_LEAST_SHARE, _LEAST_TIMES, _MOST_SHARE = 0.01, 3, 0.6
_GAP, _GAP_SPREADS, _EVENLY, _NUM_NEXT = 4.0, 0.25, 3.0, 5
_SATURATED = 0.1  # share of the features that end with a number, below which it is the end of a scale, as white is
_MOST_VALUES = 1 << 18  # of images in which such a number is looked for
_FEW_VALUES, _LEAST_VALUES = 2, 4  # distinct other values, beside the only negative number, and beside any other


def find_code(images: Tensor, index: Tensor) -> str | None:
    """A number of images (n, *shape) that seems to stand for missing values, in words; None if there is none.

    Known ones are looked for in all images, others in those whose numbers are in `index`.
    """
    return _find_known_code(images) or _find_far_code(images, index) or _find_code_at_an_end(images, index)


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
    return None


def _is_standardised_binary(column: Tensor) -> bool:
    """Whether a column has two values, a mean near 0 and a spread near 1: its rare value then has to be large."""
    return len(column.unique()) == 2 and abs(float(column.mean())) < 0.5 and 0.5 < float(column.std()) < 2


def _find_code_at_an_end(images: Tensor, index: Tensor) -> str | None:
    """Whole numbers that occur several times at an end of their features, with a gap to all other values there.

    Each feature is judged by itself, so that one in large units hides none. A gap beside a number that occurs once or
    twice is the end of a tail; without a gap, the number is one of a range, such as -1 among -1 to 3.
    """
    index = index[draw_sample(len(index), max(_MOST_VALUES // images[0].numel(), _LEAST_VALUES), seed=1)].sort().values
    rows = images[index].flatten(1).float()
    is_mostly_zero = 2 * (rows == 0).sum(dim=0) > len(rows)
    least = max(_LEAST_SHARE * len(rows), _LEAST_TIMES)
    found: dict[tuple[float, ...], list[int]] = {}  # features by the numbers at their end
    for sign in (1.0, -1.0):
        ends = rows.amax(dim=0) if sign > 0 else rows.amin(dim=0)
        times = (rows == ends).sum(dim=0)
        is_whole = (ends == ends.round()) & (ends != 0)
        suspects = is_whole & (times >= least) & (times <= _MOST_SHARE * len(rows)) & ~(is_mostly_zero & (ends > 0))
        for feature in suspects.nonzero().flatten().tolist():
            own = _find_codes(sign * rows[:, feature], least, is_low=sign < 0)
            if own:
                found.setdefault(tuple(sorted(sign * code for code in own)), []).append(feature)
        for codes, features in list(found.items()):
            if len(features) < _SATURATED * int(torch.isin(ends, rows.new_tensor(codes)).sum()):
                del found[codes]
    if not found:
        return None
    codes, features = max(found.items(), key=lambda item: len(item[1]))
    is_there = torch.zeros_like(rows, dtype=torch.bool)
    is_there[:, features] = torch.isin(rows[:, features], rows.new_tensor(codes))
    words = f"value {codes[0]:g} occurs" if len(codes) == 1 else f"values {_list(list(codes))} occur"
    are_only_negative = codes[-1] < 0 and not bool((rows[:, features] < 0).logical_and(~is_there[:, features]).any())
    others = "no other value there is negative" if are_only_negative else "all other values there are far from that"
    return (
        f"the {words} {int(is_there.sum()):,} times in {len(rows):,} of the training images, in "
        f"{name_features(torch.tensor(features))}, and {others} (the first: image "
        f"{int(index[is_there.any(dim=1).nonzero()[0]])})"
    )


def _find_codes(column: Tensor, least: float, *, is_low: bool) -> list[float]:
    """Up to four numbers at the upper end of a column that stand for missing values; none if there are none.

    `is_low` says that the column was negated, as the numbers are at its lower end.
    """
    values, counts = column.unique(return_counts=True)
    found: list[float] = []
    for num in range(1, min(_MOST_CODES, len(values) - _FEW_VALUES) + 1):
        rest, codes, times = values[:-num], values[-num:], counts[-num:]
        if float(times.min()) < least or float(times.sum()) > _MOST_SHARE * len(column):
            break
        is_whole = bool((codes == codes.round()).all()) and not bool((codes == 0).any())
        is_only_negative = is_low and float(codes[0]) > 0 and float(rest[-1]) <= 0
        own = counts[:-num]
        # Of a feature that is mostly one value, such as a pixel that is black in most images, the others are too few.
        is_varied = len(rest) >= _LEAST_VALUES and 2 * int(own.max()) <= int(own.sum())
        if not is_whole or not (is_varied or is_only_negative):
            continue
        between = rest.diff()
        is_even = 2 * len(rest) > int(own.sum()) or float(between.max()) <= _EVENLY * float(between.median())
        gap, usual = float(codes[0] - rest[-1]), float(between[-_NUM_NEXT:].max())
        spread = 0.0 if is_only_negative else float(rest.repeat_interleave(own).std())
        if is_even and gap >= _GAP * usual and gap >= _GAP_SPREADS * spread:
            found = [float(code) for code in codes]
    return found


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
