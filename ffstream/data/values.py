"""Statistics of image values, by which images in other units than the training images are detected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ffstream.data.colours import find_coloured
from ffstream.data.image_access import Images, count_values, read_parts
from ffstream.data.sample import MOST_IMAGES, PART_VALUES, draw_sample

ENOUGH_IMAGES = 50  # images; the mean, spread and sign of fewer say little about their units
_RATIO = 8.0  # the largest ratio of magnitudes in the same units
_SPREADS = 1.0  # the largest difference of means in the same units, in training spreads
_SPREAD_RATIO = 3.0
# The ratio of the largest value to the spread from which values are rare and far, and the ratio of spreads that is the
# largest in the same units then.
_FAR_VALUES, _FAR_SPREAD_RATIO = 15.0, 10.0
_SOME_COLOURED = 0.05  # share of images; a smaller one may have been missed in training images that are all grey
_RARELY = 0.01  # probability below which so many grey images are no accident
_CLASS_SPREADS, _CLASS_SPREAD_RATIO = 0.5, 1.5  # _SPREADS and _SPREAD_RATIO for images that are all of one class
_MOST_CLASSES, _FEW = 1000, 5  # classes that are described, and the images that each needs
_KNOWN = 0.9  # least share of a split's images whose classes are described
_DARKEST = 0.01  # share of the training images that may be darker, on the whole, than a few images are expected to be
_TABLE_DIMS = 2  # of the rows of a table; whatever has more is a picture
# Share of images that may hold rare, far values, and of fewer images than that number.
_SOME_FAR, _ENOUGH_FAR, _SOME_OF_FEW = 0.1, 10, 0.5
_LOOKED_VALUES = 1 << 20  # whose ends are looked for at once
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
    means: tuple[float, float] | None = None  # of a picture, the least and the largest; of training, of all but few
    # The largest magnitude of an image that nine tenths of the images do not exceed, the least value that nine tenths
    # do not fall below, and mean and spread of all images but the tenth with the largest RMS; of fewer than ten images,
    # half instead of nine tenths. Earlier versions recorded none of them, or not all.
    usual_largest: float | None = None
    usual_low: float | None = None
    usual_mean: float | None = None
    usual_spread: float | None = None

    @classmethod
    def of(cls, images: Images, labels: Tensor | None = None, ends: tuple[float, float] | None = None) -> Values:
        """Measure images (n, ...), a part at a time, and each of their classes where labels (n,) are given.

        `ends` are the least and the largest value, where they are known.
        """
        low, high = find_ends(images) if ends is None else ends
        index = draw_sample(len(images))
        sums = _sum_images(images, index)
        mean, square = sums[:, :2].mean(dim=0).tolist()
        coloured = find_coloured(images, index)
        some_far = _SOME_FAR if len(index) >= _ENOUGH_FAR else _SOME_OF_FEW
        usual_square, usual_largest, usual_depth = torch.quantile(sums[:, 1:], 1 - some_far, dim=0).tolist()
        usual_mean, usual_square = sums[sums[:, 1] <= usual_square, :2].mean(dim=0).tolist()
        usual = {
            "usual_largest": usual_largest,
            "usual_low": -usual_depth,
            "usual_mean": usual_mean,
            "usual_spread": max(usual_square - usual_mean**2, 0.0) ** 0.5,
        }
        found = cls(len(images), low, high, mean, max(square - mean**2, 0.0) ** 0.5, **usual)
        if len(images.shape) > _TABLE_DIMS:
            found = replace(found, means=(float(sums[:, 0].min()), float(sums[:, 0].max())))
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
        if self.means is not None:
            ends = torch.tensor([_DARKEST, 1 - _DARKEST], dtype=torch.float64)
            least, most = torch.quantile(sums[:, 0], ends).tolist()
            found = replace(found, means=(least, most))
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
        fields |= {"means": tuple(found["means"])} if "means" in found else {}
        fields["classes"] = tuple((mean, spread) for mean, spread in found.get("classes", []))
        labels = tuple(found.get("class_labels", []))
        is_aligned = len(labels) == len(fields["classes"]) and list(labels) == sorted(set(labels))
        return cls(**fields | {"class_labels": labels if is_aligned else ()})

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest."""
        means = {} if self.means is None else {"means": list(self.means)}
        lists = {"classes": [list(pair) for pair in self.classes], "class_labels": list(self.class_labels)}
        found = {name: value for name, value in asdict(self).items() if name not in lists and value is not None}
        return found | means | (lists if self.classes else {})

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def describe(self) -> str:
        """The range and the mean in words, for a message."""
        return f"{self.low:g} to {self.high:g}, {self.mean:g} on average"


