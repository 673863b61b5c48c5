"""Which of an image's axes are its plane."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_CHANNELS = 4

# Channels before the plane, height, width, channels after it: 1 where there are none.
Plane = tuple[int, int, int, int]


def find_plane(image_shape: Sequence[int]) -> Plane | None:
    """That of (height, width), (height, width, channels) or (channels, height, width), with up to 4 channels.

    None where there is none, or it cannot be told.
    """
    shape = tuple(image_shape)
    if len(shape) == 2:
        return (1, *shape, 1)
    if len(shape) == 3 and shape[2] <= _MOST_CHANNELS:
        return (1, *shape)
    if len(shape) == 3 and shape[0] <= _MOST_CHANNELS:
        return (*shape, 1)
    return None
