"""Finds images that occur again, in two splits, under two classes or as copies, and those of a single value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values
from ffstream.data.sample import PART_VALUES, draw_sample
from ffstream.ground.binomial import sum_upper_tail

_PART_WORDS = 1 << 16  # words of images that are digested at once; few, as memory that is new costs page faults
_WORD_BYTES = 8
_SEED = 20221227  # for the factors of digests; any seed will do
# Shifts and factors of SplitMix64; the factors are given as int64.
_MIXING = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
_LAST_SHIFT = 31
_SOME = 0.1  # share of a split's images; a smaller share may be an accident
_MORE = 3.0  # times the share of repeats within the training split, which is high in tables of few values
_SEVERAL = 0.05  # share of training images; a smaller share of contradictions or copies may be an oversight
_FEW = 3  # copies; fewer may be an oversight
_PAIRS = 512  # images from which the chance is estimated that two images are equal
# Bits of a feature all of whose values differ, and the share of the bits of all features that is counted: features
# depend on each other.
_UNIQUE_BITS, _INDEPENDENT = 40.0, 0.25
_WHOLE = 0.1  # steps by which a value of 32 bits may miss a multiple of them
# Images, as in a few to be predicted, of which any may be the same; the share of one image, which may be real; and the
# probability below which a count of equal images is no accident beside that in training.
_ENOUGH, _ONE_IMAGE, _BY_CHANCE = 10, 0.01, 1e-6
_COMMON = 0.1  # share of a class from which its most frequent image is what this class looks like, as if it were empty


@dataclass(frozen=True)
class Repetition:
    """How often images occur again within one split, or within one class of it."""

    num_images: int
    num_copies: int  # images that equal an earlier one
    most_equal: int  # how often the most frequent image occurs
    num_looked_at: int  # images that were drawn to see whether they are flat
    num_flat: int  # those of them that hold a single value
    of_classes: Mapping[int, Repetition] = field(default_factory=dict)  # by label: of classes in which images repeat

    @classmethod
    def of(cls, images: Images, digests: Tensor, labels: Tensor | None = None) -> Repetition:
        """Count equal digests (n,) of images (n, *shape), and images that are flat; in each class, given labels (n,).

        A class may be of equal images, such as empty ones, and be rarer in this split than in another one.
        """
        index, is_flat = find_flat(images)
        classes = {}
        if labels is not None and (bool(is_flat.any()) or len(digests.unique()) < len(digests)):
            for label, members in _by_label(labels).items():
                is_member = labels[index] == label
                found = cls._count(digests[members], is_flat[is_member])
                if found.num_copies or found.num_flat:
                    classes[label] = found
        return replace(cls._count(digests, is_flat), of_classes=classes)

    @classmethod
    def _count(cls, digests: Tensor, is_flat: Tensor) -> Repetition:
        counts = torch.unique(digests, return_counts=True)[1]
        return cls(len(digests), len(digests) - len(counts), int(counts.max()), len(is_flat), int(is_flat.sum()))

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any]) -> Repetition:
        """The inverse of `to_mapping`."""
        classes = {int(label): cls.from_mapping(each) for label, each in found.get("of_classes", {}).items()}
        return cls(**{name: int(found[name]) for name in _COUNTS}, of_classes=classes)

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest; without classes, where no images repeat in any."""
        classes = {str(label): found.to_mapping() for label, found in self.of_classes.items()}
        counts: dict[str, Any] = {name: getattr(self, name) for name in _COUNTS}
        return counts | ({"of_classes": classes} if classes else {})

    def expect(self, count: Callable[[Repetition], float], labels: Tensor | None) -> float:
        """The largest share of another split that `count`, a share of one class, lets expect.

        Its images are of the classes that `labels` (n,) say, or, without, of any.
        """
        shares = {label: count(found) for label, found in self.of_classes.items()}
        if labels is None:
            return max(shares.values(), default=0.0)
        return sum(share * float((labels == label).double().mean()) for label, share in shares.items())


_COUNTS = ("num_images", "num_copies", "most_equal", "num_looked_at", "num_flat")