def find_ends(images: Images) -> tuple[float, float]:
    """The least and the largest value of images (n, ...)."""
    ends = [torch.aminmax(part) for part in read_parts(images, max(_LOOKED_VALUES // count_values(images), 1))]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def find_other_units(found: Values, trained: Values) -> str | None:
    """A warning if the values `found` are in other units than those of the training images; None otherwise.

    For few images, only the magnitude counts, negative values where training had none, and the brightness of pictures
    if it is far from that of nearly all in training: a single image may be all black or all white. For many, the mean
    and the spread count as well, but not a small magnitude, as the rare largest values may be missing. Images like
    those of a single class pass; of images whose labels are known, `trained` is what `Values.expected_of` makes
    of them.
    """
    # A few of the images may hold values that are rare and far from all others, as standardised pictures do in pixels
    # that are hardly ever set in training, and as tables do in amounts that are mostly zero; they are no sign.
    largest, low = _first_known(found.usual_largest, found.largest), _first_known(found.usual_low, found.low)
    are_other = largest > trained.largest * _RATIO
    usual = trained.largest if trained.dark is None else trained.dark
    are_other |= found.num_images < ENOUGH_IMAGES and found.largest * _RATIO < usual
    are_other |= found.num_images < ENOUGH_IMAGES and _are_far(found, trained)
    are_other |= trained.low >= 0 and low < -_ROUNDING * largest
    if found.num_images >= ENOUGH_IMAGES and trained.spread > 0:
        is_odd = _have_other_mean(found, trained) or _have_other_spread(found, trained)
        usual_low = _first_known(trained.usual_low, trained.low)
        is_odd |= usual_low < -_ROUNDING * _first_known(trained.usual_largest, trained.largest) and found.low >= 0
        are_other |= is_odd and not any(_is_like(found, *each) for each in trained.classes)
    if not are_other:
        return _find_other_colour(found, trained)
    return (
        f"their values ({found.describe()}) do not look like those of the training images ({trained.describe()}), in "
        "whose units they are read; bring them to these units"
    )


def _first_known(value: float | None, other: float) -> float:
    return other if value is None else value


def _have_other_mean(found: Values, trained: Values) -> bool:
    """Whether the mean of images is far from that of training, with and without the tenth of them that is largest.

    The mean of values with a heavy tail comes from a few of them, and so differs from split to split.
    """
    means = (found.mean, _first_known(found.usual_mean, found.mean))
    return all(abs(mean - trained.mean) > _SPREADS * trained.spread for mean in means)


def _have_other_spread(found: Values, trained: Values) -> bool:
    """Whether the spread of images is unlike that of training, with and without the tenth of each that is largest.

    Each is compared with its like. The spread of values with a heavy tail comes from a few of them, and so does that of
    nine tenths where somewhat more than a tenth of the images hold such values.
    """
    # Where some values are rare and far, most of the spread may come from a few that a split lacks.
    most = _FAR_SPREAD_RATIO if trained.largest > _FAR_VALUES * trained.spread else _SPREAD_RATIO
    pairs = [(found.spread, trained.spread)]
    if found.usual_spread is not None and trained.usual_spread is not None:
        pairs.append((found.usual_spread, trained.usual_spread))
    return not any(own / most <= value <= own * most for value, own in pairs)


def _are_far(found: Values, trained: Values) -> bool:
    """Whether all of a few pictures are brighter, or darker, than those of training by as much as these differ."""
    if found.means is None or trained.means is None:
        return False
    (least, most), (low, high) = found.means, trained.means
    return least > high + (high - low) > high or most < low - (high - low) < low


def _find_other_colour(found: Values, trained: Values) -> str | None:
    """A warning if images are all grey although training images are in colour, or the other way round; else None."""
    if found.coloured is None or trained.coloured is None:
        return None
    share = trained.coloured if trained.least_coloured is None else trained.least_coloured
    if found.coloured == 0 and (1 - share) ** min(found.num_images, MOST_IMAGES) < _RARELY:
        return f"all are grey, and {100 * trained.coloured:.0f} % of the training images are in colour"
    if trained.coloured == 0 and found.coloured >= _SOME_COLOURED:
        return f"{100 * found.coloured:.0f} % of them are in colour, and all training images are grey"
    return None


def _sum_images(images: Images, index: Tensor) -> Tensor:
    """Of each of the images `index`: the mean of its values, that of their squares, the largest magnitude, -least."""
    sums = torch.empty(len(index), 4, dtype=torch.float64)
    size = max(PART_VALUES // count_values(images), 1)
    for start in range(0, len(index), size):
        values = images[index[start : start + size]].flatten(1).double()
        depth = -values.amin(dim=1)
        largest = torch.maximum(values.amax(dim=1), depth)
        found = [values.mean(dim=1), values.square().mean(dim=1), largest, depth]
        sums[start : start + size] = torch.stack(found, dim=1)
    return sums


def _is_like(found: Values, mean: float, spread: float) -> bool:
    """Whether images are like those of a class with this mean and spread."""
    is_as_wide = spread / _CLASS_SPREAD_RATIO <= found.spread <= spread * _CLASS_SPREAD_RATIO
    return is_as_wide and abs(found.mean - mean) <= _CLASS_SPREADS * spread
