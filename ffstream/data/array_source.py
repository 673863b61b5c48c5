"""Loads a .safetensors or .npz file of arrays: train.images, train.labels, and those of test and validation splits.

The array train.negatives (n, R, *image shape), if there is one, is what each training image is contrasted with, for
layers that see no labels. The header of a .safetensors file may also hold the names of the classes and the value of a
white pixel.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.data.array_file import ArrayFile
from ffstream.data.array_formats import Header
from ffstream.data.classes import check_columns, to_class_names, to_classes
from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.data.file_images import FileImages
from ffstream.data.image_access import Images
from ffstream.data.room import Room, tensor_bytes
from ffstream.data.rounding import Rounding
from ffstream.errors import DataError

# The common names of each array, in upper or lower case: ours, ours with underscores, and those of Keras.
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_NAMES = {
    f"{split}.{what}": tuple(
        alias for word in words for alias in (f"{word}.{what}", f"{word}_{what}", f"{letter}_{word}")
    )
    for split, words in _SPLITS.items()
    for what, letter in (("images", "x"), ("labels", "y"))
}
_NAMES["train.negatives"] = ("train.negatives", "train_negatives")
_MAX_NAMES = 20  # names that an error lists
_CLASS_NAMES, _WHITE = "ffstream.class_names", "ffstream.white"  # header keys: a JSON list of texts, and a number


@dataclass(frozen=True)
class _Wanted:
    """An array that is read, and the type that it is converted to."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    is_labels: bool = False

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.dtype)


def load_arrays(path: Path, name: str | None = None, room: Room | None = None, *, is_held: bool = True) -> Dataset:
    """Read a file of arrays; nothing is unpickled. Raises DataError when it is absent, unreadable or lacks an array.

    Arrays that are not used are not read. Raises BudgetError, before any array is read, if those used do not fit in the
    room. Unless the data set `is_held` in memory, the images of a .safetensors file are read when they are asked for,
    and their values are not checked yet.
    """
    name, room = name or str(path), room or Room()
    noun = f"data {name}"
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(ArrayFile(path, name))
        is_held = is_held or not file.is_read_by_position
        found = {split: _find_split(file, split, name) for split in _SPLITS}
        of_train = found["train"]
        if not of_train:
            raise DataError(f"{noun}: found arrays {describe_names(file.names)}, needs train.images and train.labels")
        negatives = _find_name(file, "train.negatives")
        if negatives is not None:
            header = file.header(negatives)
            of_train.append(_Wanted(negatives, header.shape, find_image_type(header, name, "train negatives")))
        used = [wanted for split in found.values() for wanted in split]
        room.check(noun, sum(wanted.nbytes for wanted in used if is_held or wanted.is_labels))
        rounding = Rounding(max(math.prod(of_train[0].shape[1:]), 1))
        splits = {
            split: _read_split(file, wanted, noun, room, rounding if split == "train" else None, is_held=is_held)
            for split, wanted in found.items()
            if wanted
        }
        unused = sorted(set(file.names) - {wanted.name for wanted in used})
        class_names, white = _read_metadata(file.metadata, noun)
        if not is_held:
            stack.pop_all()  # the images keep the file open
    shapes = {split: wanted[1].shape for split, wanted in found.items() if wanted}
    num_columns = check_columns(noun, shapes, {name: split.labels for name, split in splits.items()})
    notes = [f"not read: {describe_names(unused)}"] if unused else []
    lost = rounding.describe()
    notes += [f"array {of_train[0].name}: {lost}"] if lost is not None else []
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append("the validation arrays are taken as the test split, as there is no other")
    validation = splits.get("validation")
    if num_columns is not None and len(class_names or range(num_columns)) != num_columns:
        raise DataError(f"{noun}: {_CLASS_NAMES} holds {len(class_names or ())} names, allowed {num_columns}")
    if class_names is None and num_columns is not None:
        class_names = tuple(map(str, range(num_columns)))
    return check_dataset(
        name, splits["train"], splits.get("test"), class_names, validation=validation, notes=notes, white=white
    )


def describe_in_metadata(dataset: Dataset) -> dict[str, str]:
    """The class names and the value of white, for the header of a .safetensors file that `load_arrays` reads."""
    white = {} if dataset.white is None else {_WHITE: json.dumps(dataset.white)}
    return {_CLASS_NAMES: json.dumps(dataset.class_names)} | white