def _by_label(labels: Tensor) -> dict[int, Tensor]:
    """The numbers of the images of each label, of which there are some."""
    order = torch.argsort(labels, stable=True)
    found, counts = torch.unique_consecutive(labels[order], return_counts=True)
    groups = zip(found.tolist(), order.split(counts.tolist()), strict=True)
    return {label: group for label, group in groups if len(group) >= _FEW}


def find_common(train: Tensor, labels: Tensor) -> Mapping[int, Tensor]:
    """By label: the digests of images that make up a tenth or more of a training class, of digests and labels (n,)."""
    common = {}
    for label, members in _by_label(labels).items():
        different, counts = torch.unique(train[members], return_counts=True)
        is_common = counts >= max(_FEW, _COMMON * len(members))
        if bool(is_common.any()):
            common[label] = different[is_common]
    return common


def digest_images(images: Images, *, as_floats: bool = False) -> Tensor:
    """A digest of each image, (n,) int64: the same for equal images, and almost never for different ones.

    Digests of images of two number types are comparable only where both are taken `as_floats`, of 32 bits.
    """
    is_wide = as_floats or images.dtype.is_floating_point
    row_bytes = count_values(images) * (_WORD_BYTES if is_wide else images.dtype.itemsize)
    num_words = -(-row_bytes // _WORD_BYTES)
    factors = torch.randint(-(1 << 62), 1 << 62, (num_words,), generator=torch.Generator().manual_seed(_SEED)) | 1
    digests = torch.empty(len(images), dtype=torch.int64)
    step = max(_PART_WORDS // num_words, 1)
    for start in range(0, len(images), step):
        rows = images[start : start + step].flatten(1)
        if is_wide:  # equal numbers of bytes and of floats have one digest, and so have 0 and -0
            rows = rows.float() if as_floats else rows
            words = rows.to(torch.float64, copy=True).add_(0.0).contiguous()
        else:
            words = torch.zeros(len(rows), num_words * _WORD_BYTES, dtype=torch.uint8)
            words[:, :row_bytes] = rows.contiguous().view(torch.uint8)
        digests[start : start + step] = (_mix(words.view(torch.int64)) * factors).sum(dim=1)  # modulo 2^64
    return digests


def _mix(bits: Tensor) -> Tensor:
    """Integers (any shape) int64 in which every bit depends on every bit of the given ones, which are overwritten.

    The bits of most floats end in many zeros, which a product with an odd factor would leave as they are; the digest
    would then be as short as the rest. (The finaliser of SplitMix64: Steele, Lea and Flood, OOPSLA 2014.)
    """
    for shift, factor in _MIXING:
        bits ^= (bits >> shift) & ((1 << (64 - shift)) - 1)  # without the sign, which the shift repeats
        bits *= factor
    bits ^= (bits >> _LAST_SHIFT) & ((1 << (64 - _LAST_SHIFT)) - 1)
    return bits


def repeats_by_chance(images: Images, digests: Tensor) -> bool:
    """Whether images (n, *shape) that have the digests (n,) have so few values that equal ones are no surprise.

    The chance that two images are equal follows from the chances that their features are, as if these were independent,
    of which a quarter of the bits is counted. They are those over different images, lest copies make values seem
    frequent; but over all images, if rounded features alone tell which are equal: of a table with an age, and maybe
    others that follow from it, different rows have different ages. False without asking if no images are equal.
    """
    different, place = torch.unique(digests, return_inverse=True)
    if len(different) == len(digests):
        return False
    index = draw_sample(len(digests), _PAIRS)
    if not _are_told_by_rounded(images[index], digests[index]):
        first = torch.full((len(different),), len(digests)).scatter_reduce_(
            0, place, torch.arange(len(digests)), "amin"
        )
        index = first[draw_sample(len(first), _PAIRS)]
    num = len(index)
    if num < 2:
        return True
    bits, most, rows = 0.0, 0.0, images[index].flatten(1)
    for features in torch.arange(count_values(images)).split(_PART_WORDS // _PAIRS):
        values = rows[:, features].sort(dim=0).values
        group = torch.zeros(values.shape, dtype=torch.int64)  # of equal values, for each feature
        group[1:] = (values[1:] != values[:-1]).cumsum(dim=0)
        group += torch.arange(len(features)) * num
        counts = torch.bincount(group.flatten(), minlength=num * len(features)).view(len(features), num).double()
        shares = (counts * (counts - 1)).sum(dim=1) / (num * (num - 1))
        of_features = torch.where(shares > 0, -torch.log2(shares), _UNIQUE_BITS)
        bits += float(of_features.sum())
        most = max(most, float(of_features.max()))
    return max(most, _INDEPENDENT * bits) < 2 * math.log2(len(digests))


def _are_told_by_rounded(images: Tensor, digests: Tensor) -> bool:
    """Whether images (n, *shape), of digests (n,), that are equal in all rounded features are equal altogether."""
    rows = images.flatten(1)
    parts = rows.split(_PART_WORDS // _PAIRS, dim=1)
    is_rounded = torch.cat([_find_rounded(part) for part in parts])
    if bool(is_rounded.all()) or not bool(is_rounded.any()):  # without a copy of the images
        return bool(is_rounded.all())
    return len(digest_images(rows[:, is_rounded]).unique()) == len(digests.unique())


def _find_rounded(rows: Tensor) -> Tensor:
    """Whether the values of each feature of rows (n, features) are whole multiples of a step apart, (features,)."""
    gaps = rows.double().sort(dim=0).values.diff(dim=0)
    smallest = gaps.where(gaps > 0, torch.inf).amin(dim=0)
    step = gaps.sum(dim=0) / (gaps / smallest).round().sum(dim=0)  # exact although values of 32 bits are not
    steps = gaps / step
    return (steps - steps.round()).abs().amax(dim=0) < _WHOLE  # not for a single value, whose step is no number


def find_seen(
    digests: Tensor, labels: Tensor, other: Tensor, common: Mapping[int, Tensor], noun: str, *, by_chance: bool
) -> str | None:
    """A warning if many images of a split, of digests and labels (n,), are those of another one; None otherwise.

    Images that are `common` in their class, as empty ones may be, do not count. If images may be equal `by_chance`, it
    takes three times the share of those that repeat within the other split.
    """
    is_seen = torch.isin(digests, other)
    for label, equal in common.items():
        is_seen &= (labels != label) | ~torch.isin(digests, equal)
    share = float(is_seen.double().mean())
    if share < _SOME or (by_chance and share < _MORE * _share_repeated(other)):
        return None
    first = int(is_seen.nonzero()[0])
    return (
        f"{int(is_seen.sum())} of {len(digests)} are {noun} too, such as image {first}, so that their error "
        "is not that of new images"
    )


def find_contradictions(train: Tensor, labels: Tensor, files: Sequence[Path] | None) -> str | None:
    """A warning if equal images, given by their digests (n,), have different labels (n,); None otherwise.

    For pictures, whose paths are `files`, a single contradiction is enough; for rows of an array, it takes one image in
    twenty.
    """
    order = torch.argsort(train, stable=True)
    digests, sorted_labels = train[order], labels[order]
    differs = (digests[1:] == digests[:-1]) & (sorted_labels[1:] != sorted_labels[:-1])
    if not bool(differs.any()):
        return None
    is_one = torch.isin(train, digests[1:][differs])
    num_images = int(is_one.sum())
    if files is None and num_images < _SEVERAL * len(train):
        return None
    first = int(is_one.nonzero()[0])
    second = int(((train == train[first]) & (labels != labels[first])).nonzero()[0])
    names = f"images {first} and {second}" if files is None else f"{files[first]} and {files[second]}"
    return f"{num_images} of {len(train)} training images occur under several classes, such as {names}"


def find_copies(train: Tensor, files: Sequence[Path] | None) -> str | None:
    """A warning if many images, given by their digests (n,) and maybe `files`, are copies of others; None otherwise."""
    order = torch.argsort(train, stable=True)
    repeats = train[order][1:] == train[order][:-1]
    num_copies = int(repeats.sum())
    if num_copies < max(_SEVERAL * len(train), _FEW):
        return None
    first = int(torch.isin(train, train[order][1:][repeats]).nonzero()[0])
    second = int((train == train[first]).nonzero()[1])
    names = f"image {second} of image {first}" if files is None else f"{files[second]} of {files[first]}"
    return (
        f"{num_copies} of {len(train)} training images are copies of others, such as {names}, so that a validation "
        "split holds images that are trained on"
    )


def find_repeats(images: Images, digests: Tensor, trained: Repetition, labels: Tensor | None = None) -> str | None:
    """A warning if more images (n, *shape) than in training are one image or copies of others; None otherwise.

    Pictures that could not be read often come as one that is black. `digests` are those of the images. Images of a
    class, as `labels` (n,) say, may repeat as often as in this class in training; without labels, all may be of the
    class in which images repeat most.
    """
    found = Repetition.of(images, digests)
    if found.num_images < _ENOUGH:
        return None
    is_one = found.most_equal >= _ONE_IMAGE * found.num_images
    expected = trained.expect(lambda each: each.most_equal / each.num_images, labels)
    if is_one and _are_more(found.most_equal, found.num_images, trained.most_equal, trained.num_images, expected):
        different, counts = torch.unique(digests, return_counts=True)
        first = int((digests == different[counts.argmax()]).nonzero()[0])
        low, high = (float(end) for end in torch.aminmax(images[first]))
        alone = f", which holds the value {low:g} alone" if low == high else ""
        return (
            f"{found.most_equal} of {found.num_images} are one and the same image, number {first}{alone}, and no "
            f"training image occurs more than {trained.most_equal:,} times in {trained.num_images:,}; see whether they "
            "were read as they should be"
        )
    is_part = found.num_flat >= _ONE_IMAGE * found.num_looked_at
    expected = trained.expect(lambda each: each.num_flat / max(each.num_looked_at, 1), labels)
    if is_part and _are_more(found.num_flat, found.num_looked_at, trained.num_flat, trained.num_looked_at, expected):
        index, is_flat = find_flat(images)
        first = int(index[is_flat].min())
        return (
            f"{found.num_flat} of {found.num_looked_at} hold a single value each, such as image {first} "
            f"({float(images[first].flatten()[0]):g} throughout), and {trained.num_flat:,} of "
            f"{trained.num_looked_at:,} training images do; see whether they were read as they should be"
        )
    # Pairs of images may be equal by chance, so that copies grow with the square of the number of images.
    grown = max(found.num_images / trained.num_images, 1.0)
    expected = trained.expect(lambda each: min(each.num_copies / each.num_images * grown, 1.0), labels)
    if found.num_copies >= _SEVERAL * found.num_images and _are_more(
        found.num_copies, found.num_images, trained.num_copies * grown, trained.num_images, expected
    ):
        return (
            f"{found.num_copies} of {found.num_images} are copies of others, and {trained.num_copies:,} of "
            f"{trained.num_images:,} training images are; see whether they were read as they should be"
        )
    return None


def find_flat(images: Images) -> tuple[Tensor, Tensor]:
    """Numbers (m,) of images drawn from (n, *shape), and whether each holds a single value (m,)."""
    index = draw_sample(len(images))
    num_in_part = max(PART_VALUES // count_values(images), 1)
    ends = (torch.aminmax(images[part].flatten(1), dim=1) for part in index.split(num_in_part))
    return index, torch.cat([low == high for low, high in ends])


def _are_more(count: int, num: int, trained: float, num_trained: int, expected: float) -> bool:
    """Whether `count` of `num` images is three times as much as `trained` of `num_trained`, and no accident.

    One more of the training images is counted, as the share in a few of them is not known exactly. Nor is it more
    than the share that is `expected` of the classes.
    """
    share = min(max((trained + max(num / num_trained, 1.0)) / (num_trained + 1), expected), 1.0)
    return count >= max(_FEW, _MORE * share * num) and sum_upper_tail(count, num, share) < _BY_CHANCE


def _share_repeated(digests: Tensor) -> float:
    """The share of images that occur more than once."""
    _, index, counts = torch.unique(digests, return_inverse=True, return_counts=True)
    return float((counts[index] > 1).double().mean())
