"""Checks a data set from a user's own source by the same rules as one that is read from a file."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ffstream.data.classes import check_columns, to_class_names, to_classes
from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.data.image_access import Images, ReadImages, count_values
from ffstream.data.missing_values import numbered_parts
from ffstream.data.rounding import WIDE, Rounding
from ffstream.data.tensors import to_host
from ffstream.errors import DataError


def _open(values: Any, noun: str) -> Images:
    """Images as they are read, or converted to a tensor if they are in memory."""
    return values if isinstance(values, ReadImages) else _read(values, noun)


def _read(values: Any, noun: str) -> Tensor:
    """Convert values to a tensor on the host, in a type that numpy has too."""
    tensor = to_host(values, noun)
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def check_own(found: Any, source: str) -> Dataset:
    """The same data set with tensors in place of arrays and lists. Raises DataError for anything that does not fit."""
    noun = f"data {source}"
    if not isinstance(found, Dataset):
        raise DataError(
            f"{noun}: its source gives {type(found).__name__}, allowed a Dataset(name, train, test, class_names)"
        )
    parts = {"train": found.train, "test": found.test, "validation": found.validation}
    for part, split in parts.items():
        if split is not None and not isinstance(split, Split):
            raise DataError(f"{noun}: its {part} split is {type(split).__name__}, allowed a Split(images, labels)")
    if found.train is None:
        raise DataError(f"{noun}: its source gives no training split")
    labels = {part: _read(split.labels, f"{noun}: {part} labels") for part, split in parts.items() if split is not None}
    classes = {part: to_classes(values, f"{noun}: {part} labels") for part, values in labels.items()}
    names = None if found.class_names is None else to_class_names(found.class_names, noun)
    shapes = {part: tuple(values.shape) for part, values in labels.items()}
    num_columns = check_columns(noun, shapes, classes, None if names is None else len(names))
    if names is None and num_columns is not None:
        names = tuple(map(str, range(num_columns)))
    splits = {
        part: Split(
            _open(split.images, f"{noun}: {part} images"),
            classes[part],
            None if split.negatives is None else _open(split.negatives, f"{noun}: {part} negatives"),
        )
        for part, split in parts.items()
        if split is not None
    }
    images = splits["train"].images
    rounding = Rounding(count_values(images)) if images.dtype in WIDE and len(images) and count_values(images) else None
    if rounding is not None:
        for first, rows in numbered_parts(images):
            rounding.add(first * count_values(images), rows.flatten())
    said = [(each,) if isinstance(each, str) else tuple(map(str, each)) for each in (found.left_out, found.notes)]
    white = found.white
    if white is not None and not (isinstance(white, (int, float)) and 0 < white < math.inf):
        raise DataError(f"{noun}: white is {white!r}, allowed the value of a picture's white, above 0, or None")
    return check_dataset(
        str(found.name),
        splits["train"],
        splits.get("test"),
        names,
        said[0],
        validation=splits.get("validation"),
        white=white,
        notes=said[1] + ((lost,) if rounding is not None and (lost := rounding.describe()) is not None else ()),
    )
