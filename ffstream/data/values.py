"""Statistics of image values, by which images in other units than the training images are detected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

WHITE = 255  # the value of white in a picture, whose values are bytes
_MOST_IMAGES = 4096  # images, at most, from which means and spreads are taken
_PART_FEATURES = 1 << 16  # values whose squares are in memory at once; few, as new memory costs page faults
ENOUGH_IMAGES = 50  # images; the mean, spread and sign of fewer say little about their units
_RATIO = 8.0  # the largest ratio of magnitudes in the same units
_SPREADS = 1.0  # the largest difference of means in the same units, in training spreads
_SPREAD_RATIO = 3.0
_FAR_VALUES = 15.0  # ratio of the largest value to the spread
_SHIFT, _SPREAD_OF_FEATURE = 4.0, 10.0  # least shift of a feature's mean, in spreads, and ratio of spreads
_MEDIAN_SHIFT, _MEDIAN_SPREAD = 1.0, 2.5  # the same for the medians over standardised features
_NUM_COLOURS = 3
_TINT = 0.04  # the largest difference of the channels of a grey image, as a share of white
_SOME_COLOURED = 0.05  # share of images; a smaller one may have been missed in training images that are all grey
_RARELY = 0.01  # probability below which so many grey images are no accident
_MOST = 0.5  # share of images
_EQUAL = 1e-6  # relative difference of equal values of which some were rounded
_BY_CHANCE = 1e-7  # probability below which an accident is ruled out, small as features may be many
_NUM_CANDIDATES = 5  # images; the most frequent of their values of a feature is its usual value
_GAP, _LEAST_SHARE = 20.0, 0.02  # the least ratio of magnitudes between two units, and share of the images in each
_CLASS_SPREADS, _CLASS_SPREAD_RATIO = 0.5, 1.5  # _SPREADS and _SPREAD_RATIO for images that are all of one class
_MOST_CLASSES, _FEW = 1000, 5  # classes that are described, and the images that each needs
_KNOWN = 0.9  # least share of a split's images whose classes are described
_DARKEST = 0.01  # share of the training images that may be darker, on the whole, than a few images are expected to be
_DECILES, _NORMAL_DECILES = (0.1, 0.5, 0.9), 2.563  # the distance of the outer two, in spreads of a normal law
_HEAVY = 3.0  # ratio of the spread to what the deciles suggest, from which it comes from a few images alone
_MOST_DECILES = 512  # images from which deciles are taken
_FAR_BY_CHANCE = 3.0  # values that are farther out than all of training, in a split of another size times its share
_UPPER = 0.9  # of an image's features; those above may be of a kind of their own
_ROUNDING = 0.05  # share of the largest value; values this little below zero do not count as negative


@dataclass(frozen=True)
class Values:
    """The least and the largest value of images, and the mean and the standard deviation of a sample of them."""

    num_images: int
    low: float
    high: float
    mean: float
    spread: float
    classes: tuple[tuple[float, float], ...] = ()  # mean and spread of the first classes of training images
    class_labels: tuple[int, ...] = ()  # their labels; earlier versions recorded none
    coloured: float | None = None  # share of images whose three channels differ; None without such channels
    least_coloured: float | None = None  # the same of the class with the smallest share
    dark: float | None = None  # the largest magnitude of an image that is darker than nearly all others

    @classmethod
    def of(cls, images: Tensor, labels: Tensor | None = None) -> Values:
        """Measure images (n, ...), a part at a time, and each of their classes where labels (n,) are given."""
        low, high = (float(end) for end in torch.aminmax(images))
        index = _draw(len(images))
        sums = _sum_images(images, index)
        mean, square = sums[:, :2].mean(dim=0).tolist()
        coloured = _find_coloured(images, index)
        found = cls(len(images), low, high, mean, max(square - mean**2, 0.0) ** 0.5)
        if coloured is not None:
            found = replace(found, coloured=float(coloured.double().mean()))
        return found if labels is None else found._with_classes(sums, labels[index], coloured)

    def _with_classes(self, sums: Tensor, labels: Tensor, coloured: Tensor | None) -> Values:
        """Add what is known of the classes, from the sums, labels and colours of a sample of training images."""
        num_classes = int(labels.max()) + 1
        counts = torch.bincount(labels, minlength=num_classes)
        known = (counts >= _FEW).nonzero().flatten()[:_MOST_CLASSES]
        by_class = sums.new_zeros(num_classes, 2).index_add_(0, labels, sums[:, :2])
        means, squares = (by_class[known] / counts[known].unsqueeze(1)).unbind(1)
        spreads = (squares - means.square()).clamp(min=0.0).sqrt()
        found = replace(
            self,
            classes=tuple(zip(means.tolist(), spreads.tolist(), strict=True)),
            class_labels=tuple(known.tolist()),
            dark=float(torch.quantile(sums[:, 2], _DARKEST)),
        )
        if coloured is None or not len(known):
            return found
        shares = sums.new_zeros(num_classes).index_add_(0, labels, coloured.double())[known] / counts[known]
        return replace(found, least_coloured=float(shares.min()))

    def expected_of(self, labels: Tensor) -> Values:
        """What images with these labels (n,) are expected to be like, by the classes of the training images."""
        own = torch.tensor(self.class_labels, dtype=torch.int64)
        is_known = torch.isin(labels, own)
        if not len(own) or float(is_known.double().mean()) < _KNOWN:
            return self
        place = torch.searchsorted(own, labels[is_known])
        shares = torch.bincount(place, minlength=len(own)).double() / len(place)
        means, spreads = torch.tensor(self.classes, dtype=torch.float64).unbind(1)
        mean = float(shares @ means)
        square = float(shares @ (spreads.square() + means.square()))
        return replace(self, mean=mean, spread=max(square - mean**2, 0.0) ** 0.5, classes=(), class_labels=())

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any]) -> Values:
        """The inverse of `to_mapping`."""
        fields = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        fields["classes"] = tuple((mean, spread) for mean, spread in found.get("classes", []))
        labels = tuple(found.get("class_labels", []))
        is_aligned = len(labels) == len(fields["classes"]) and list(labels) == sorted(set(labels))
        return cls(**fields | {"class_labels": labels if is_aligned else ()})

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest."""
        lists = {"classes": [list(pair) for pair in self.classes], "class_labels": list(self.class_labels)}
        found = {name: value for name, value in asdict(self).items() if name not in lists and value is not None}
        return found | (lists if self.classes else {})

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def describe(self) -> str:
        """The range and the mean in words, for a message."""
        return f"{self.low:g} to {self.high:g}, {self.mean:g} on average"


