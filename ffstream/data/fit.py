"""Whether images fit: those to be predicted the shape of a run, and any the range of float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values, read_parts
from ffstream.data.tensors import to_host
from ffstream.errors import DataError

_PART_VALUES = 1 << 20  # values that are looked at at once
_LARGEST = torch.finfo(torch.float32).max


def fit_images(images: Tensor, shape: tuple[int, ...], noun: str) -> Tensor:
    """Bring images to (n, *shape) that differ in axes of length 1, are flattened, or are one image alone.

    Raises DataError for any other shape, no image, or values that are not finite; `noun` begins its message.
    """
    images = to_host(images, f"{noun}: images")
    num_images = count_images(tuple(images.shape), shape, noun)
    images = images.reshape(num_images, *shape)
    check_values(images, noun)
    return images


def count_images(found: tuple[int, ...], shape: tuple[int, ...], noun: str) -> int:
    """The number of images of `shape` in an array of shape `found`. `noun` begins the message of a DataError."""
    for own in (found, (1, *found)):
        if own and _is_same(own[1:], shape):
            if own[0] == 0:
                raise DataError(f"{noun}: found no image, allowed one or more")
            return own[0]
    hint = "bring them to that size"
    if math.prod(found[1:]) == math.prod(shape) and min(len(found) - 1, len(shape)) == 1:
        hint = "channels can come first or last in a flat row, so give each image in that shape"
    if len(shape) == 3 and len(found) in (3, 4) and sorted(found[-3:]) == sorted(shape):
        hint = "put the axes of each image in that order"
    raise DataError(
        f"{noun}: images have shape {found}, allowed (n, {', '.join(map(str, shape))}), as the run was "
        f"trained on; {hint}"
    )


def _is_same(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an image of shape `own` can become one of `shape` by axes of length 1, by flattening or its inverse."""
    own, shape = without_ones(own), without_ones(shape)
    # Pixels of a plane are flattened in one order; those with channels in two, of which neither can be known.
    is_flat = min(len(own), len(shape)) <= 1 and max(len(own), len(shape)) <= 2 and math.prod(own) == math.prod(shape)
    return is_flat or own == shape


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without its axes of length 1."""
    return tuple(size for size in shape if size != 1)


def check_values(images: Tensor, noun: str) -> None:
    """Raise DataError when an image holds a value that is not finite in float32; `noun` begins its message."""
    row = find_not_finite(images)
    if row is not None:
        raise DataError(
            f"{noun}: image {row} holds a value that is not finite, or too large for float32; remove it or mend "
            "the file"
        )


def is_finite(*values: float) -> bool:
    """Whether all values are finite in float32."""
    return all(math.isfinite(value) and abs(value) <= _LARGEST for value in values)


def find_not_finite(images: Images) -> int | None:
    """The number of the first image with a value that is not finite in float32, or None, without copying all images."""
    if not images.dtype.is_floating_point or not count_values(images):
        return None
    start = 0
    for part in read_parts(images, max(_PART_VALUES // count_values(images), 1)):
        if not is_finite(*map(float, torch.aminmax(part))):
            return start + next(row for row, image in enumerate(part) if not bool(torch.isfinite(image.float()).all()))
        start += len(part)
    return None
