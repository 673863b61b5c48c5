"""Pictures in a folder that are decoded as they are read, and their names, kept in few bytes each."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from ffstream.data.image_access import ReadImages
from ffstream.data.picture_file import Picture, open_picture
from ffstream.data.room import Room
from ffstream.errors import DataError


class PictureNames(Sequence[Path]):
    """The paths of pictures below a folder. A list of them would take several times as much as small pictures do."""

    def __init__(self, place: Path) -> None:
        self._place, self._text, self._ends = place, bytearray(), array("q", [0])

    def add(self, paths: Iterable[Path]) -> None:
        """Add paths, all of which are in the folder or below it."""
        for path in paths:
            self._text += os.fsencode(path.relative_to(self._place))
            self._ends.append(len(self._text))

    def choose(self, numbers: Iterable[int]) -> PictureNames:
        """Those with these numbers, in that order."""
        chosen = PictureNames(self._place)
        chosen.add(self[number] for number in numbers)
        return chosen

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> Path: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Path]: ...
    def __getitem__(self, number: int | slice) -> Path | Sequence[Path]:
        if isinstance(number, slice):
            return self.choose(range(*number.indices(len(self))))
        number = range(len(self))[number]
        return self._place / os.fsdecode(bytes(self._text[self._ends[number] : self._ends[number + 1]]))


class PictureImages(ReadImages):
    """Pictures (n, height, width) in grey, "L", or (n, height, width, 3) in colour, "RGB", as bytes.

    Reading raises DataError for a picture that has another size by now, or can no longer be read.
    """

    def __init__(self, names: PictureNames, shape: Sequence[int], mode: str) -> None:
        super().__init__((len(names), *shape), torch.uint8)
        self._names, self._mode, self._room = names, mode, Room()

    def read(self, numbers: Tensor) -> Tensor:
        """See `ReadImages`."""
        found = torch.empty((len(numbers), *self.shape[1:]), dtype=torch.uint8)
        for place, number in enumerate(numbers.tolist()):
            found.numpy()[place] = decode_as(self._names[number], self.shape[1:], self._mode, self._room)
        return found


def decode_as(path: Path, shape: Sequence[int], mode: str, room: Room) -> Picture:
    """Decode a picture that had this shape. Raises DataError, BudgetError."""
    picture = open_picture(path, room, mode)
    if picture.shape != tuple(shape):
        raise DataError(f"data {path}: altered while it was read; read it anew")
    return picture.decode(room)