def find_other_units(found: Values, trained: Values) -> str | None:
    """A warning if the values `found` are in other units than those of the training images; None otherwise.

    For few images, only the magnitude counts, and negative values where training had none: a single image may be all
    black or all white. For many, the mean and the spread count as well, but not a small magnitude, as the rare largest
    values may be missing. Images like those of a single class pass; of images whose labels are known, `trained` is what
    `Values.expected_of` makes of them.
    """
    are_other = found.largest > trained.largest * _RATIO
    usual = trained.largest if trained.dark is None else trained.dark
    are_other |= found.num_images < ENOUGH_IMAGES and found.largest * _RATIO < usual
    are_other |= trained.low >= 0 and found.low < -_ROUNDING * found.largest
    if found.num_images >= ENOUGH_IMAGES and trained.spread > 0:
        is_odd = abs(found.mean - trained.mean) > _SPREADS * trained.spread
        # Where some values are rare and far, most of the spread may come from a few that a split lacks.
        most = _SPREAD_OF_FEATURE if trained.largest > _FAR_VALUES * trained.spread else _SPREAD_RATIO
        is_odd |= not 1 / most <= found.spread / trained.spread <= most
        is_odd |= (trained.low < -_ROUNDING * trained.largest) and found.low >= 0
        are_other |= is_odd and not any(_is_like(found, *each) for each in trained.classes)
    if not are_other:
        return _find_other_colour(found, trained)
    return (
        f"their values ({found.describe()}) do not look like those of the training images ({trained.describe()}), in "
        "whose units they are read; bring them to these units"
    )


