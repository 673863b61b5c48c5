"""Images without labels, to be classified: from image files, folders of them, and files of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ffstream.data.arrays import find_images, read_arrays
from ffstream.data.dataset import fit_images, without_ones
from ffstream.data.picture import PICTURES, WHITE, read_picture
from ffstream.errors import DataError

_ARRAYS = (".npy", ".npz", ".safetensors")


@dataclass(frozen=True)
class NamedImages:
    """Images (n, *shape), and what each is called: its file or, of an array, the file and its number in it."""

    names: list[str]
    images: Tensor

    def __len__(self) -> int:
        return len(self.names)


def load_images(paths: Sequence[Path], shape: tuple[int, ...], white: float) -> NamedImages:
    """Read images of one shape from files, and from all image files in and below folders, in the order of their names.

    Arrays are in the units of the training data; what is white in an image file becomes `white`. Colours become grey
    where `shape` has no channels. Raises DataError naming the first file that does not fit.
    """
    names: list[str] = []
    parts: list[Tensor] = []
    for path in paths:
        for file in _list_files(path):
            if file.suffix.lower() in _ARRAYS:
                found = fit_images(find_images(read_arrays(file, str(file)), str(file)), shape, f"data {file}")
                names += [f"{file}[{number}]" for number in range(len(found))]
            else:
                found = _read_picture(file, shape, white)
                names.append(str(file))
            parts.append(found)
    return NamedImages(names, torch.cat(parts))


def _list_files(path: Path) -> list[Path]:
    """Of a folder its images, else the path itself."""
    try:
        return _list_images(path) if path.is_dir() else [path]
    except OSError as error:  # such as a name that is too long to be one
        raise DataError(f"data {path}: cannot be read: {error.strerror}; give an image, arrays or a folder") from error


def _list_images(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not found:
        raise DataError(f"data {folder}: found no image in this folder, allowed {', '.join(PICTURES)}")
    return found


def _read_picture(path: Path, shape: tuple[int, ...], white: float) -> Tensor:
    """An image file as (1, *shape)."""
    if not path.is_file():
        raise DataError(f"data {path}: no such file or folder")
    if path.suffix.lower() not in PICTURES:
        raise DataError(
            f"data {path}: found {path.suffix or 'no suffix'!r}, allowed an image ({', '.join(PICTURES)}), "
            f"arrays ({', '.join(_ARRAYS)}), or a folder of images"
        )
    height, width, *channels = _pixel_shape(path, shape)
    _, picture = read_picture(path, "RGB" if channels else "L")
    if picture.shape[:2] != (height, width):
        raise DataError(
            f"data {path}: found {picture.shape[1]} x {picture.shape[0]} pixels (width x height), allowed {width} x "
            f"{height}, as the run was trained on; resize it"
        )
    pixels = torch.from_numpy(picture)
    if white != WHITE:
        pixels = pixels.float() * (white / WHITE)
    if channels and shape[-1] != 3:
        pixels = pixels.permute(2, 0, 1)
    return pixels.reshape(1, *shape)


def _pixel_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(height, width) or (height, width, 3) of the pictures that are images of `shape`. Raises DataError."""
    plain = without_ones(shape)
    if len(plain) == 2 or (len(plain) == 3 and plain[2] == 3):
        return plain
    if len(plain) == 3 and plain[0] == 3:
        return (*plain[1:], 3)
    raise DataError(
        f"data {path}: is a picture, but the run was trained on arrays of shape {shape}; give it such arrays "
        f"({', '.join(_ARRAYS)})"
    )
