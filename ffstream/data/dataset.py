"""The data set as all sources give it, and the checks that it has to pass."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.data.class_means import ClassMeans, draw_alike
from ffstream.data.classes import check_columns, find_label_feature, find_lacking, to_class_names, to_classes
from ffstream.data.features import find_shifted
from ffstream.data.fit import find_not_finite
from ffstream.data.image_access import ChosenImages, Images, ReadImages, count_values
from ffstream.data.new_values import find_new
from ffstream.data.repetition import (
    Repetition,
    digest_images,
    find_common,
    find_contradictions,
    find_copies,
    find_repeats,
    find_seen,
    repeats_by_chance,
)
from ffstream.data.scan import Scan
from ffstream.data.tensors import to_host
from ffstream.data.values import Values, find_other_units
from ffstream.errors import DataError
from ffstream.ground import seeding

GIVEN = "from-python"  # the name of data that a program gives
_ENOUGH = 10  # images; in a smaller split, a few that are training images may be an accident


@dataclass(frozen=True)
class Split:
    """Images (n, *shape) in any number type and labels (n,) int64.

    `negatives` (n, R, *shape), of the images' type, are what each image is contrasted with, where the data bring them.
    """

    images: Images
    labels: Tensor
    negatives: Images | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tensors(self) -> list[Images]:
        """The images, the labels, and the negatives where there are any."""
        return [self.images, self.labels] + ([self.negatives] if self.negatives is not None else [])

    @cached_property
    def scan(self) -> Scan:
        """What is known of all values once they were read. It is read once."""
        return Scan.of(self.tensors)

    def digest(self) -> str:
        """The SHA-256 of all values, and of the images' type and shape."""
        return self.scan.digest

    def take(self, index: Tensor) -> Split:
        """Copies of the samples with the numbers `index`."""
        images, negatives = self.images[index], None if self.negatives is None else self.negatives[index]
        return Split(images, self.labels[index], negatives)

    def choose(self, numbers: Tensor) -> Split:
        """The samples with these numbers (n,), without copies of their images."""
        negatives = None if self.negatives is None else ChosenImages(self.negatives, numbers)
        return Split(ChosenImages(self.images, numbers), self.labels[numbers], negatives)