def _find_other_colour(found: Values, trained: Values) -> str | None:
    """A warning if images are all grey although training images are in colour, or the other way round; else None."""
    if found.coloured is None or trained.coloured is None:
        return None
    share = trained.coloured if trained.least_coloured is None else trained.least_coloured
    if found.coloured == 0 and (1 - share) ** min(found.num_images, _MOST_IMAGES) < _RARELY:
        return f"all are grey, and {100 * trained.coloured:.0f} % of the training images are in colour"
    if trained.coloured == 0 and found.coloured >= _SOME_COLOURED:
        return f"{100 * found.coloured:.0f} % of them are in colour, and all training images are grey"
    return None


def is_coloured(images: Tensor) -> Tensor:
    """Which of images (n, height, width, 3) or (n, 3, height, width) show colours: (n,) bool.

    White is 255 for bytes, else the largest value of all these images. Floats whose channels were each brought to units
    of their own show no colours either if one and the same line leads from a channel's values to another's.
    """
    channels = images if images.shape[-1] == _NUM_COLOURS else images.movedim(1, -1)
    channels = channels.float().flatten(1, 2)  # (n, pixels, 3)
    most = (channels.amax(dim=-1) - channels.amin(dim=-1)).amax(dim=1)
    found = most > _TINT * (WHITE if images.dtype == torch.uint8 else float(channels.abs().amax()))
    if not images.is_floating_point() or not bool(found.any()):
        return found
    first, *others = channels.double().unbind(dim=-1)
    centred = first - first.mean()
    for other in others:
        slope = float((centred * other).mean() / centred.square().mean().clamp(min=1e-300))
        rest = (other - other.mean() - slope * centred).abs().amax(dim=1)
        if slope <= 0 or bool((rest > _TINT * float(other.max() - other.min())).any()):
            return found
    return torch.zeros_like(found)


