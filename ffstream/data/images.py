"""Loads images without labels, to be classified, from image files, folders of them, and files of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ffstream.data.array_file import ArrayFile
from ffstream.data.array_formats import SUFFIXES, Header
from ffstream.data.array_source import find_image_type, find_images
from ffstream.data.colours import WHITE
from ffstream.data.fit import check_values, count_images, without_ones
from ffstream.data.picture_file import PICTURES, begins_like_picture, open_picture
from ffstream.data.room import Room, tensor_bytes
from ffstream.data.tree import describe_left_out, walk
from ffstream.errors import DataError

_MOST_TONES = 16  # the most that white is in data of few grey levels, such as digits of 0 to 16
_NAME_BYTES = 80  # memory per image name, beside its letters


@dataclass(frozen=True)
class NamedImages:
    """Images (n, *shape) and their names: the file or, for arrays, the file and the number of the image in it."""

    names: list[str]
    images: Tensor
    note: str | None = None  # on files that were not read, and on doubtful values of black and white

    def __len__(self) -> int:
        return len(self.names)


def load_images(
    paths: Sequence[str | Path], shape: tuple[int, ...], white: float, black: float = 0.0, room_bytes: int | None = None
) -> NamedImages:
    """Read images of one shape from files, and from all image files in and below folders, sorted by name.

    Arrays are taken to be in the units of the training data. In image files, white becomes `white` and black becomes
    `black`; colours become grey where `shape` has no channels. Raises DataError that names a file that does not fit,
    and BudgetError, before any image is read, when all together take more than `room_bytes` (by default, what is free).
    """
    room = Room(room_bytes)
    left_out: list[str] = []
    parts = [_plan_part(file, shape, white, black) for path in paths for file in _list_files(Path(path), left_out)]
    noun = f"data {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    dtype = torch.uint8 if all(part.dtype == torch.uint8 for part in parts) else torch.float32
    num_images = sum(part.num_images for part in parts)
    names_bytes = sum((len(str(part.path)) + _NAME_BYTES) * part.num_images for part in parts)
    room.check(noun, tensor_bytes((num_images, *shape), dtype) + names_bytes)
    room.take(noun, names_bytes)
    images, start = room.allocate(noun, (num_images, *shape), dtype), 0
    for part in parts:
        part.read(images[start : start + part.num_images], room)
        start += part.num_images
    pictures = [part for part in parts if isinstance(part, _PicturePart)]
    notes = [describe_left_out(left_out)]
    made_grey = [part for part in pictures if part.was_coloured]
    if made_grey:
        notes.append(
            f"{len(made_grey)} of {len(pictures)} pictures are in colour, such as {made_grey[0].path}, and are read as "
            "grey, as the images are that the run was trained on"
        )
    is_doubtful = black != 0 or _MOST_TONES < white < WHITE / 2  # with few grey levels, the largest value is white
    if is_doubtful and pictures:
        notes.append(
            f"pictures are read with black as {black:g} and white as {white:g}, the least and the largest training "
            "value; if that is wrong, give arrays in place of pictures"
        )
    names = [name for part in parts for name in part.names()]
    return NamedImages(names, images, "; ".join(note for note in notes if note) or None)


@dataclass(frozen=True)
class _ArrayPart:
    """The images of a file of arrays, of which only the headers have been read."""

    path: Path
    array: str
    header: Header
    num_images: int
    dtype: torch.dtype

    def names(self) -> list[str]:
        return [f"{self.path}[{number}]" for number in range(self.num_images)]

    def read(self, target: Tensor, room: Room) -> None:
        with ArrayFile(self.path, str(self.path)) as file:
            if self.array not in file.names or file.header(self.array) != self.header:
                raise DataError(f"data {self.path}: altered while it was read; read it anew")
            file.read(self.array, target)
        check_values(target, f"data {self.path}")


@dataclass
class _PicturePart:
    """A picture, which becomes one image of `shape`, or is refused."""

    path: Path
    shape: tuple[int, ...]
    pixel_shape: tuple[int, ...]
    white: float
    black: float
    was_coloured = False  # true once it was read, if colours were lost
    num_images = 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.white == WHITE else torch.float32

    def names(self) -> list[str]:
        return [str(self.path)]

    def read(self, target: Tensor, room: Room) -> None:
        height, width, *channels = self.pixel_shape
        picture = open_picture(self.path, room, "RGB" if channels else "L")
        self.was_coloured = not channels and picture.shows_colours(room)
        if picture.shape[:2] != (height, width):
            raise DataError(
                f"data {self.path}: found {picture.shape[1]} x {picture.shape[0]} pixels (width x height), allowed "
                f"{width} x {height}, as the run was trained on; resize it"
            )
        pixels = torch.from_numpy(picture.decode(room))
        if self.white != WHITE:
            pixels = pixels.float() * ((self.white - self.black) / WHITE) + self.black
        if channels and self.shape[-1] != 3:
            pixels = pixels.permute(2, 0, 1)
        target.copy_(pixels.reshape(1, *self.shape))


def _plan_part(path: Path, shape: tuple[int, ...], white: float, black: float) -> _ArrayPart | _PicturePart:
    """Find out what a file holds from headers of arrays or the first bytes of a picture. Raises DataError."""
    if path.suffix.lower() in SUFFIXES:
        with ArrayFile(path, str(path)) as file:
            array = find_images(file, str(path))
            header = file.header(array)
        dtype = find_image_type(header, str(path), array)
        return _ArrayPart(path, array, header, count_images(header.shape, shape, f"data {path}"), dtype)
    if not path.exists():
        raise DataError(f"data {path}: no such file or folder")
    if path.suffix.lower() not in PICTURES and not begins_like_picture(path):
        raise DataError(
            f"data {path}: found {path.suffix or 'no suffix'!r}, allowed an image ({', '.join(PICTURES)}), "
            f"arrays ({', '.join(SUFFIXES)}), or a folder of images"
        )
    return _PicturePart(path, shape, _pixel_shape(path, shape), white, black)


def _list_files(path: Path, left_out: list[str]) -> list[Path]:
    """The images in and below a folder, or the path itself if it is no folder. `left_out` gets what is not read."""
    try:
        path.stat()
    except FileNotFoundError:
        return [path]
    except (OSError, ValueError) as error:  # such as a name that is too long
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"data {path}: cannot be read: {reason}; give an image, arrays or a folder") from error
    return _list_images(path, left_out) if path.is_dir() else [path]


def _list_images(folder: Path, left_out: list[str]) -> list[Path]:
    try:
        tree = walk(folder)
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"data {place}: cannot be read: {error.strerror}; mend its permissions") from error
    if not tree.pictures:
        raise DataError(f"data {folder}: found no image in this folder, allowed {', '.join(PICTURES)}")
    left_out += tree.left_out
    return sorted(tree.pictures)


def _pixel_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of pictures that fit images of `shape`: (height, width) or (height, width, 3). Raises DataError."""
    plain = without_ones(shape)
    if len(plain) == 2 or (len(plain) == 3 and plain[2] == 3):
        return plain
    if len(plain) == 3 and plain[0] == 3:
        return (*plain[1:], 3)
    raise DataError(
        f"data {path}: is a picture, but the run was trained on arrays of shape {shape}; give it such arrays "
        f"({', '.join(SUFFIXES)})"
    )