@dataclass(frozen=True)
class Dataset:
    """Training data, test data where the source has any, and the names of the classes."""

    name: str
    train: Split
    test: Split | None
    class_names: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # for each file that was left out, what is wrong with it
    validation: Split | None = None  # where the source has one of its own
    notes: tuple[str, ...] = ()  # sentences for the user on how the data were read
    files: Sequence[Path] = ()  # of the training images in order, where each has its own file
    white: float | None = None  # the value of a white pixel, where the source knows it

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        *,
        x_val: Any = None,
        y_val: Any = None,
        x_test: Any = None,
        y_test: Any = None,
        class_names: Any = None,
    ) -> Dataset:
        """A data set of arrays or tensors: images (n, *shape) and labels (n,), numbered from 0, or one-hot (n, C).

        A validation split is used in place of one that is cut off the training samples. Raises DataError for labels
        that are no classes; all else is checked once it is trained on.
        """
        noun, splits, shapes = f"data {GIVEN}", dict[str, Split](), dict[str, Sequence[int]]()
        given = {"train": (x, y), "validation": (x_val, y_val), "test": (x_test, y_test)}
        for part, (images, labels) in given.items():
            if images is None and labels is None and part != "train":
                continue
            if images is None or labels is None:
                missing = "images" if images is None else "labels"
                raise DataError(f"{noun}: {part} {missing} are missing, allowed both images and labels, or neither")
            found = to_host(labels, f"{noun}: {part} labels")
            classes, shapes[part] = to_classes(found, f"{noun}: {part} labels"), tuple(found.shape)
            splits[part] = Split(to_host(images, f"{noun}: {part} images"), classes)
        names = None if class_names is None else to_class_names(class_names, noun)
        classes_of = {part: split.labels for part, split in splits.items()}
        num_columns = check_columns(noun, shapes, classes_of, None if names is None else len(names))
        if names is None:
            names = tuple(map(str, range(num_columns or _count_classes(GIVEN, splits["train"]))))
        return cls(GIVEN, splits["train"], splits.get("test"), names, validation=splits.get("validation"))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.train.images.shape[1:])

    @property
    def num_features(self) -> int:
        return count_values(self.train.images)

    @property
    def num_bytes(self) -> int:
        """The bytes of all images, labels and negatives in memory."""
        splits = [split for split in (self.train, self.validation, self.test) if split is not None]
        return sum(tensor.nbytes for split in splits for tensor in split.tensors)

    @property
    def is_held(self) -> bool:
        """Whether all images are in memory."""
        splits = [split for split in (self.train, self.validation, self.test) if split is not None]
        return not any(isinstance(split.images, ReadImages) for split in splits)

    def check_values(self) -> None:
        """Raise DataError for a value that is not finite, in images that are not in memory."""
        for part, split in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            if split is not None and isinstance(split.images, ReadImages):
                _check_values(self.name, part, split)

    @cached_property
    def values(self) -> Values:
        """Statistics of the values of the training images."""
        return Values.of(self.train.images, self.train.labels, self.train.scan.ends)

    @cached_property
    def _class_means(self) -> ClassMeans:
        return ClassMeans.of(self.train.images, self.train.labels)

    @cached_property
    def _digests(self) -> Tensor:
        return digest_images(self.train.images, as_floats=self._has_two_types)

    @property
    def _has_two_types(self) -> bool:
        splits = [split for split in (self.train, self.validation, self.test) if split is not None]
        return len({split.images.dtype for split in splits}) > 1

    @cached_property
    def repetition(self) -> Repetition:
        """How often the training images occur again, or hold a single value."""
        return Repetition.of(self.train.images, self._digests, self.train.labels)

    @cached_property
    def warning(self) -> str | None:
        """One line of all warnings, such as files left out or a split in other units; None without any."""
        said, seen = self.list_notes(), self._digests
        lost = self.train.images.find_lost() if isinstance(self.train.images, ReadImages) else None
        said += [] if lost is None else [lost]
        files = self.files or None
        by_chance = files is None and repeats_by_chance(self.train.images, seen)
        common = find_common(seen, self.train.labels)
        held_out: Tensor | None = None  # digests of the validation split
        for found in (
            find_label_feature(self.train.images, self.train.labels),
            None if by_chance else find_contradictions(seen, self.train.labels, files),
            None if by_chance else find_copies(seen, files),
        ):
            said += [] if found is None else [found]
        for part, split in (("validation", self.validation), ("test", self.test)):
            oddity = None if split is None else self._find_oddity(split)
            said += [] if oddity is None else [f"{part} images: {oddity}"]
            if split is not None:
                digests = digest_images(split.images, as_floats=self._has_two_types)
                is_enough = len(split) >= _ENOUGH
                given = digests, split.labels
                same, again = (
                    find_seen(*given, other, common, f"{noun} images", by_chance=by_chance)
                    if other is not None and is_enough
                    else None
                    for noun, other in (("validation", held_out), ("training", seen))
                )
                repeats = find_repeats(split.images, digests, self.repetition, split.labels)
                said += [f"{part} images: {found}" for found in (same, again, repeats) if found is not None]
                held_out = digests
            lacking = None if split is None else find_lacking(split.labels, self.train.labels, self.class_names)
            said += [] if lacking is None else [f"{part} labels: {lacking}"]
        return "; ".join(said) or None

    def list_notes(self) -> list[str]:
        """What is known of how the data were read, without a look at the images."""
        if not self.left_out:
            return list(self.notes)
        num_read = sum(len(split) for split in (self.train, self.validation, self.test) if split is not None)
        num_images = num_read + len(self.left_out)
        return [f"left out {len(self.left_out)} of {num_images} images; the first: {self.left_out[0]}", *self.notes]

    def _find_oddity(self, split: Split) -> str | None:
        """A warning if images of a split are in other units, or order, than in training, or share values new there."""
        expected = self.values.expected_of(split.labels)
        return (
            find_other_units(Values.of(split.images, ends=split.scan.ends), expected)
            or find_shifted(split.images, self.train.images, draw_alike(split.labels, self.train.labels))
            or self._class_means.find_other(split.images, split.labels)
            or find_new(split.images, self.train.images)
        )

    def digest(self) -> str:
        """The digest of the training data and a validation split; a run refuses to go on with other data."""
        if self.validation is None:
            return self.train.digest()
        return hashlib.sha256((self.train.digest() + self.validation.digest()).encode()).hexdigest()

    def test_digest(self) -> str | None:
        """The digest of the test data, None without any; a run refuses to be evaluated on other test data."""
        return self.test.digest() if self.test is not None else None

    def scale(self) -> float:
        """The largest magnitude among the training images, by which images are divided; 1 where all values are 0.

        They are divided as float32, to which numbers of 64 bits may all be 0.
        """
        largest = max(abs(self.train.scan.high), abs(self.train.scan.low))
        return largest if float(torch.tensor(largest, dtype=torch.float32)) else 1.0