def _find_coloured(images: Tensor, index: Tensor) -> Tensor | None:
    """Which of the images `index` show colours; None if the images have no three channels."""
    if images.ndim != 4 or _NUM_COLOURS not in (images.shape[-1], images.shape[1]):
        return None
    parts = index.split(max(_PART_FEATURES // images[0].numel(), 1))
    return torch.cat([is_coloured(images[part]) for part in parts])


def _draw(num_images: int) -> Tensor:
    """The numbers of a sample of images; random, as images may come in an order of their own."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(0))[:_MOST_IMAGES]


def _sum_images(images: Tensor, index: Tensor) -> Tensor:
    """Of each of the images `index`, the mean of its values, that of their squares, and the largest: (n, 3)."""
    sums = torch.empty(len(index), 3, dtype=torch.float64)
    size = max(_PART_FEATURES // images[0].numel(), 1)
    for start in range(0, len(index), size):
        values = images[index[start : start + size]].flatten(1).double()
        largest = torch.maximum(values.amax(dim=1), -values.amin(dim=1))
        sums[start : start + size] = torch.stack([values.mean(dim=1), values.square().mean(dim=1), largest], dim=1)
    return sums


def find_shifted(found: Tensor, trained: Tensor, like: Tensor | None = None) -> str | None:
    """A warning if some features of images (n, *shape) are in other units than in the training images; else None.

    Only features that are nonzero in most training images are compared, and those that are constant there. Fewer than
    50 images are not judged. `like` are the numbers of the training images that are compared, a sample by default.
    """
    if min(len(found), len(trained)) < ENOUGH_IMAGES:
        return None
    like = _draw(len(trained)) if like is None else like
    mean, spread, share, usual, usual_share = _describe_features(trained, like)
    other_mean, other_spread, _, _, still_usual = _describe_features(found, _draw(len(found)), usual)
    is_shifted = (other_mean - mean).abs() > _SHIFT * spread
    is_shifted |= other_spread > _SPREAD_OF_FEATURE * spread
    # A feature that nearly always has the same value may well be constant in a few images.
    is_narrow = (other_spread * _SPREAD_OF_FEATURE < spread) & (usual_share ** len(found) < _BY_CHANCE)
    is_shifted |= is_narrow
    # Of a constant feature, some images may differ where its values are rare; most of them do not by chance.
    is_shifted = torch.where(spread > 0, is_shifted & (share > _MOST), still_usual < 1 - _MOST)
    # Of features with rare, far values, means and spreads say little.
    is_table = trained.dim() == 2
    suspects = ((is_shifted | (share > _MOST)) if is_table else is_shifted).nonzero().flatten()
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


def _compare_robustly(found: Tensor, trained: Tensor, like: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Whether features (k,) of images (n, *shape) differ by their deciles, and whether that says more: (k,) bool.

    It says more where the spread comes from a few images, and where hardly any value is farther out than all of
    training; of two splits of one data set, one may well hold such a value that the other lacks.
    """
    by_chance = _FAR_BY_CHANCE * (1 + len(found) / len(trained))
    outcomes = []
    for part in features.split(_PART_FEATURES // _MOST_DECILES):
        wanted, values = _take_features(trained, like, part), _take_features(found, _draw(len(found)), part)
        middle, width, near, is_heavy = _measure_robustly(wanted)
        other_middle, other_width, other_near, is_other_heavy = _measure_robustly(values)
        differs = (other_middle - middle).abs() > _SHIFT * width
        # A decile may lie at the edge of values that a tenth of the images have; the median of the distances does not.
        differs |= (other_width > _SPREAD_OF_FEATURE * width) & (other_near > _SPREAD_OF_FEATURE * near)
        differs |= (width > _SPREAD_OF_FEATURE * other_width) & (near > _SPREAD_OF_FEATURE * other_near)
        num_beyond = ((values < wanted.amin(dim=0)) | (values > wanted.amax(dim=0))).sum(dim=0)
        is_heavy |= is_other_heavy & (num_beyond <= by_chance)
        outcomes.append(torch.stack([differs, is_heavy & (width > 0) & (other_width > 0)]))
    differs, is_heavy = torch.cat(outcomes, dim=1).unbind(0)
    return differs, is_heavy


def _measure_robustly(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Medians of values (n, k), spreads by the deciles, median distances, and whether the spread is far larger."""
    some = values[:_MOST_DECILES]
    low, middle, high = torch.quantile(some, torch.tensor(_DECILES, dtype=values.dtype), dim=0)
    width = (high - low) / _NORMAL_DECILES
    return middle, width, (some - middle).abs().median(dim=0).values, values.std(dim=0) > _HEAVY * width


def _take_features(images: Tensor, index: Tensor, features: Tensor) -> Tensor:
    """Some features (k,) of the images `index` (n,), in double precision: (n, k)."""
    if images.is_contiguous():
        return images.flatten(1)[index.unsqueeze(1), features].double()
    size = max(_PART_FEATURES // images[0].numel(), 1)
    return torch.cat([images[part].flatten(1)[:, features].double() for part in index.split(size)])


def find_mixed(images: Tensor) -> str | None:
    """A warning if some of the images (n, *shape) are in other units than the rest; None otherwise.

    The magnitudes of the images then form two groups with a gap between them. An image's magnitude is one that a tenth
    of its features exceed, each feature in units of its own median. Fewer than 50 images are not judged, nor are
    integers, in which values in other units would be rounded away.
    """
    if len(images) < ENOUGH_IMAGES or not images.is_floating_point():
        return None
    units = _usual_magnitudes(images)
    rank = int(_UPPER * (len(units) - 1)) + 1
    size = max(_PART_FEATURES // len(units), 1)
    largest = torch.cat([(part.flatten(1).double().abs() / units).kthvalue(rank).values for part in images.split(size)])
    order = largest.argsort()
    sizes = largest[order].clamp(min=float(largest[largest > 0].min()) if bool((largest > 0).any()) else 1.0)
    gaps = sizes[1:] / sizes[:-1]
    few = max(int(_LEAST_SHARE * len(images)), 1)
    within = gaps[few - 1 : len(gaps) - few + 1]
    if not len(within) or float(within.max()) < _GAP:
        return None
    position = few + int(within.argmax())
    is_less = 2 * position < len(images)
    some = order[:position] if is_less else order[position:]
    return (
        f"in {len(some)} of {len(images)}, such as image {int(some.min())}, all values are {float(within.max()):.0f} "
        f"times {'smaller' if is_less else 'larger'} than in the rest, as if in other units; bring all to the same"
    )


def _usual_magnitudes(images: Tensor) -> Tensor:
    """The median magnitude of each feature where it is not zero, (features,), from a sample of images; or 1."""
    index = _draw(len(images))[:_MOST_DECILES]
    found = []
    for part in torch.arange(images[0].numel()).split(_PART_FEATURES // _MOST_DECILES):
        values = _take_features(images, index, part).abs()
        found.append(torch.where(values > 0, values, torch.nan).nanmedian(dim=0).values)
    return torch.cat(found).nan_to_num(nan=1.0)


def measure_rows(rows: Tensor) -> tuple[float, float] | None:
    """The medians of |mean| and spread over the features of standardised rows (n, features); None if none varies."""
    mean, spread, *_ = _describe_features(rows, _draw(len(rows)))
    varies = (rows != rows[0]).any(dim=0)
    if not bool(varies.any()):
        return None
    return float(mean[varies].abs().median()), float(spread[varies].median())


def find_shifted_rows(rows: Tensor, classes: Mapping[str, float] | None) -> str | None:
    """A warning if standardised images, rows (n, features), are in other units than the training images; else None.

    Fewer than 50 rows are not judged. `classes` holds the limits within which the training images of any single class
    lie, where these are known.
    """
    found = measure_rows(rows) if len(rows) >= ENOUGH_IMAGES else None
    if found is None:
        return None
    (shift, ratio), limits = found, classes or {"shift": 0.0, "least_spread": 1.0, "most_spread": 1.0}
    is_near = shift <= _MEDIAN_SHIFT + limits["shift"]
    if is_near and limits["least_spread"] / _MEDIAN_SPREAD <= ratio <= limits["most_spread"] * _MEDIAN_SPREAD:
        return None
    return (
        f"standardised by mean and spread of the training images, most features have a mean of {shift:.3g} and a "
        f"spread of {ratio:.3g}, where 0 and 1 are expected; bring them to the units of the training images"
    )


def _is_like(found: Values, mean: float, spread: float) -> bool:
    """Whether images are like those of a class with this mean and spread."""
    is_as_wide = spread / _CLASS_SPREAD_RATIO <= found.spread <= spread * _CLASS_SPREAD_RATIO
    return is_as_wide and abs(found.mean - mean) <= _CLASS_SPREADS * spread


def _describe_features(
    images: Tensor, index: Tensor, usual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What is known of each feature, from the images `index`; five tensors (features,).

    They are its mean, its spread, the share of images in which it is not zero, its usual value, which may be given, and
    the share of images in which it has that value.
    """
    sums = torch.zeros(4, images[0].numel(), dtype=torch.float64)
    some = images[index[:_NUM_CANDIDATES]].flatten(1).double()
    usual = some.mode(dim=0).values if usual is None else usual
    rounding = _EQUAL * usual.abs()
    start = some[0]  # it is subtracted first, as squares of large values would lose small spreads
    for part in index.split(max(_PART_FEATURES // images[0].numel(), 1)):
        values = images[part].flatten(1).double()
        sums[2] += (values != 0).sum(dim=0)
        sums[3] += ((values - usual).abs() <= rounding).sum(dim=0)
        values -= start
        sums[0] += values.sum(dim=0)
        sums[1] += values.square().sum(dim=0)
    mean, square, share, usual_share = sums / len(index)
    return mean + start, (square - mean.square()).clamp(min=0.0).sqrt(), share, usual, usual_share