def _read_metadata(metadata: Mapping[str, Any], noun: str) -> tuple[tuple[str, ...] | None, float | None]:
    """The inverse of `describe_in_metadata`; None for what is missing. `noun` begins the message of a DataError."""
    try:
        names, white = (json.loads(metadata.get(key, "null")) for key in (_CLASS_NAMES, _WHITE))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{noun}: {_CLASS_NAMES} or {_WHITE} in its head is no JSON; mend it, or take it out"
        ) from error
    if white is not None and not (type(white) in (int, float) and 0 < white < math.inf):
        raise DataError(f"{noun}: {_WHITE} in its head is {str(white)[:80]}, allowed a number above 0")
    return None if names is None else to_class_names(names, noun), white


def find_images(file: ArrayFile, name: str) -> str:
    """The name of the array of unlabelled images: "images", else the test images, else the only array in the file.

    Raises DataError if there is none of these.
    """
    found = _find_alias(file, ("images", *_NAMES["test.images"]))
    if found is not None:
        return found
    if len(file.names) != 1:
        raise DataError(
            f"data {name}: found arrays {describe_names(file.names)}, needs images or test.images, or one array alone"
        )
    return file.names[0]


def find_image_type(header: Header, name: str, part: str) -> torch.dtype:
    """The type that images are converted to, uint8 or float32. Raises DataError for complex numbers."""
    assert header.dtype is not None
    if header.dtype.is_complex:
        raise DataError(f"data {name}: {part} are {header.dtype}, allowed real numbers")
    # torch supports few operations on the other unsigned types, and float32 is enough at half the size of float64
    return torch.uint8 if header.dtype == torch.uint8 else torch.float32


def describe_names(names: Iterable[str]) -> str:
    """The names of the arrays of a file, for a message."""
    names = sorted(names)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{names[:_MAX_NAMES]}{more}"


def _read_split(
    file: ArrayFile, wanted: list[_Wanted], noun: str, room: Room, rounding: Rounding | None, *, is_held: bool
) -> Split:
    of_images, of_labels, *others = wanted
    if is_held:
        images: list[Images] = [_read(file, of_images, noun, room, rounding)]
        images += [_read(file, each, noun, room) for each in others]
    else:
        images = [FileImages(file, each.name, each.dtype) for each in (of_images, *others)]
    labels = to_classes(_read(file, of_labels, noun, room), f"{noun}: array {of_labels.name}")
    return Split(images[0], labels, *images[1:])


def _read(file: ArrayFile, wanted: _Wanted, noun: str, room: Room, rounding: Rounding | None = None) -> Tensor:
    target = room.allocate(noun, wanted.shape, wanted.dtype)
    file.read(wanted.name, target, rounding)
    return target


def _find_name(file: ArrayFile, what: str) -> str | None:
    return _find_alias(file, _NAMES[what])


def _find_alias(file: ArrayFile, aliases: Sequence[str]) -> str | None:
    """The name in the file of the first alias that it has, in upper or lower case; None if it has none."""
    names = {name.lower(): name for name in sorted(file.names)}
    return next((names[alias] for alias in aliases if alias in names), None)


def _find_split(file: ArrayFile, part: str, name: str) -> list[_Wanted]:
    """The images and the labels of a split, or nothing if there is neither. Raises DataError where one is missing."""
    images_name, labels_name = (_find_name(file, f"{part}.{what}") for what in ("images", "labels"))
    if images_name is None or labels_name is None:
        if images_name is None and labels_name is None:
            return []
        missing = "labels" if labels_name is None else "images"
        raise DataError(f"data {name}: found one of {part}.images and {part}.labels, {part}.{missing} is missing")
    images = file.header(images_name)
    labels = file.header(labels_name, "integers, booleans or floating numbers; number the classes from 0")
    assert images.dtype is not None and labels.dtype is not None  # noqa: PT018
    if labels.dtype.is_complex:
        raise DataError(f"data {name}: array {labels_name}: found {labels.dtype}, allowed classes, numbered from 0")
    # Numbers of uint64 may be too large for int64, and would come out below 0.
    is_plain = len(labels.shape) == 1 and not (labels.dtype.is_floating_point or labels.dtype == torch.uint64)
    return [
        _Wanted(images_name, images.shape, find_image_type(images, name, f"{part} images")),
        _Wanted(labels_name, labels.shape, torch.int64 if is_plain else torch.float64, is_labels=True),
    ]
