"""Other ways in which the features of an image may be laid out, as files of other programs do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ffstream.data.plane import find_plane


def arrange(images: Tensor, shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield images (n, features) of some shape in other arrangements, each with its name.

    They are those that a picture, or the columns of a table, can be mistaken in: mirrored, turned, transposed, or in
    the opposite order. An arrangement that the shape does not have, or that is the same as another, is left out.
    """
    plane = find_plane(shape)
    if plane is None:
        if len(shape) == 1:
            yield "with their columns in the opposite order", images.flip(1)
        return
    before, height, width, after = plane
    pictures = images.view(-1, before, height, width, after)
    found = {
        "mirrored": pictures.flip(3),
        "upside down": pictures.flip(2),
        "turned by 180 degrees": pictures.flip(2, 3),
    }
    if height == width:
        found["with their rows as columns"] = pictures.transpose(2, 3)
        found["turned by a right angle"] = pictures.transpose(2, 3).flip(3)
        found["turned by three right angles"] = pictures.transpose(2, 3).flip(2)
    if max(before, after) > 1:
        found["with their channels in the opposite order"] = pictures.flip(1, 4)
    for name, arranged in found.items():
        yield name, arranged.reshape(images.shape)
