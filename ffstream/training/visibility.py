"""What a layer can see of the training images, once each image is scaled and brought to unit length.

Unit length loses brightness. It also hides whatever is small beside the part that all images have in common, beside a
feature or channel in larger units, or beside a number that stands for a missing value. A network trained on such data
ends at chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ffstream.data.features import find_mixed
from ffstream.data.image_access import Images, count_values, read_columns
from ffstream.data.missing_values import COPIED_VALUES, find_code, name_features, numbered_parts
from ffstream.data.sample import draw_sample
from ffstream.data.scaling import CHANNELS, FEATURES, NONE, Scaling, find_parts
from ffstream.field.normalisation import length_normalise
from ffstream.ground.ranks import rank

_MOST_IMAGES = 1024  # images that are looked at one by one, drawn from all
# The limits were found by training two layers on tables and digits, and on the same data standardised. Within the
# limits, the error was at most a few points higher than on standardised data; beyond them, it rose to chance
# (docs/ablations/scaling.md).
_LEAST_VARIATION = 0.3  # least variation from image to image, at unit RMS
# In each step of training, what all images have in common moves all units by the sum of its magnitudes, so that it is
# the worse, the more features it lies in. This is the largest such sum, in square roots of the number of features and
# relative to the variance. Two layers of 64 were trained on MNIST, CIFAR-10 and digits of several sizes, with offsets
# and borders. Of those within the limit above, all beyond 100 ended near chance, as CIFAR-10 does from 16 pixels a side
# on. The largest sums of those that learnt were 96 (digits at six times their size, 6 % error), 79 (digits on a grey
# ground, 13 %) and 75 (MNIST from -1 to 1, 14 %).
_MOST_COMMON = 100.0
_NONE = 1e-6  # a smaller variation counts as none
_LARGE, _SMALL = 20.0, 1 / 100  # size of a feature, relative to the median of the features
_RARE = 0.01  # share of the images in which a feature must not be zero, to count as too large
_OUTLYING = 16.0  # an image's largest value, relative to that of the median image and to the RMS of its other values
_DOMINANT = 0.9  # share of its sum of squares that an image's largest value holds
_SHARE_OUTLYING, _SHARE_EMPTY = 0.005, 0.05  # least shares of the images
_EMPTY_RMS = 0.3  # RMS below which a normalised image counts as empty; it should be 1
_SPREADING = 100.0  # when standardising: the largest value of all images, relative to that of the median image
# Distance from the median that all but 2 % of the values keep within, in distances of the outer deciles, from which a
# feature has a heavy tail: it is 0.9 for a normal law, 2.3 for a lognormal one, and 5 for Cauchy's.
_TAIL, _MOST_OF_ALL, _DECILES = 2.5, 0.98, torch.tensor([0.1, 0.9], dtype=torch.float64)
_LEAST_TOLD = 0.05  # share of the variance of ranks between classes, from which a feature is worth to be seen
_ALONE = 0.5  # share of the sum of squares in a feature, from which its spread comes from one value alone
_MOST_COMPARED, _MOST_COMPARED_FEATURES = 512, 4096  # images, and features, that are compared for neighbours
_OVERLAID = 1 / 3  # share of the sum of squares that a label may hide
_STANDARDISE = "add --standardise features, or bring the data to such units yourself"
_LOST_CLASSES = 0.2  # rise, at unit length, in the share of images whose nearest has another class


@dataclass
class _Look:
    """What was measured of images that were looked at one by one; `index` holds their numbers."""

    index: Tensor
    num_features: int
    rows_sum: Tensor = field(init=False)  # of images at unit RMS, for each feature
    rows_squares: Tensor = field(init=False)
    # The sum of the logarithms of scaled magnitudes, zeros left out: one outlier counts little.
    logarithms: Tensor = field(init=False)
    num_not_zero: Tensor = field(init=False)
    largest: list[Tensor] = field(default_factory=list)  # magnitude of each image
    places: list[Tensor] = field(default_factory=list)  # the feature that has this magnitude
    rest: list[Tensor] = field(default_factory=list)  # sum of squares of the image's other values
    rms: list[Tensor] = field(default_factory=list)  # of each image after length normalisation

    def __post_init__(self) -> None:
        self.rows_sum, self.rows_squares, self.logarithms, self.num_not_zero = torch.zeros(
            4, self.num_features, dtype=torch.float64
        ).unbind()

    @classmethod
    def at(cls, images: Images, index: Tensor, scaling: Scaling) -> _Look:
        """Look at some images, a part of them at a time."""
        look = cls(index, count_values(images))
        for part in index.split(max(COPIED_VALUES // look.num_features, 1)):
            look._add(scaling.apply(images[part]))
        return look

    def _add(self, scaled: Tensor) -> None:
        squares = scaled.double().square()
        unit = _bring_to_unit_length(scaled)
        self.rows_sum += unit.sum(dim=0)
        self.rows_squares += unit.square().sum(dim=0)
        self.logarithms += scaled.double().abs().log_().masked_fill_(scaled == 0, 0.0).sum(dim=0)
        self.num_not_zero += (scaled != 0).sum(dim=0)
        largest, place = scaled.abs().max(dim=1)
        self.largest.append(largest)
        self.places.append(place)
        self.rest.append(squares.scatter(1, place.unsqueeze(1), 0.0).sum(dim=1))
        self.rms.append(length_normalise(scaled).double().square().mean(dim=1).sqrt())


def find_hidden(images: Images, labels: Tensor, scaling: Scaling, standardise: str) -> str | None:
    """What a layer can hardly see of training images (n, *shape), and what to do about it; None if nothing is hidden.

    The text names features, images or values. `labels` are (n,); `scaling` was made by the setting `standardise`.
    """
    if _are_equal(images):
        return f"all {len(images)} training images are equal, so that there is nothing to learn; look at the file"
    index = draw_sample(len(images), _MOST_IMAGES).sort().values
    found = find_code(images, index)
    if found is not None:
        return f"{found}; if it marks missing values, put the feature's mean there, or leave those images out"
    mixed = None if standardise == NONE else find_mixed(images)  # without standardising, unit length makes them alike
    if mixed is not None:
        return f"training images: {mixed}"
    look = _Look.at(images, index, scaling)
    plain = look if standardise == NONE else _Look.at(images, index, Scaling(scaling.scale))
    shape = tuple(images.shape[1:])
    found = _find_empty(plain, images, standardise)
    if found is not None and standardise == NONE:  # a feature in larger units may make them small
        units = _find_units(look, shape)
        if units is not None:
            return f"{units}; {_STANDARDISE}"
    spreading = (
        None if standardise == NONE or found is not None else _find_spreading(plain, images, scaling, standardise)
    )
    if spreading is not None:
        return _advise(spreading, images, labels, index)
    if found is None:
        found = _find_outlying(look, images)
        # Large values that are all in a few features, such as amounts of money that are mostly zero, are not errors.
        if found is not None and standardise == NONE and _is_mended(images, index, scaling):
            return f"{found}; add --standardise features, or take the logarithm of such features"
    if found is not None:
        return f"{found}; mend or leave out such images"
    found = None if standardise == FEATURES else _find_units(look, shape)
    if found is None and standardise == CHANNELS:  # the features of a channel share one mean and one spread
        found = _find_odd_features(plain, shape, find_parts(shape, CHANNELS))
    found = found or _find_offset(look)
    if found is not None:
        return f"{found}; {_STANDARDISE}"
    return _find_lost_length(images, labels, index, scaling, standardise)


def find_overlaid(images: Images, num_classes: int, scaling: Scaling) -> str | None:
    """A warning if a label laid over the first features of images (n, *shape) hides much of them, else None."""
    look = _Look.at(images, torch.arange(len(images))[:: -(-len(images) // _MOST_IMAGES)], scaling)
    share = float(look.rows_squares[:num_classes].sum() / look.rows_squares.sum().clamp(min=1e-300))
    if share < _OVERLAID:
        return None
    return (
        f"the label is laid over the first {num_classes} of {look.num_features} features, which hold {share:.0%} of "
        "the training images' sum of squares; use a recipe without overlay, such as inject, or put "
        f"{num_classes} features of zero in front"
    )


def _bring_to_unit_length(scaled: Tensor) -> Tensor:
    """Rows with an RMS of 1, in double precision, and without an epsilon that is added to the RMS."""
    rows = scaled.double()
    return rows / rows.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-300)


def _are_equal(images: Images) -> bool:
    first = images[0]
    return all(bool((part == first).all()) for _, part in numbered_parts(images))


def _find_empty(look: _Look, images: Images, standardise: str) -> str | None:
    # Beside a large value of one feature, images are almost zero only until each feature is standardised.
    is_empty = torch.cat(look.rms) < _EMPTY_RMS if standardise == NONE else torch.cat(look.largest) == 0
    if float(is_empty.double().mean()) < _SHARE_EMPTY:
        return None
    first = int(look.index[is_empty.nonzero()[0]])
    share = f"{is_empty.double().mean():.0%} of the training images (the first: image {first})"
    if not images[look.index[is_empty]].any():
        return f"{share} are zero throughout"
    largest, place = _find_largest(images)
    return f"{share} are almost zero beside the largest value of all, which is {largest:g}, in image {place}"


def _find_outlying(look: _Look, images: Images) -> str | None:
    largest, rest = torch.cat(look.largest).double(), torch.cat(look.rest)
    rest_rms = (rest / max(look.num_features - 1, 1)).sqrt()
    is_outlying = largest > _OUTLYING * torch.maximum(largest.median(), rest_rms)
    is_outlying &= largest.square() > _DOMINANT * (largest.square() + rest)
    if int(is_outlying.sum()) < 2 or float(is_outlying.double().mean()) < _SHARE_OUTLYING:
        return None
    first = int(is_outlying.nonzero()[0])
    place, number = int(torch.cat(look.places)[first]), int(look.index[first])
    return (
        f"in {is_outlying.double().mean():.1%} of the training images one value is so large that it hides all "
        "others: in "
        f"image {number} it is {float(images[number].flatten()[place]):g}, in feature {place}, more than {_OUTLYING:g} "
        "times the largest value of most images"
    )


def _is_mended(images: Images, index: Tensor, scaling: Scaling) -> bool:
    """Whether no value of an image hides its others once features are standardised."""
    standardised = Scaling.of(images, scaling.scale, FEATURES)
    return _find_outlying(_Look.at(images, index, standardised), images) is None


@dataclass(frozen=True)
class _Spreading:
    """The largest value of all, from which the spread of its feature comes."""

    feature: int
    words: str


def _find_spreading(plain: _Look, images: Images, scaling: Scaling, standardise: str) -> _Spreading | None:
    """A value so large that it alone decides the spread of its feature, beside which all other differences vanish."""
    largest, place = _find_largest(images)
    scale = float(images[int(plain.index[0])].abs().max()) / max(float(torch.cat(plain.largest)[0]), 1e-300)
    usual = float(torch.cat(plain.largest).median()) * scale
    if largest <= _SPREADING * usual:
        return None
    # Its share of the sum of squares of all values that are standardised by one spread.
    square, feature = scaling.apply(images[place : place + 1])[0].square().max(dim=0)
    parts = find_parts(tuple(images.shape[1:]), standardise)
    if float(square) < _ALONE * len(images) * int((parts == parts[feature]).sum()):
        return None
    return _Spreading(
        int(feature),
        f"image {place} of the training images holds {largest:g}, {largest / max(usual, 1e-300):,.0f} times as much as "
        "most images' largest value, so that nothing else in that feature is left once it is standardised",
    )


def _advise(found: _Spreading, images: Images, labels: Tensor, index: Tensor) -> str | None:
    """What to do about a value from which a feature's spread comes; None if nothing is lost by it.

    It is an error if all other values are near each other. If they have a heavy tail too, as amounts and incomes have,
    no image is to blame, and what is lost is what the feature tells of the classes.
    """
    feature = torch.tensor([found.feature])
    column = read_columns(images, feature, COPIED_VALUES)[:, 0].double()
    some = column[draw_sample(len(column))]
    width = torch.quantile(some, _DECILES).diff()
    farthest = torch.quantile((some - some.median()).abs(), _MOST_OF_ALL)
    if not farthest:
        return None  # all others are equal, so that no difference is hidden
    if farthest <= _TAIL * width:
        return f"{found.words}; mend or leave out such images"
    if not _tells_classes(column[index], labels[index]):
        return None
    return f"{found.words}; take the logarithm of feature {found.feature}, or mend or leave out such images"


def _tells_classes(column: Tensor, labels: Tensor) -> bool:
    """Whether the ranks of values (n,) differ between classes, by more than chance and by a share that matters."""
    ranks = rank(column)
    known, own = labels.unique(return_inverse=True)
    num = torch.bincount(own).double()
    means = torch.zeros(len(known), dtype=torch.float64).index_add_(0, own, ranks) / num
    between = float((num * (means - ranks.mean()).square()).sum())
    total = float((ranks - ranks.mean()).square().sum())
    # Without a difference, between / total is about chi-squared of (classes - 1) over n; this is far beyond its tail.
    degrees = len(known) - 1
    by_chance = (degrees + 6 * (2 * degrees) ** 0.5 + 10) / len(column)
    return bool(between > max(_LEAST_TOLD, by_chance) * total)


def _find_largest(images: Images) -> tuple[float, int]:
    """The largest magnitude, and the number of an image that has it."""
    found = ((part.float().abs().flatten(1).amax(dim=1).max(dim=0), start) for start, part in numbered_parts(images))
    return max((float(end.values), start + int(end.indices)) for end, start in found)


def _find_units(look: _Look, shape: tuple[int, ...]) -> str | None:
    """Features that are far larger than most, or, in a table, far smaller; or channels that differ as much.

    Small features of a picture are no sign, as part of it may be dark in all images. Zeros are left out, as a feature
    may be zero in most images.
    """
    found = _find_odd_features(look, shape, torch.zeros(look.num_features, dtype=torch.int64))
    if found is not None:
        return found
    channels = find_parts(shape, CHANNELS)
    num_channels = int(channels.max()) + 1
    if 1 < num_channels < look.num_features:
        zeros = torch.zeros(num_channels, dtype=torch.float64)
        by_channel = [zeros.index_add(0, channels, each) for each in (look.logarithms, look.num_not_zero)]
        sizes = (by_channel[0] / by_channel[1].clamp(min=1)).exp()
        least, most = int(sizes.argmin()), int(sizes.argmax())
        if bool((by_channel[1] > 0).all()) and sizes[most] > _LARGE * sizes[least]:
            return (
                f"the values of channel {most} of the training images are {float(sizes[most] / sizes[least]):,.0f} "
                f"times larger than those of channel {least}, so that a layer can hardly see the latter"
            )
    return None


def _find_odd_features(look: _Look, shape: tuple[int, ...], parts: Tensor) -> str | None:
    """Features that are far larger, or in a table far smaller, than most of their part; `parts` are (features,)."""
    if look.num_features < 2:
        return None
    sizes = (look.logarithms / look.num_not_zero.clamp(min=1)).exp()
    is_dense = look.num_not_zero > len(look.index) / 2
    is_there = look.num_not_zero > _RARE * len(look.index)
    medians = _median_by_part(sizes, is_dense, is_there, parts)
    is_table = sum(size > 1 for size in shape) == 1
    for is_odd, word in ((sizes > _LARGE * medians, "larger"), (sizes < _SMALL * medians, "smaller")):
        odd = (is_odd & (is_there if word == "larger" else is_dense)).nonzero().flatten()
        if len(odd) and (is_table or word == "larger"):
            ratio = float((sizes[odd] / medians[odd]).log().abs().max().exp())
            hidden = "the others" if word == "larger" else "them"
            return (
                f"the values of {name_features(odd)} of the training images are up to {ratio:,.0f} times {word} "
                f"than those of most features, so that a layer can hardly see {hidden}"
            )
    return None


def _median_by_part(sizes: Tensor, is_dense: Tensor, is_there: Tensor, parts: Tensor) -> Tensor:
    """For each feature the median size in its part, (features,); NaN where the part has fewer than two to compare.

    It is that of the features which are not zero in most images, or in some if no two are so. All parts are of one
    size.
    """
    order = parts.argsort(stable=True)
    by_part, dense, there = (each[order].view(int(parts.max()) + 1, -1) for each in (sizes, is_dense, is_there))
    counts = torch.where(dense.sum(dim=1, keepdim=True) > 1, dense, there)
    medians = torch.where(counts, by_part, torch.nan).nanquantile(0.5, dim=1)
    return torch.where(counts.sum(dim=1) > 1, medians, torch.nan)[parts]


def _find_offset(look: _Look) -> str | None:
    """What all images have in common, beside which their differences are small."""
    mean = look.rows_sum / len(look.index)
    mean_square = max(float(look.rows_squares.sum()) / len(look.index), 1e-300)
    variance = max(1 - float(mean.square().sum()) / mean_square, 0.0)
    if variance <= _NONE**2:  # without any variation, images may still differ in brightness
        return None
    common = float(mean.abs().sum()) / look.num_features**0.5 / variance
    if variance >= _LEAST_VARIATION**2 and common <= _MOST_COMMON:
        return None
    ratio = variance**-0.5
    return (
        f"once each training image is brought to unit length, what all have in common is {ratio:,.{int(ratio < 10)}f} "
        f"times as large as their differences, over {look.num_features:,} features, so that a layer can hardly tell "
        "them apart"
    )


def _find_lost_length(images: Images, labels: Tensor, index: Tensor, scaling: Scaling, standardise: str) -> str | None:
    """Classes that differ in the length of their images, such as brightness, as nearest neighbours show."""
    index = index[draw_sample(len(index), _MOST_COMPARED, seed=1)]
    index = index[: max(COPIED_VALUES // count_values(images), 2)]
    scaled, own = scaling.apply(images[index]), labels[index]
    step = -(-scaled.shape[1] // _MOST_COMPARED_FEATURES)
    before, after = (_nearest_errors(rows[:, ::step], own) for rows in (scaled.double(), _bring_to_unit_length(scaled)))
    if after - before < _LOST_CLASSES:
        return None
    return (
        f"the most similar training image is of another class in {before:.0%} of them, and in {after:.0%} once each is "
        "brought to unit length, which loses brightness and overall size; add "
        f"{'' if standardise == FEATURES else '--standardise features, or '}a feature that holds the overall size"
    )


def _nearest_errors(rows: Tensor, labels: Tensor) -> float:
    """The share of rows whose nearest other row has another label."""
    distances = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
    return float((labels[distances.argmin(dim=1)] != labels).double().mean())
