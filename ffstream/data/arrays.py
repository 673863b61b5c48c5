"""Arrays in a .safetensors or .npz file: train.images, train.labels and, optionally, test.images, test.labels.

And train.negatives (n, R, *image shape): what each training image is contrasted with, for layers that see no labels.
"""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.errors import DataError

# The same arrays under the names that people use: ours, with underscores, and those of keras.
_NAMES = {
    "train.images": ("train.images", "train_images", "x_train"),
    "train.labels": ("train.labels", "train_labels", "y_train"),
    "test.images": ("test.images", "test_images", "x_test"),
    "test.labels": ("test.labels", "test_labels", "y_test"),
    "train.negatives": ("train.negatives", "train_negatives"),
}


# What numpy and zipfile raise for damaged members: an encrypted flag, an unknown compression, a shape beyond memory.
_NUMPY_ERRORS = (OSError, ValueError, TypeError, EOFError, RuntimeError, NotImplementedError, MemoryError, KeyError)


def load_arrays(path: Path, name: str | None = None) -> Dataset:
    """Read a file of arrays. Raises DataError when it is absent, unreadable or lacks an array. Never unpickles."""
    name = name or str(path)
    arrays = read_arrays(path, name)
    train = _find_split(arrays, "train", name)
    if train is None:
        raise DataError(f"data {name}: found arrays {sorted(arrays)}, needs train.images and train.labels")
    negatives = next((arrays[alias] for alias in _NAMES["train.negatives"] if alias in arrays), None)
    if negatives is not None:
        train = dataclasses.replace(train, negatives=as_images(negatives, name, "train negatives"))
    return check_dataset(name, train, _find_split(arrays, "test", name))


def read_arrays(path: Path, name: str) -> dict[str, Tensor]:
    """All arrays of a .safetensors or .npz file; that of a .npy file is called "images". Raises DataError."""
    if not path.is_file():
        raise DataError(f"data {name}: no such file")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load_numpy(path)
    except (SafetensorError, zipfile.BadZipFile, zlib.error, *_NUMPY_ERRORS) as error:
        raise DataError(f"data {name}: cannot be read as {path.suffix} ({_one_line(error)})") from error


def find_images(arrays: dict[str, Tensor], name: str) -> Tensor:
    """The images without labels: those called "images", else the test images, else the only array there is."""
    for alias in ("images", *_NAMES["test.images"]):
        if alias in arrays:
            return as_images(arrays[alias], name, alias)
    if len(arrays) != 1:
        raise DataError(f"data {name}: found arrays {sorted(arrays)}, needs images or test.images, or one array alone")
    ((alias, images),) = arrays.items()
    return as_images(images, name, alias)


def as_images(images: Tensor, name: str, part: str) -> Tensor:
    """In a type that torch computes in. Raises DataError for complex numbers."""
    if images.is_complex():
        raise DataError(f"data {name}: {part} are {images.dtype}, allowed real numbers")
    # torch computes little on the other unsigned types, and half of float64 is enough
    return images if images.dtype == torch.uint8 else images.to(torch.float32)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _load_numpy(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npy":
        return {"images": torch.from_numpy(np.ascontiguousarray(np.load(path, allow_pickle=False)))}
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(np.ascontiguousarray(file[key])) for key in file.files}


def _find_split(arrays: dict[str, Tensor], part: str, name: str) -> Split | None:
    found = [
        next((arrays[alias] for alias in _NAMES[f"{part}.{what}"] if alias in arrays), None)
        for what in ("images", "labels")
    ]
    images, labels = found
    if images is None or labels is None:
        if images is None and labels is None:
            return None
        missing = "labels" if labels is None else "images"
        raise DataError(f"data {name}: found one of {part}.images and {part}.labels, {part}.{missing} is missing")
    if images.is_complex() or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(
            f"data {name}: {part} images are {images.dtype} and labels {labels.dtype}, allowed numbers and integers"
        )
    return Split(as_images(images, name, f"{part} images"), labels.to(torch.int64))
