"""Numbers that stand for missing values, such as -9999: a network would learn from them as from any others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values, read_columns, read_parts
from ffstream.data.sample import draw_sample

COPIED_VALUES = 1 << 20  # values of images that are copied at once
# Numbers that stand for missing values, also with a minus: nines, powers of ten, and the limits of number types; those
# of well logs (LAS) and of weather stations, where 99.9 is rather the most that a display shows; those of netCDF, CDF,
# GrADS, GRIB, Ferret and Surfer, some of which are cut after six digits where they are printed.
_CODES = {float("9" * length) for length in range(2, 10)} | {1e10, 1e15, 1e20, 1e30}
_CODES |= {32767.0, 32768.0, 65535.0, 2147483647.0, 2147483648.0, 3.4028234663852886e38, 3.40282e38, 3.4e38}
_CODES |= {999.25, 9999.25, 99.99, 999.9, 999.99, 9999.9, 9999.99, 99999.9, 99999.99}
_CODES |= {9.969209968386869e36, 9.96921e36, 1e31, 9.99e8, 9.999e20, 1e34, 1e35, 1.70141e38}
# What surveys and programs write for missing values beside these; any other number may be a limit, a rare category or a
# step of a scale, such as 100 %, a time-out of 60 s, or port 8080.
_OTHERS = {float(digit * length) for digit in "78" for length in range(2, 6)} | {255.0}
_OTHERS |= {10.0**length - minus for length in range(2, 6) for minus in (2.0, 3.0, 4.0)}
_ALL_CODES = torch.tensor(
    sorted({sign * code for code in _CODES | _OTHERS | {9.0} for sign in (1, -1)} | {-1, -7, -8, -99.9})
)
_BYTE, _ONLY_IN_BITS = 255.0, (32.0, 64.0, 128.0)  # the largest byte, and limits beside which it is one more of these
_FAR = 5.0  # such a number relative to the largest real value, if it lies in any feature
_MOST_CODES, _LEAST_OTHERS = 4, 3  # most distinct numbers that stand for missing values, fewest others
# Such a number at an end of its feature, whatever other features hold. It occurs in this share of the images or more,
# and three times, but not in so many that it is a category. The gap to the next value is this many times those between
# the values next to it, and this many spreads; of a feature that has few values, these are evenly spaced up to a ratio
# of gaps.
_LEAST_SHARE, _LEAST_TIMES, _MOST_SHARE = 0.01, 3, 0.25
_MINUS_ONE_SPREADS = 0.5  # of -1, which may also be the least of differences
# Most distinct values of categories, and a gap in ranges of these: a nearer code is as many times rarer than each is.
_CATEGORIES, _NEAR, _AS_RARE = 20, 2.0, 3.0
# Least ratio between each two of as many values of a scale, and the step to a number that goes on with it, in these.
_SCALE, _NUM_ON_SCALE = 1.5, 6
_CENT, _PRICES = 0.01, 0.2  # share of the other values that end as a number does, from which they are prices
_GAP, _GAP_SPREADS, _EVENLY, _NUM_NEXT = 4.0, 0.25, 3.0, 5
_SATURATED = 0.1  # share of the features that end with a number, below which it is the end of a scale, as white is
_MOST_VALUES = 1 << 18  # of images in which such a number is looked for
_FEW_VALUES, _LEAST_VALUES = 2, 4  # distinct other values, beside the only negative number, and beside any other


def find_code(images: Images, index: Tensor) -> str | None:
    """A number of images (n, *shape) that seems to stand for missing values, in words; None if there is none.

    Those that are far from all others are looked for in all images, others in those whose numbers are in `index`. Only
    numbers that people write for missing values count, and no limits, categories and steps of a scale.
    """
    return _find_known_code(images, index) or _find_far_code(images, index) or _find_code_at_an_end(images, index)


def _find_known_code(images: Images, index: Tensor) -> str | None:
    """A number such as -9999 that occurs several times in a feature whose other values are all far from it."""
    if not images.dtype.is_floating_point:  # bytes cannot be far from such a number
        return None
    ends = [images[0].flatten(), images[0].flatten()]
    for _, part in numbered_parts(images):
        rows = part.flatten(1)
        ends = [torch.minimum(ends[0], rows.amin(dim=0)), torch.maximum(ends[1], rows.amax(dim=0))]
    codes = torch.tensor(sorted(_CODES))
    if not any(bool(torch.isin(end.abs(), codes).any()) for end in ends):
        return None
    said = []
    for end, is_least in zip(ends, (True, False), strict=True):
        is_code = torch.isin(end.abs(), codes)
        num_there, next_to, others_end = torch.zeros(3, count_values(images), dtype=torch.float64).unbind()
        next_to, others_end = next_to + (torch.inf if is_least else -torch.inf), ends[int(is_least)].double()
        first = len(images)
        for start, part in numbered_parts(images):
            part = part.flatten(1)
            is_there = (part == end) & is_code
            num_there += is_there.sum(dim=0)
            if first == len(images) and bool(is_there.any()):
                first = start + int(is_there.any(dim=1).nonzero()[0])
            rest = part.double().masked_fill(part == end, torch.inf if is_least else -torch.inf)
            next_to = torch.minimum(next_to, rest.amin(0)) if is_least else torch.maximum(next_to, rest.amax(0))
        spread, distance = (others_end - next_to).abs(), (next_to - end).abs()
        is_missing = is_code & (num_there > 0) & torch.isfinite(next_to) & (distance >= spread) & (spread > 0)
        for value in end[is_missing].unique().tolist():
            found = (is_missing & (end == value)).nonzero().flatten().tolist()
            sign = -1.0 if is_least else 1.0
            some = sign * read_columns(images, torch.tensor(found), COPIED_VALUES, index).float()
            columns = {feature: column.unique() for feature, column in zip(found, some.unbind(1), strict=True)}
            found = [
                each for each in found if not _is_on_scale(columns[each][columns[each] < sign * value], sign * value)
            ]
            if not found:
                continue
            features = torch.tensor(found)
            count = int(num_there[features].sum())
            if count > 1:
                said.append(
                    f"the value {value:g} occurs {count:,} times in the training images, in {name_features(features)}, "
                    f"far from every other there (the first: image {first})"
                )
    return "; ".join(said[:2]) or None


def _find_far_code(images: Images, index: Tensor) -> str | None:
    """A few numbers that occur several times, far larger than the other values of their features."""
    index = index[: max(COPIED_VALUES // count_values(images), _LEAST_OTHERS)]
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
        if float(is_there[:, features].double().mean()) > _MOST_SHARE:  # rather categories, or in larger units
            continue
        if not bool(are_codes(rows[is_there].unique()).all()):
            continue
        if all(
            _ends_scale(rows[:, feature].abs().unique(), float(magnitudes[position])) for feature in features.tolist()
        ):
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


def _find_code_at_an_end(images: Images, index: Tensor) -> str | None:
    """Whole numbers that occur several times at an end of their features, with a gap to all other values there.

    Each feature is judged by itself, so that one in large units hides none. A gap beside a number that occurs once or
    twice is the end of a tail; without a gap, the number is one of a range, such as -1 among -1 to 3.
    """
    index = (
        index[draw_sample(len(index), max(_MOST_VALUES // count_values(images), _LEAST_VALUES), seed=1)].sort().values
    )
    rows = images[index].flatten(1).float()
    is_mostly_zero = 2 * (rows == 0).sum(dim=0) > len(rows)
    least = max(_LEAST_SHARE * len(rows), _LEAST_TIMES)
    found: dict[tuple[float, ...], list[int]] = {}  # features by the numbers at their end
    for sign in (1.0, -1.0):
        ends = rows.amax(dim=0) if sign > 0 else rows.amin(dim=0)
        times = (rows == ends).sum(dim=0)
        is_code = are_codes(ends)
        if len(images.shape) > 2:  # white
            is_code &= ends != _BYTE
        suspects = is_code & (times >= least) & (times <= _MOST_SHARE * len(rows)) & ~(is_mostly_zero & (ends > 0))
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
        is_only_negative = is_low and float(codes[0]) > 0 and float(rest[-1]) <= 0
        own = counts[:-num]
        # Of a feature that is mostly one value, such as a pixel that is black in most images, the others are too few.
        is_varied = len(rest) >= _LEAST_VALUES and 2 * int(own.max()) <= int(own.sum())
        if not bool(are_codes(-codes if is_low else codes).all()) or not (is_varied or is_only_negative):
            continue
        between = rest.diff()
        is_even = 2 * len(rest) > int(own.sum()) or float(between.max()) <= _EVENLY * float(between.median())
        gap, usual = float(codes[0] - rest[-1]), float(between[-_NUM_NEXT:].max())
        num_spreads = 0.0 if is_only_negative else _GAP_SPREADS
        if is_low and float(codes[0]) == 1:
            num_spreads = _MINUS_ONE_SPREADS if is_only_negative else torch.inf
        is_far = gap >= max(_GAP * usual, num_spreads * float(rest.repeat_interleave(own).std()))
        is_near = gap < _NEAR * float(rest[-1] - rest[0]) and len(rest) <= _CATEGORIES and not is_only_negative
        is_category = is_near and _AS_RARE * float(times.max()) >= float(own.min())
        if is_even and is_far and not is_category and not _is_on_scale(rest, float(codes[0])):
            found = [float(code) for code in codes]
    return found


def are_codes(values: Tensor) -> Tensor:
    """Which of some values are numbers that people write for missing values."""
    return torch.isin(values.double(), _ALL_CODES.double())


def _ends_scale(values: Tensor, limit: float) -> bool:
    """Whether the least of sorted values beyond a limit goes on with what the others begin."""
    is_beyond = values.double() > limit
    return _is_on_scale(values[~is_beyond], float(values[is_beyond][0]))


def _is_on_scale(rest: Tensor, code: float) -> bool:
    """Whether a number goes on with what the sorted lesser values `rest` begin.

    That is a series of growing steps, such as 1, 10, 100, or 1, 2, 4, 8; prices that all end with 9; powers of two.
    """
    if not len(rest):
        return False
    if code % 10 == 9 and bool((rest.abs() % 10 == 9).all()):
        return True
    # Prices end with .99, as do hardly any measurements.
    if code % 1 and float((rest % 1 - code % 1).abs().lt(_CENT / 2).double().mean()) > _PRICES:
        return True
    if code == _BYTE and float(rest[-1]) in _ONLY_IN_BITS:
        return True
    above = rest[rest > 0][-_NUM_ON_SCALE:]
    ratios = above[1:] / above[:-1]
    return len(ratios) > 0 and float(ratios.min()) >= _SCALE and code <= _SCALE * float(ratios.max() * above[-1])


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:_MOST_CODES])


def name_features(features: Tensor) -> str:
    """The features in words, with their numbers counted from 0."""
    numbers = features.tolist()
    if len(numbers) == 1:
        return f"feature {numbers[0]}"
    shown = ", ".join(str(number) for number in numbers[:5])
    return f"{len(numbers)} features ({shown}{', ...' if len(numbers) > 5 else ''})"


def numbered_parts(images: Images) -> Iterator[tuple[int, Tensor]]:
    """Parts of images, each with the number of its first image."""
    start = 0
    for part in read_parts(images, max(COPIED_VALUES // count_values(images), 1)):
        yield start, part
        start += len(part)
