"""What of the training images a layer can see, once each is scaled, brought to unit length and rounded to bfloat16.

Brightness is lost in that, and so is what is small beside what all images have in common, beside a feature in larger
units, or beside a number that stands for a missing one. A network trained on such data ends at chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ffstream.data.scaling import FEATURES, NONE, Scaling
from ffstream.normalisation import length_normalise

_MOST_IMAGES = 1024  # that are looked at one by one, evenly spread over all
_PART_VALUES = 1 << 20  # of images that are copied at once
# Found by training two layers on tables and digits, beside the same data standardised: within these limits the error
# was at most a few points more, beyond them it rose to chance (docs/ablations/scaling.md).
_LEAST_VARIATION = 0.3  # of images of unit RMS, from image to image
_NONE = 1e-6
_LARGE, _SMALL = 20.0, 1 / 100  # features, by the median of all
_OUTLYING = 16.0  # an image's largest value, by the median of all images' largest, and by the RMS of its others
_DOMINANT = 0.9  # of an image's sum of squares
_SHARE_OUTLYING, _SHARE_EMPTY, _SHARE_DARK = 0.005, 0.05, 0.2  # of the images
_EMPTY_RMS = 0.3  # of an image that should have 1
# Numbers that stand for missing ones: nines, powers of ten, and the ends of integers.
_CODES = {float("9" * length) for length in range(2, 10)} | {1e10, 1e15, 1e20, 1e30}
_CODES |= {32767.0, 32768.0, 65535.0, 2147483647.0, 2147483648.0}


@dataclass
class _Look:
    """What was seen of images that were looked at one by one; index and label are of each."""

    index: Tensor
    labels: Tensor
    num_features: int
    rows_sum: Tensor = field(init=False)  # of unit rows, by feature
    rows_squares: Tensor = field(init=False)
    logarithms: Tensor = field(
        init=False
    )  # of the magnitudes of scaled images, but for zeros: one outlier counts little
    num_not_zero: Tensor = field(init=False)
    largest: list[Tensor] = field(default_factory=list)  # magnitude of each image, and the feature that has it
    places: list[Tensor] = field(default_factory=list)
    rest: list[Tensor] = field(default_factory=list)  # sum of squares of the image's other values
    rms: list[Tensor] = field(default_factory=list)  # of the unit rows
    keys: list[tuple[bytes, bytes]] = field(default_factory=list)  # of the row, and of the image

    def __post_init__(self) -> None:
        self.rows_sum, self.rows_squares, self.logarithms, self.num_not_zero = torch.zeros(
            4, self.num_features, dtype=torch.float64
        ).unbind()

    def add(self, images: Tensor, scaling: Scaling) -> None:
        """Some more of them, (n, *shape)."""
        scaled = scaling.apply(images)
        rows = length_normalise(scaled)
        squares = scaled.double().square()
        unit = scaled.double() / squares.mean(dim=1, keepdim=True).sqrt().clamp(min=1e-300)  # nothing added to its RMS
        self.rows_sum += unit.sum(dim=0)
        self.rows_squares += unit.square().sum(dim=0)
        self.logarithms += scaled.double().abs().log_().masked_fill_(scaled == 0, 0.0).sum(dim=0)
        self.num_not_zero += (scaled != 0).sum(dim=0)
        largest, place = scaled.abs().max(dim=1)
        self.largest.append(largest)
        self.places.append(place)
        self.rest.append(squares.scatter(1, place.unsqueeze(1), 0.0).sum(dim=1))
        self.rms.append(rows.double().square().mean(dim=1).sqrt())
        images, bits = images.flatten(1).contiguous(), rows.bfloat16().view(torch.int16)
        self.keys += [(row.numpy().tobytes(), image.numpy().tobytes()) for row, image in zip(bits, images, strict=True)]


def find_hidden(images: Tensor, labels: Tensor, scaling: Scaling, standardise: str) -> str | None:
    """What a layer can hardly see of training images (n, *shape), and what to do about it; None if nothing is hidden.

    It names features, images or values. `standardise` is the setting by which `scaling` was made.
    """
    remedy = "add --standardise features, or bring the data to such units yourself" if standardise == NONE else ""
    if _are_equal(images):
        return f"all {len(images)} training images are equal, so that there is nothing to learn; look at the file"
    found = _find_code(images)
    if found is not None:
        return f"{found}; if it stands for what is missing, put the feature's mean there, or leave those images out"
    index = torch.arange(0, len(images), -(-len(images) // _MOST_IMAGES))
    look = _Look(index, labels[index], images[0].numel())
    for part in index.split(max(_PART_VALUES // look.num_features, 1)):
        look.add(images[part], scaling)
    found = _find_empty(look, images) or _find_outlying(look, images)
    if found is not None:
        return f"{found}; mend or leave out such images"
    found = None if standardise == FEATURES else _find_units(look, is_table=images.dim() == 2)
    found = found or _find_offset(look) or _find_brightness(look)
    return found and "; ".join(filter(None, [found, remedy]))


def _are_equal(images: Tensor) -> bool:
    return all(bool((part == images[0]).all()) for part in _parts(images))


def _find_code(images: Tensor) -> str | None:
    """A number such as -9999 that stands several times where everything else in that feature is far from it."""
    if not images.is_floating_point():  # of bytes, none is far from the others
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
        for start, part in _numbered_parts(rows):
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
                    f"the value {value:g} stands {count:,} times in the training images, in {_name(features)}, far "
                    f"from every other there (the first: image {first})"
                )
    return "; ".join(said[:2]) or None


def _find_empty(look: _Look, images: Tensor) -> str | None:
    is_empty = torch.cat(look.rms) < _EMPTY_RMS
    if float(is_empty.double().mean()) < _SHARE_EMPTY:
        return None
    first = int(look.index[is_empty.nonzero()[0]])
    share = f"{is_empty.double().mean():.0%} of the training images (the first: image {first})"
    if not images[look.index[is_empty]].any():
        return f"{share} are zero throughout"
    largest, place = max(
        (float(part.abs().max()), start + int(part.abs().flatten(1).amax(1).argmax()))
        for start, part in _numbered_parts(images)
    )
    return (
        f"{share} are so small beside the largest value that hardly anything of them is left: image {place} holds "
        f"{largest:g}"
    )


def _find_outlying(look: _Look, images: Tensor) -> str | None:
    largest, rest = torch.cat(look.largest).double(), torch.cat(look.rest)
    rest_rms = (rest / max(look.num_features - 1, 1)).sqrt()
    is_outlying = largest > _OUTLYING * torch.maximum(largest.median(), rest_rms)
    is_outlying &= largest.square() > _DOMINANT * (largest.square() + rest)
    if int(is_outlying.sum()) < 2 or float(is_outlying.double().mean()) < _SHARE_OUTLYING:
        return None
    first = int(is_outlying.nonzero()[0])
    place, number = int(torch.cat(look.places)[first]), int(look.index[first])
    return (
        f"in {is_outlying.double().mean():.1%} of the training images one value hides all others: in image {number} it "
        f"is {float(images[number].flatten()[place]):g}, in feature {place}, and the largest value of most images is "
        f"{_OUTLYING:g} times smaller, or less"
    )


def _find_units(look: _Look, *, is_table: bool) -> str | None:
    """Features that most images have, and are far larger than most such features, or, in a table, far smaller.

    A part of a picture may be dark in all.
    """
    sizes = (look.logarithms / look.num_not_zero.clamp(min=1)).exp()
    is_dense = look.num_not_zero > len(look.index) / 2
    if int(is_dense.sum()) < 2:
        return None
    median = sizes[is_dense].quantile(0.5)
    for is_odd, word in ((sizes > _LARGE * median, "larger"), (sizes < _SMALL * median, "smaller")):
        odd = (is_odd & is_dense).nonzero().flatten()
        if len(odd) and (is_table or word == "larger"):
            ratio = float((sizes[odd] / median).log().abs().max().exp())
            hidden = "the others" if word == "larger" else "them"
            return (
                f"the values of {_name(odd)} of the training images are up to {ratio:,.0f} times {word} than those of "
                f"most features, so that a layer can hardly see {hidden}"
            )
    return None


def _find_offset(look: _Look) -> str | None:
    num_images = len(look.index)
    mean_square = float(look.rows_squares.sum())
    variation = max(1 - float(look.rows_sum.square().sum()) / num_images / max(mean_square, 1e-300), 0.0) ** 0.5
    if not _NONE < variation < _LEAST_VARIATION:  # where there is none, they may differ in brightness
        return None
    return (
        f"what the training images have in common is {1 / variation:,.0f} times as large as that by which "
        "they differ, when each is brought to unit length, so that a layer can hardly tell them apart"
    )


def _find_brightness(look: _Look) -> str | None:
    """Images of several classes that differ, and are the same when each is brought to unit length."""
    seen: dict[bytes, set[tuple[int, bytes]]] = {}
    labels = look.labels.tolist()
    for label, (row, image) in zip(labels, look.keys, strict=True):
        seen.setdefault(row, set()).add((label, image))
    num_lost = 0
    for row, image in look.keys:
        several = seen[row]
        num_lost += len({label for label, _ in several}) > 1 and any(other != image for _, other in several)
    if num_lost < _SHARE_DARK * len(look.keys):
        return None
    return (
        f"{num_lost / len(look.keys):.0%} of the training images differ from one of another class in brightness alone, "
        "which is lost when each is brought to unit length"
    )


def _name(features: Tensor) -> str:
    """In words, counted from 0."""
    numbers = features.tolist()
    if len(numbers) == 1:
        return f"feature {numbers[0]}"
    shown = ", ".join(str(number) for number in numbers[:5])
    return f"{len(numbers)} features ({shown}{', ...' if len(numbers) > 5 else ''})"


def _parts(images: Tensor) -> Iterator[Tensor]:
    return iter(images.split(max(_PART_VALUES // images[0].numel(), 1)))


def _numbered_parts(images: Tensor) -> Iterator[tuple[int, Tensor]]:
    start = 0
    for part in _parts(images):
        yield start, part
        start += len(part)
