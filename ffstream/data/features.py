"""Features that are in other units than in the training images, though all values together look alike."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values, read_columns, read_parts
from ffstream.data.sample import MOST_IMAGES, PART_VALUES, draw_sample
from ffstream.data.values import ENOUGH_IMAGES

_SHIFT, _SPREAD_OF_FEATURE = 4.0, 10.0  # least shift of a feature's mean, in spreads, and ratio of spreads
_MEDIAN_SHIFT, _MEDIAN_SPREAD = 1.0, 2.5  # the same for the medians over standardised features
_MOST = 0.5  # share of images
_NEARLY_ALL = 0.8  # share of images with one value, from which it is no sign that all of a split have it
_FEW_OUTSIDE = 0.1  # share of the images of a small split that may lie beyond each end of its range
_EQUAL = 1e-6  # relative difference of equal values of which some were rounded
_BY_CHANCE = 1e-7  # probability below which an accident is ruled out, small as features may be many
_NUM_CANDIDATES = 5  # images; the most frequent of their values of a feature is its usual value
_GAP, _LEAST_SHARE = 20.0, 0.02  # the least ratio of magnitudes between two units, and share of the images in each
_DECILES, _NORMAL_DECILES = (0.1, 0.5, 0.9), 2.563  # the distance of the outer two, in spreads of a normal law
_MOST_COLUMNS = 2048  # of a table whose columns are all compared by their deciles
_HEAVY = 3.0  # ratio of the spread to what the deciles suggest, from which it comes from a few images alone
_MOST_DECILES = 512  # images from which deciles are taken
_FAR_BY_CHANCE = (
    1e-4  # probability below which so many values that are farther out than all of training are no accident
)
_UPPER = 0.9  # of an image's features; those above may be of a kind of their own
# Features of an image that are not zero, or all, below which its magnitude says little: a few amounts may all be large.
_FEW_NOT_ZERO = 8
_MOST_POWER = math.log(1000.0)  # of a magnitude, relative to the median


def find_shifted(found: Images, trained: Images, like: Tensor | None = None) -> str | None:
    """A warning if some features of images (n, *shape) are in other units than in the training images; else None.

    Of a feature that has one value in most training images, only the share of images with that value counts. Of fewer
    than 50 images, a feature is named only if chance is ruled out that their values lie where they do.
    `like` are the numbers of the training images that are compared, a sample by default.
    """
    like = draw_sample(len(trained)) if like is None else like
    mean, spread, usual, usual_share = _describe_features(trained, like)
    other_mean, other_spread, _, still_usual = _describe_features(found, draw_sample(len(found)), usual)
    varies = usual_share < 1 - _MOST
    is_shifted = ((other_mean - mean).abs() > _SHIFT * spread) | (other_spread > _SPREAD_OF_FEATURE * spread)
    # Where most images have one value, as the border of a picture, a single image that differs moves mean and spread by
    # many spreads. Most of the images do not differ by chance.
    is_shifted = torch.where(varies, is_shifted, usual_share - still_usual > _MOST)
    # A feature that often has the same value may well have it in all of a few images.
    is_narrow = (other_spread * _SPREAD_OF_FEATURE < spread) & (usual_share ** len(found) < _BY_CHANCE)
    is_shifted |= is_narrow & (usual_share < _NEARLY_ALL)
    if min(len(found), len(trained)) < ENOUGH_IMAGES:
        suspects = is_shifted.nonzero().flatten()
        is_shifted[suspects] = _differ_surely(found, trained, like.unique(), suspects)
    else:
        # Of features with rare, far values, means and spreads say little.
        is_table = len(trained.shape) == 2 and trained.shape[1] <= _MOST_COLUMNS
        suspects = ((is_shifted | varies) if is_table else is_shifted).nonzero().flatten()
        if len(suspects):
            differs, is_heavy = _compare_robustly(found, trained, like, suspects)
            is_shifted[suspects] = torch.where(is_heavy, differs, is_shifted[suspects])
    shifted = is_shifted.nonzero().flatten().tolist()
    if not shifted:
        return None
    first = shifted[0]
    others = f" and {len(shifted) - 1} more" if len(shifted) > 1 else ""
    return (
        f"feature {first}{others} of {len(mean)} have other values than in the training images (mean {mean[first]:g} "
        f"and spread {spread[first]:g} there, {other_mean[first]:g} and {other_spread[first]:g} here); bring them to "
        "the same units"
    )


def _differ_surely(found: Images, trained: Images, like: Tensor, features: Tensor) -> Tensor:
    """Whether the ranks of features (k,) of images (n, *shape), however few, rule out that these are like training.

    Counted are the values within the range of all, or most, of either split. How likely such counts are for two splits
    of one kind follows from their ranks alone, whatever the values are distributed like: it is about exp(-surprise). So
    a feature that is shifted farther takes fewer images: ten of wine, beside 134 of training, where no values are in
    the training range, and more where some are.
    """
    limit = math.log(count_values(trained) * (len(found) + len(like)) / _BY_CHANCE)
    differs = torch.zeros(len(features), dtype=torch.bool)
    step = max(PART_VALUES // MOST_IMAGES, 1)
    for start in range(0, len(features), step):
        part = features[start : start + step]
        splits = [_take_features(found, torch.arange(len(found)), part), _take_features(trained, like, part)]
        for own, few in ((own, int(share * len(own))) for own in splits for share in (0.0, _FEW_OUTSIDE)):
            ordered = own.sort(dim=0).values
            low, high = ordered[few], ordered[len(own) - 1 - few]
            inside = [((values >= low) & (values <= high)).double().sum(dim=0) for values in splits]
            differs[start : start + step] |= _surprise(inside, [len(values) for values in splits]) > limit
    return differs


def _surprise(counts: list[Tensor], sizes: list[int]) -> Tensor:
    """The logarithm of how much likelier two counts (k,) are by shares of their own than by one common share."""
    common = sum(counts) / sum(sizes)
    total = torch.zeros_like(counts[0])
    for count, size in zip(counts, sizes, strict=True):
        total += torch.special.xlogy(count, count / size) - torch.special.xlogy(count, common)
        rest = size - count
        total += torch.special.xlogy(rest, rest / size) - torch.special.xlogy(rest, 1 - common)
    return total


def _compare_robustly(found: Images, trained: Images, like: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Whether features (k,) of images (n, *shape) differ by their deciles, and whether that says more: (k,) bool.

    It says more where the spread comes from a few images, and where hardly any value is farther out than all of
    training; of two splits of one data set, one may well hold such a value that the other lacks.
    """
    # Of two splits of one kind, the k values that are farthest out at one end are all of one of them with a probability
    # of its share to the power k, and k are divided between the two ends in k + 1 ways.
    chance = -math.log(len(found) / (len(found) + len(like.unique())))
    outcomes = []
    for part in features.split(PART_VALUES // _MOST_DECILES):
        wanted, values = _take_features(trained, like, part), _take_features(found, draw_sample(len(found)), part)
        middle, width, near, is_heavy = _measure_robustly(wanted)
        other_middle, other_width, other_near, is_other_heavy = _measure_robustly(values)
        differs = (other_middle - middle).abs() > _SHIFT * width
        # A decile may lie at the edge of values that a tenth of the images have; the median of the distances does not.
        differs |= (other_width > _SPREAD_OF_FEATURE * width) & (other_near > _SPREAD_OF_FEATURE * near)
        differs |= (width > _SPREAD_OF_FEATURE * other_width) & (near > _SPREAD_OF_FEATURE * other_near)
        num_beyond = ((values < wanted.amin(dim=0)) | (values > wanted.amax(dim=0))).sum(dim=0)
        is_by_chance = num_beyond * chance - torch.log1p(num_beyond) <= -math.log(_FAR_BY_CHANCE)
        is_heavy |= is_other_heavy & is_by_chance
        outcomes.append(torch.stack([differs, is_heavy & (width > 0) & (other_width > 0)]))
    differs, is_heavy = torch.cat(outcomes, dim=1).unbind(0)
    return differs, is_heavy


def _measure_robustly(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Medians of values (n, k), spreads by the deciles, median distances, and whether the spread is far larger."""
    some = values[:_MOST_DECILES]
    low, middle, high = torch.quantile(some, torch.tensor(_DECILES, dtype=values.dtype), dim=0)
    width = (high - low) / _NORMAL_DECILES
    return middle, width, (some - middle).abs().median(dim=0).values, values.std(dim=0) > _HEAVY * width


def _take_features(images: Images, index: Tensor, features: Tensor) -> Tensor:
    """Some features (k,) of the images `index` (n,), in double precision: (n, k)."""
    if isinstance(images, Tensor) and images.is_contiguous():
        return images.flatten(1)[index.unsqueeze(1), features].double()
    return read_columns(images, features, PART_VALUES, index).double()


def find_mixed(images: Images) -> str | None:
    """A warning if some of the images (n, *shape) are in other units than the rest; None otherwise.

    The magnitudes of the images then form two groups with a gap between them. An image's magnitude is one that a tenth
    of its features that are not zero exceed, each feature in units of its own mean; images with few such features
    have none. Fewer than 50 images are not judged, nor are integers, in which values in other units would be rounded
    away.
    """
    if len(images) < ENOUGH_IMAGES or not images.dtype.is_floating_point:
        return None
    units = _usual_magnitudes(images)
    sizes = torch.cat(
        [_measure_magnitudes(part, units) for part in read_parts(images, max(PART_VALUES // len(units), 1))]
    )
    numbers = sizes.nonzero().flatten()
    if len(numbers) < ENOUGH_IMAGES:
        return None
    sizes, order = sizes[numbers].sort()
    gaps = sizes[1:] / sizes[:-1]
    few = max(int(_LEAST_SHARE * len(images)), 2)  # a single one may hold a value that is rare and far
    within = gaps[few - 1 : len(gaps) - few + 1]
    if not len(within) or float(within.max()) < _GAP:
        return None
    position = few + int(within.argmax())
    is_less = 2 * position < len(numbers)
    some = numbers[order[:position] if is_less else order[position:]]
    return (
        f"in {len(some)} of {len(images)}, such as image {int(some.min())}, all values are {float(within.max()):.0f} "
        f"times {'smaller' if is_less else 'larger'} than in the rest, as if in other units; bring all to the same"
    )


def _measure_magnitudes(part: Tensor, units: Tensor) -> Tensor:
    """The magnitude of each image of a part (n, *shape), (n,); 0 of one that has few features that are not zero."""
    values = part.flatten(1).double().abs() / units
    # Zeros have no units, and a sparse picture is not in other units than a dense one.
    values = torch.where(values > 0, values, torch.nan)
    is_enough = values.isfinite().sum(dim=1) >= min(_FEW_NOT_ZERO, values.shape[1])
    sizes = torch.nanquantile(values, _UPPER, dim=1, interpolation="lower")
    return torch.where(is_enough, sizes, 0.0)


def _usual_magnitudes(images: Images) -> Tensor:
    """The geometric mean of the magnitudes of each feature that are not zero, (features,), from a sample; or 1.

    Where half of the images are in other units, the median would be in either, from feature to feature. Magnitudes far
    from the median, such as zeros that were not computed exactly, count for no more than a factor of 1000.
    """
    some, found = images[draw_sample(len(images), _MOST_DECILES)].flatten(1), []
    for part in torch.arange(count_values(images)).split(PART_VALUES // _MOST_DECILES):
        values = some[:, part].double().abs()
        powers = torch.where(values > 0, values.log(), torch.nan)
        middle = powers.nanmedian(dim=0).values
        found.append((middle + (powers - middle).clamp(-_MOST_POWER, _MOST_POWER).nanmean(dim=0)).exp())
    return torch.cat(found).nan_to_num(nan=1.0)


def measure_ranges(images: Images) -> dict[str, list[float]]:
    """The least and the largest value of each feature of images (n, *shape)."""
    low, high = images[0].flatten().double(), images[0].flatten().double()
    for part in read_parts(images, max(PART_VALUES // count_values(images), 1)):
        values = part.flatten(1).double()
        low, high = torch.minimum(low, values.amin(dim=0)), torch.maximum(high, values.amax(dim=0))
    return {"low": low.tolist(), "high": high.tolist()}


def find_beyond(images: Images, low: Tensor, high: Tensor, num_trained: int) -> str | None:
    """A warning if a feature of most images (n, *shape) is beyond its training range (features,); None otherwise.

    In each new image of the same kind, the chance of that is at most 2 in `num_trained` + 1, whatever the values are
    distributed like; images of a single class are not beyond the range either. So a few images are enough.
    """
    beyond = torch.zeros(len(low), dtype=torch.int64)
    rounding = _EQUAL * torch.maximum(low.abs(), high.abs())
    for part in read_parts(images, max(PART_VALUES // len(low), 1)):
        values = part.flatten(1).double()
        beyond += ((values < low - rounding) | (values > high + rounding)).sum(dim=0)
    # There are at most 2^n ways to choose those of n images that are beyond.
    surprise = beyond * math.log((num_trained + 1) / 2) - len(images) * math.log(2)
    is_other = (beyond > _MOST * len(images)) & (surprise > math.log(len(low) / _BY_CHANCE))
    features = is_other.nonzero().flatten().tolist()
    if not features:
        return None
    first = features[0]
    others = f", and so are {len(features) - 1} more features" if len(features) > 1 else ""
    return (
        f"feature {first} of {len(low)} is beyond its range in training ({low[first]:g} to {high[first]:g}) in "
        f"{int(beyond[first])} of {len(images)}{others}; bring features to the units and the order that they have there"
    )


def measure_rows(rows: Tensor) -> tuple[float, float] | None:
    """The medians of |mean| and spread over the features of standardised rows (n, features); None if none varies."""
    mean, spread, *_ = _describe_features(rows, draw_sample(len(rows)))
    varies = (rows != rows[0]).any(dim=0)
    if not bool(varies.any()):
        return None
    return float(mean[varies].abs().median()), float(spread[varies].median())


def find_shifted_rows(
    rows: Tensor, num_images: int, classes: Mapping[str, float] | None, single: Mapping[str, float] | None
) -> str | None:
    """A warning if standardised images, rows (n, parts), are in other units than the training images; else None.

    `classes` holds the limits within which the training images of any single class lie, and `single` those of any
    single image, where these are known. The pixels of an image are alike, so that fewer than 50 images, however many
    rows they are, are compared with single images, and are not judged without.
    """
    is_few = num_images < ENOUGH_IMAGES
    limits = single if is_few else classes or {"shift": 0.0, "least_spread": 1.0, "most_spread": 1.0}
    found = None if limits is None else measure_rows(rows)
    if found is None or limits is None:
        return None
    shift, ratio = found
    # Of those that were measured, a few may not have been as bright as an image can be.
    is_near = shift <= _MEDIAN_SHIFT + limits["shift"] * (2 if is_few else 1)
    if is_near and limits["least_spread"] / _MEDIAN_SPREAD <= ratio <= limits["most_spread"] * _MEDIAN_SPREAD:
        return None
    return (
        f"standardised by mean and spread of the training images, most features have a mean of {shift:.3g} and a "
        f"spread of {ratio:.3g}, where 0 and 1 are expected; bring them to the units of the training images"
    )


def _describe_features(
    images: Images, index: Tensor, usual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is known of each feature, from the images `index`; four tensors (features,).

    They are its mean, its spread, its usual value, which may be given, and the share of images that have that value.
    """
    sums = torch.zeros(3, count_values(images), dtype=torch.float64)
    some = images[index[:_NUM_CANDIDATES]].flatten(1).double()
    usual = some.mode(dim=0).values if usual is None else usual
    rounding = _EQUAL * usual.abs()
    start = some[0]  # it is subtracted first, as squares of large values would lose small spreads
    for part in index.split(max(PART_VALUES // count_values(images), 1)):
        values = images[part].flatten(1).double()
        sums[2] += ((values - usual).abs() <= rounding).sum(dim=0)
        values -= start
        sums[0] += values.sum(dim=0)
        sums[1] += values.square().sum(dim=0)
    mean, square, usual_share = sums / len(index)
    return mean + start, (square - mean.square()).clamp(min=0.0).sqrt(), usual, usual_share
