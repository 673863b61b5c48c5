"""Arrays in a .safetensors or .npz file: train.images, train.labels and, optionally, test.images, test.labels.

And train.negatives (n, R, *image shape): what each training image is contrasted with, for layers that see no labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ffstream.data.array_file import ArrayFile, Header
from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.data.room import Room, tensor_bytes
from ffstream.errors import DataError

# The same arrays under the names that people use: ours, with underscores, and those of keras.
_NAMES = {
    "train.images": ("train.images", "train_images", "x_train"),
    "train.labels": ("train.labels", "train_labels", "y_train"),
    "test.images": ("test.images", "test_images", "x_test"),
    "test.labels": ("test.labels", "test_labels", "y_test"),
    "train.negatives": ("train.negatives", "train_negatives"),
}
_MAX_NAMES = 20  # that an error lists


@dataclass(frozen=True)
class _Wanted:
    """An array that is used, and the type that it is brought to."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.dtype)


def load_arrays(path: Path, name: str | None = None, room: Room | None = None) -> Dataset:
    """Read a file of arrays. Raises DataError when it is absent, unreadable or lacks an array. Never unpickles.

    What is not used is not read, and what is used is held against the room before any of it is: BudgetError.
    """
    name, room = name or str(path), room or Room()
    noun = f"data {name}"
    with ArrayFile(path, name) as file:
        of_train, of_test = _find_split(file, "train", name), _find_split(file, "test", name)
        if not of_train:
            raise DataError(f"{noun}: found arrays {describe_names(file)}, needs train.images and train.labels")
        negatives = _find_name(file, "train.negatives")
        if negatives is not None:
            header = file.header(negatives)
            of_train.append(_Wanted(negatives, header.shape, find_image_type(header, name, "train negatives")))
        room.check(noun, sum(wanted.nbytes for wanted in of_train + of_test))
        train = Split(*(_read(file, wanted, noun, room) for wanted in of_train))
        test = Split(*(_read(file, wanted, noun, room) for wanted in of_test)) if of_test else None
    return check_dataset(name, train, test)


def find_images(file: ArrayFile, name: str) -> str:
    """Which array are the images without labels: "images", else the test images, else the only array there is."""
    for alias in ("images", *_NAMES["test.images"]):
        if alias in file.names:
            return alias
    if len(file.names) != 1:
        raise DataError(
            f"data {name}: found arrays {describe_names(file)}, needs images or test.images, or one array alone"
        )
    return file.names[0]


def find_image_type(header: Header, name: str, part: str) -> torch.dtype:
    """The type that torch computes in which images are brought to. Raises DataError for complex numbers."""
    assert header.dtype is not None
    if header.dtype.is_complex:
        raise DataError(f"data {name}: {part} are {header.dtype}, allowed real numbers")
    # torch computes little on the other unsigned types, and half of float64 is enough
    return torch.uint8 if header.dtype == torch.uint8 else torch.float32


def describe_names(file: ArrayFile) -> str:
    """The arrays of a file, for an error."""
    names = sorted(file.names)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{names[:_MAX_NAMES]}{more}"


def _read(file: ArrayFile, wanted: _Wanted, noun: str, room: Room) -> Tensor:
    target = room.allocate(noun, wanted.shape, wanted.dtype)
    file.read(wanted.name, target)
    return target


def _find_name(file: ArrayFile, what: str) -> str | None:
    return next((alias for alias in _NAMES[what] if alias in file.names), None)


def _find_split(file: ArrayFile, part: str, name: str) -> list[_Wanted]:
    """The images and the labels of a split, or nothing."""
    images_name, labels_name = (_find_name(file, f"{part}.{what}") for what in ("images", "labels"))
    if images_name is None or labels_name is None:
        if images_name is None and labels_name is None:
            return []
        missing = "labels" if labels_name is None else "images"
        raise DataError(f"data {name}: found one of {part}.images and {part}.labels, {part}.{missing} is missing")
    images, labels = file.header(images_name), file.header(labels_name)
    assert images.dtype is not None and labels.dtype is not None  # noqa: PT018
    is_integer = not (labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool)
    if images.dtype.is_complex or not is_integer:
        raise DataError(
            f"data {name}: {part} images are {images.dtype} and labels {labels.dtype}, allowed numbers and integers"
        )
    return [
        _Wanted(images_name, images.shape, find_image_type(images, name, f"{part} images")),
        _Wanted(labels_name, labels.shape, torch.int64),
    ]
