"""Other orders in which the features of an image may be laid out, as files of other programs do. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import permutations

import torch
from torch import Tensor

from ffstream.data.plane import Plane, find_plane
from ffstream.data.sample import draw_sample


def thin_out(shape: Sequence[int], most: int) -> tuple[Tensor, tuple[int, ...]]:
    """Numbers of about `most` features of an image, or of all if these are fewer, and the shape that they make up.

    Of a picture, they are the crossings of a grid, and of columns, pairs at equal distances from both ends: so they
    are the same features when mirrored, turned or in the opposite order. Of other shapes they are drawn at random.
    """
    num_features = math.prod(shape)
    if num_features <= most:
        return torch.arange(num_features), tuple(shape)
    plane = find_plane(shape)
    if plane is None and len(shape) == 1:
        half = draw_sample((num_features + 1) // 2, most // 2)
        features = torch.cat([half, num_features - 1 - half]).unique()
        return features, (len(features),)
    if plane is None:
        features = draw_sample(num_features, most).sort().values
        return features, (len(features), 1, 1, 1)  # of which no other order is known
    before, height, width, after = plane
    num_channels = before * after
    scale = math.sqrt(most / num_features)
    num_rows = min(max(int(height * scale), 1), height)
    num_columns = min(max(most // (num_channels * num_rows), 1), width) if height != width else num_rows
    rows, columns = _spread_out(height, num_rows), _spread_out(width, num_columns)
    whole = torch.arange(num_features).view(before, height, width, after)
    crossings = whole[:, rows][:, :, columns]
    sizes = {0: (len(rows), len(columns)), 1: (before, len(rows), len(columns)), 2: (len(rows), len(columns), after)}
    kind = 0 if len(shape) == 2 else 2 if shape[2] <= after and before == 1 else 1
    return crossings.flatten(), sizes[kind]


def _spread_out(size: int, num: int) -> Tensor:
    """About `num` of `size` places at about equal distances, which are the same from either end."""
    if num >= size:
        return torch.arange(size)
    half = [int((place + 0.5) * size / num) for place in range(num // 2)]
    middle = [size // 2] if size % 2 and (num % 2 or not half) else []
    half = half or ([] if middle else [size // 2 - 1])
    return torch.tensor([*half, *middle, *(size - 1 - place for place in reversed(half))])


def list_arrangements(shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield other orders of the features of an image of some shape: the name, and the feature in each place.

    They are those that a picture, or the columns of a table, can be mistaken in: mirrored, turned, transposed, with the
    channels in any other order, or the columns in the opposite order, moved by one, or sorted as words are. Orders that
    the shape does not have, or that are the same as another, are left out.
    """
    seen = {tuple(range(math.prod(shape)))}
    for name, order in _list_all(shape):
        places = tuple(order.flatten().tolist())
        if places not in seen:
            seen.add(places)
            yield name, order.flatten()


def _list_all(shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    plane, places = find_plane(shape), torch.arange(math.prod(shape))
    if plane is not None:
        yield from _list_of_pictures(plane)
    elif len(shape) == 1:
        yield "with their columns in the opposite order", places.flip(0)
        yield "with their columns moved to the right by one", places.roll(1)
        yield "with their columns moved to the left by one", places.roll(-1)
        for first in (0, 1):
            words = sorted(range(len(places)), key=lambda place: str(place + first))
            yield f"with their columns, numbered from {first}, sorted as words", places[words]


def _list_of_pictures(plane: Plane) -> Iterator[tuple[str, Tensor]]:
    before, height, width, after = plane
    pictures = torch.arange(math.prod(plane)).view(plane)
    yield "mirrored", pictures.flip(2)
    yield "upside down", pictures.flip(1)
    yield "turned by 180 degrees", pictures.flip(1, 2)
    if height == width:
        yield "with their rows as columns", pictures.transpose(1, 2)
        yield "turned by a right angle", pictures.transpose(1, 2).flip(2)
        yield "turned by three right angles", pictures.transpose(1, 2).flip(1)
    axis, num_channels = (0, before) if before > 1 else (3, after)
    opposite = tuple(reversed(range(num_channels)))
    orders = sorted(permutations(range(num_channels)), key=lambda order: order != opposite)
    for order in orders:
        said = "in the opposite order" if order == opposite else f"in the order {', '.join(map(str, order))}"
        yield f"with their channels {said}", pictures.index_select(axis, torch.tensor(order))
