"""Finds which axes of an image are its plane, height and width."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_CHANNELS = 4

# (channels before the plane, height, width, channels after it), with 1 for channels that do not exist.
Plane = tuple[int, int, int, int]


def find_plane(image_shape: Sequence[int]) -> Plane | None:
    """Find the plane of (height, width), (height, width, channels) or (channels, height, width), up to 4 channels.

    Returns None for any other shape.
    """
    shape = tuple(image_shape)
    if len(shape) == 2:
        return (1, *shape, 1)
    if len(shape) == 3 and shape[2] <= _MOST_CHANNELS:
        return (1, *shape)
    if len(shape) == 3 and shape[0] <= _MOST_CHANNELS:
        return (*shape, 1)
    return None
