"""A folder of images by class: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or FOLDER/CLASS/*.png."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.data.picture import PICTURES, Picture, open_picture
from ffstream.data.room import Room
from ffstream.data.tree import leads_to_folder, list_entries, list_files
from ffstream.errors import DataError

_LEAVE_OUT = "leave such files out with --bad-images skip"


def load_folder(path: Path, *, skips_bad: bool = False, room: Room | None = None) -> Dataset:
    """Read a folder of images, all of one size. Raises DataError naming the first file that does not fit.

    Images are grey when the first one for training is, else RGB. Without a `train` folder there is no test split. With
    `skips_bad`, files that cannot be read, and those of another size than most, are left out, and counted. Raises
    BudgetError when the images do not fit in the room, before more than the first is decoded, or, of files that may be
    left out, before there is none.
    """
    room = room or Room()
    with _listing_errors(path):
        has_parts, has_test = (path / "train").is_dir(), (path / "test").is_dir()
    left_out: list[str] = []
    places = [path / "train"] if has_parts else [path]
    places += [path / "test"] if has_parts and has_test else []
    splits: list[Split] = []
    names: list[tuple[str, ...]] = []
    for place in places:
        found, samples = _list_samples(place)
        names.append(found)
        if found != names[0]:
            raise DataError(f"data {path}: classes of train {names[0]} and test {found} differ")
        mode = None
        if splits:
            mode = "L" if splits[0].images.dim() == 3 else "RGB"
        images, labels = (
            _read_most(place, samples, mode, room, left_out) if skips_bad else _read_all(place, samples, mode, room)
        )
        splits.append(Split(images, labels))
    return check_dataset(str(path), splits[0], splits[1] if len(splits) > 1 else None, names[0], left_out)


# A file, and the number of its class.
_Sample = tuple[Path, int]


def _list_samples(path: Path) -> tuple[tuple[str, ...], list[_Sample]]:
    """The names of the classes, and their files, in the order of the names of folders and of files."""
    samples = []
    with _listing_errors(path):
        names = tuple(entry.name for entry in list_entries(path) if leads_to_folder(entry))
        if not names:
            raise DataError(f"data {path}: found no folder in it, needs one folder of images a class")
        for label, name in enumerate(names):
            files = list_files(path / name, PICTURES, follows_links=True)
            if not files:
                raise DataError(f"data {path}: found no image in {name}, needs one folder of images a class")
            samples += [(file, label) for file in sorted(files, key=lambda file: (str(file.parent), file.name))]
    return names, samples


@contextlib.contextmanager
def _listing_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or path
        raise DataError(f"data {place}: cannot be read ({error.strerror}); mend its permissions") from error


def _read_all(path: Path, samples: list[_Sample], mode: str | None, room: Room) -> tuple[Tensor, Tensor]:
    """Pictures of one mode, by default the first one's, and one shape, with labels. Raises DataError for any other."""
    images = None
    for number, (file, _) in enumerate(samples):
        try:
            picture = open_picture(file, room, mode)
            if images is None:
                mode = picture.mode
                images = room.allocate(f"data {path}", (len(samples), *picture.shape), torch.uint8)
            shape = tuple(images.shape[1:])
            if picture.shape != shape:
                raise DataError(f"{_of_another_shape(file, picture.shape, shape)}; resize all to one size")
            images.numpy()[number] = picture.decode(room)
        except DataError as error:
            raise DataError(f"{error}, or {_LEAVE_OUT}") from error
    assert images is not None  # every class has a file
    return images, torch.tensor([label for _, label in samples], dtype=torch.int64)


def _read_most(
    path: Path, samples: list[_Sample], mode: str | None, room: Room, left_out: list[str]
) -> tuple[Tensor, Tensor]:
    """Pictures of the shape that most have; what is wrong with a file is added to `left_out`."""
    noun, taken_bytes = f"data {path}", 0
    found: list[tuple[Path, Picture, int]] = []
    for file, label in samples:
        try:
            picture = open_picture(file, room, mode)
            image = picture.decode(room)
        except DataError as error:
            left_out.append(str(error))
            continue
        room.take(noun, image.nbytes)
        taken_bytes += image.nbytes
        mode = picture.mode
        found.append((file, image, label))
    if not found:
        raise DataError(f"{noun}: found no image that can be read; the last of {len(samples)}: {left_out[-1]}")
    ((shape, _),) = Counter(image.shape for _, image, _ in found).most_common(1)
    left_out += [_of_another_shape(file, image.shape, shape) for file, image, _ in found if image.shape != shape]
    kept = [(image, label) for _, image, label in found if image.shape == shape]
    images = room.allocate(noun, (len(kept), *shape), torch.uint8)
    for number, (image, _) in enumerate(kept):
        images.numpy()[number] = image
    room.give_back(taken_bytes)
    return images, torch.tensor([label for _, label in kept], dtype=torch.int64)


def _of_another_shape(file: Path, found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return f"data {file}: image of shape {found}, others have {shape}"