def check_dataset(
    name: str,
    train: Split,
    test: Split | None,
    class_names: tuple[str, ...] | None = None,
    left_out: Sequence[str] = (),
    *,
    validation: Split | None = None,
    notes: Sequence[str] = (),
    files: Sequence[Path] = (),
    white: float | None = None,
) -> Dataset:
    """Make a Dataset from what a source read. Raises DataError when shapes, types or values do not fit."""
    parts = {"train": train, "validation": validation, "test": test}
    for part, split in parts.items():
        if split is None:
            continue
        _check_split(name, part, split)
        if split.images.shape[1:] != train.images.shape[1:]:
            raise DataError(
                f"data {name}: {part} images have shape {tuple(split.images.shape[1:])}, training images "
                f"{tuple(train.images.shape[1:])}; both must be the same"
            )
    num_classes = len(class_names) if class_names else _count_classes(name, train)
    if num_classes > len(train):
        raise DataError(
            f"data {name}: found {num_classes} classes with {len(train)} training samples, allowed as many at most"
        )
    if num_classes < 2:
        raise DataError(f"data {name}: found one class only, allowed 2 or more; Forward-Forward needs wrong labels")
    for part, split in parts.items():
        if split is not None and int(split.labels.max()) >= num_classes:
            raise DataError(
                f"data {name}: {_name_label(part, split, int(split.labels.max()))}, allowed 0 to {num_classes - 1}, "
                "the classes of the training data"
            )
    names = class_names or tuple(str(label) for label in range(num_classes))
    return Dataset(name, train, test, names, tuple(left_out), validation, tuple(notes), files, white)


def _check_split(name: str, part: str, split: Split) -> None:
    images, labels = split.images, split.labels
    if len(images.shape) < 2 or len(images) == 0 or count_values(images) == 0:
        raise DataError(f"data {name}: {part} images have shape {tuple(images.shape)}, allowed (n, ...) with n > 0")
    if labels.dim() != 1 or len(labels) != len(images):
        raise DataError(
            f"data {name}: {part} labels have shape {tuple(labels.shape)}, allowed ({len(images)},), one an image"
        )
    if not isinstance(images, ReadImages):
        _check_values(name, part, split)
    if int(labels.min()) < 0:
        raise DataError(f"data {name}: {_name_label(part, split, int(labels.min()))}, allowed integers from 0")
    negatives = split.negatives
    if negatives is None:
        return
    shape = tuple(images.shape)
    if (
        len(negatives.shape) != len(images.shape) + 1
        or (len(negatives), *negatives.shape[2:]) != shape
        or not negatives.shape[1]
    ):
        raise DataError(
            f"data {name}: {part} negatives have shape {tuple(negatives.shape)}, allowed "
            f"({shape[0]}, R, {', '.join(map(str, shape[1:]))}), R of 1 or more for each image"
        )
    if negatives.dtype != images.dtype:
        raise DataError(f"data {name}: {part} negatives are {negatives.dtype}, allowed {images.dtype}, as the images")


def _count_classes(name: str, train: Split) -> int:
    """The number of classes by the labels of training samples. Raises DataError if there are fewer samples."""
    highest = int(train.labels.max()) if len(train) else 0
    if highest >= max(len(train), 1):
        raise DataError(
            f"data {name}: {_name_label('train', train, highest)} with {len(train)} training samples, allowed 0 to "
            "C - 1 for C classes; number them without gaps"
        )
    return highest + 1


def _check_values(name: str, part: str, split: Split) -> None:
    """Raise DataError that names the first image of a split with a value that is not finite."""
    row = split.scan.not_finite if isinstance(split.images, ReadImages) else find_not_finite(split.images)
    if row is not None:
        raise DataError(
            f"data {name}: {part} image {row} holds a value that is not finite, or too large for float32; remove it or "
            "mend the file"
        )
    if split.negatives is not None and find_not_finite(split.negatives) is not None:
        raise DataError(f"data {name}: {part} negatives hold a value that is not finite; mend the file")


def _name_label(part: str, split: Split, label: int) -> str:
    """The first sample of a split that has a label, in words."""
    return f"{part} label of sample {int((split.labels == label).nonzero()[0])} is {label}"


def check_classes(name: str, train: Split, class_names: tuple[str, ...]) -> None:
    """Raise DataError when a class has no training image, as it would only ever be a wrong label."""
    counts = torch.bincount(train.labels, minlength=len(class_names))
    absent = [number for number, count in enumerate(counts.tolist()) if count == 0]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise DataError(
            f"data {name}: found no training image of class {class_names[absent[0]]!r} (label {absent[0]}){more}, "
            "allowed one or more of each when the validation split is taken away; number the labels without gaps, add "
            "images, or lower validation_fraction"
        )


def split_validation(dataset: Dataset, fraction: float, seed: int) -> tuple[Split, Split]:
    """Divide the training data into a training and a validation split, both shuffled in one seeded order.

    This is the only permutation of the whole data that a run makes. Raises DataError when either split would be empty,
    except for validation with a fraction of 0.
    """
    train = dataset.train
    num_validation = round(len(train) * fraction)
    if num_validation >= len(train) or (fraction > 0 and num_validation == 0):
        raise DataError(
            f"data {dataset.name}: validation_fraction {fraction:g} of {len(train)} samples leaves one part empty; "
            "choose another fraction, or 0 for no validation"
        )
    order = draw_order(len(train), seed)
    held_out, kept = order[:num_validation], order[num_validation:]
    return train.choose(kept), train.choose(held_out)


def draw_order(num: int, seed: int) -> Tensor:
    """The order in which training data are divided, (num,): numbers of images, those for validation first."""
    return torch.randperm(num, generator=seeding.generator(seed, 0, 0, "split"))
