"""Loads a folder of images by class: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or FOLDER/CLASS/*.png."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from ffstream.data.colours import WHITE, is_coloured
from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.data.picture_file import open_picture
from ffstream.data.picture_images import PictureImages, PictureNames, decode_as
from ffstream.data.room import Room
from ffstream.data.split_folders import check_class, find_layout, list_classes
from ffstream.data.tree import describe_left_out, list_others, walk
from ffstream.errors import DataError

_MASK = re.compile(r"(.+?)[ _.-](?:mask|masks|seg|segmentation|groundtruth|gt)(?:[ _.-]?\d+)?$")
_LEAVE_OUT = "leave such files out with --bad-images skip"


def load_folder(path: Path, *, skips_bad: bool = False, room: Room | None = None, is_held: bool = True) -> Dataset:
    """Read a folder of images, all of one size. Raises DataError naming the first file that does not fit.

    Images are grey when all files of all splits are, else RGB. With `skips_bad`, files that cannot be read, and those
    of another size than most training images, are left out and counted. Whatever else the folder holds is named in the
    notes. Raises BudgetError when the images do not fit in the room, before memory for them is allocated. Unless
    the data set `is_held` in memory, each picture is decoded to see whether it can be, and again whenever it is read.
    """
    with _listing_errors(path):
        layout = find_layout(path)
        parts = {split: _list_part(place, [path, *layout.places.values()]) for split, place in layout.places.items()}
    for split, part in parts.items():
        if part.class_names != parts["train"].class_names:
            raise DataError(f"data {path}: {_say_difference(parts['train'].class_names, split, part.class_names)}")
    bad, room = list[str](), room or Room()
    for part in parts.values():
        part.look(room, bad, skips_bad=skips_bad)
    splits, asked = dict[str, Split](), None
    while asked != (asked := _find_mode_and_size(parts)):  # again if files that proved bad had decided it
        room.give_back(sum(split.images.nbytes for split in splits.values()))
        splits = {
            split: part.read(*asked, room, bad, skips_bad=skips_bad, is_held=is_held) for split, part in parts.items()
        }
    num_images = sum(len(split) for split in splits.values())
    num_coloured = sum(part.num_coloured for part in parts.values())
    notes = layout.notes + [note for part in parts.values() for note in part.notes]
    # Of photographs, a few are often of greys alone; others are a surprise if most are, or if files are of a grey mode.
    is_surprise = 2 * num_coloured < num_images or not all(part.are_all_rgb for part in parts.values())
    if 0 < num_coloured < num_images and is_surprise:
        first = next(part.first_coloured for part in parts.values() if part.num_coloured)
        notes.append(f"{num_coloured} of {num_images} images are in colour, such as {first}, so all are read in colour")
    left_out = describe_left_out(layout.left_out + [each for part in parts.values() for each in part.left_out])
    notes += [left_out] if left_out is not None else []
    return check_dataset(
        str(path),
        splits["train"],
        splits.get("test"),
        parts["train"].class_names,
        bad,
        validation=splits.get("validation"),
        notes=notes,
        files=parts["train"].kept_names,
        white=WHITE,
    )


def _find_mode_and_size(parts: Mapping[str, _Part]) -> tuple[str, tuple[int, ...]]:
    """The mode and size that all pictures are read in: RGB if any is in colour, and the most common training size."""
    has_colours = any(head.is_rgb for part in parts.values() for head in part.heads)
    ((size, _),) = Counter(head.size for head in parts["train"].heads).most_common(1)
    return "RGB" if has_colours else "L", size


def _say_difference(train: Sequence[str], split: str, names: Sequence[str]) -> str:
    """How the names of classes of two splits differ, so that it is seen where they look alike."""
    alike = [[unicodedata.normalize("NFC", name) for name in each] for each in (train, names)]
    if alike[0] == alike[1]:
        differing = next(pair for pair in zip(train, names, strict=True) if pair[0] != pair[1])
        return (
            f"class {differing[0]!a} of train and {differing[1]!a} of {split} are one name in two forms of "
            "Unicode; rename one of the folders"
        )
    return f"classes of train {tuple(train)} and {split} {tuple(names)} differ; name the folders of both alike"


class _Head(NamedTuple):
    """What is known of a picture before it is decoded."""

    number: int  # in the list of names
    is_rgb: bool
    size: tuple[int, ...]  # (height, width)


class _Heads:
    """The heads of pictures, in few bytes each."""

    def __init__(self) -> None:
        self._values = array("i")

    def append(self, head: _Head) -> None:
        self._values.extend((head.number, head.is_rgb, *head.size))

    def __len__(self) -> int:
        return len(self._values) // 4

    def __iter__(self) -> Iterator[_Head]:
        for at in range(0, len(self._values), 4):
            number, is_rgb, *size = self._values[at : at + 4]
            yield _Head(number, bool(is_rgb), tuple(size))


@dataclass
class _Part:
    """The files of a split."""

    place: Path
    class_names: tuple[str, ...]
    names: PictureNames
    labels: array[int]  # of each name, the number of its class
    left_out: list[str]
    notes: list[str]
    heads: _Heads = field(default_factory=_Heads)
    kept_names: PictureNames = field(init=False)  # of the images that were read
    num_coloured: int = 0  # of those that are read in colour, those that show any
    first_coloured: Path | None = None

    @property
    def are_all_rgb(self) -> bool:
        return all(head.is_rgb for head in self.heads)

    def look(self, room: Room, bad: list[str], *, skips_bad: bool) -> None:
        """Read the headers of all files. With `skips_bad`, errors of single files are added to `bad` and not raised."""
        for number, file in enumerate(self.names):
            try:
                picture = open_picture(file, room)
                picture.check_is_opaque(room)
            except DataError as error:
                if not skips_bad:
                    raise DataError(f"{error}, or {_LEAVE_OUT}") from error
                bad.append(str(error))
                continue
            self.heads.append(_Head(number, picture.mode == "RGB", picture.shape[:2]))
        if not self.heads:
            raise DataError(
                f"data {self.place}: found no image that can be read; the last of {len(self.names)}: {bad[-1]}"
            )

    def read(
        self, mode: str, size: tuple[int, ...], room: Room, bad: list[str], *, skips_bad: bool, is_held: bool
    ) -> Split:
        """Decode all pictures of one size. `heads` keeps those that could be decoded."""
        odd = [head for head in self.heads if head.size != size]
        if odd and not skips_bad:
            raise DataError(f"{self._of_another_size(odd[0], size)}; resize all to one size, or {_LEAVE_OUT}")
        bad += [self._of_another_size(head, size) for head in odd]
        heads, self.heads, self.num_coloured = self.heads, _Heads(), 0
        num_fitting = len(heads) - len(odd)
        shape = size if mode == "L" else (*size, 3)
        held = room.allocate(f"data {self.place}", (num_fitting, *shape), torch.uint8) if is_held else None
        for head in heads:
            if head.size != size:
                continue
            path = self.names[head.number]
            try:
                pixels = decode_as(path, shape, mode, room)
            except DataError as error:
                if not skips_bad:
                    raise DataError(f"{error}, or {_LEAVE_OUT}") from error
                bad.append(str(error))
                continue
            if held is not None:
                held.numpy()[len(self.heads)] = pixels
            self.heads.append(head)
            if mode == "RGB" and bool(is_coloured(torch.from_numpy(pixels)[None])[0]):
                self.first_coloured = path if not self.num_coloured else self.first_coloured
                self.num_coloured += 1
        if not self.heads:
            raise DataError(f"data {self.place}: found no image that can be read; the last of {num_fitting}: {bad[-1]}")
        numbers = [head.number for head in self.heads]
        self.kept_names = self.names.choose(numbers)
        images = PictureImages(self.kept_names, shape, mode) if held is None else held[: len(numbers)]
        return Split(images, torch.tensor(self.labels, dtype=torch.int64)[numbers])

    def _of_another_size(self, head: _Head, size: tuple[int, ...]) -> str:
        return f"data {self.names[head.number]}: image of shape {head.size}, most others have {size}"


def _list_part(place: Path, parts: list[Path]) -> _Part:
    """The classes of a split and their files, sorted by names of folders and files. Raises DataError, OSError."""
    classes = list_classes(place)
    class_names = tuple(folder.name for folder in classes)
    found = _Part(place, class_names, PictureNames(place), array("q"), list_others(place), [])
    for label, folder in enumerate(classes):
        tree = walk(folder, [*parts, *classes])
        check_class(place, folder, tree.pictures)
        below = [picture for picture in tree.pictures if picture.parent != folder]
        if below:
            found.notes.append(
                f"class {folder.name} of {place}: {len(below)} of its {len(tree.pictures)} images lie in folders below "
                f"it, such as {below[0].parent}"
            )
        masks = _find_masks(tree.pictures)
        if masks:
            found.notes.append(
                f"class {folder.name} of {place}: {len(masks)} of its {len(tree.pictures)} images are named like masks "
                f"of others, such as {masks[0].name}, and are read as images; move them elsewhere if they are none"
            )
        found.names.add(tree.pictures)
        found.labels.extend([label] * len(tree.pictures))
        found.left_out += tree.left_out
    return found


def _find_masks(pictures: list[Path]) -> list[Path]:
    """The pictures that are masks of other pictures by their names, as cat_mask.png is of cat.png."""
    stems = {(picture.parent, picture.stem.lower()) for picture in pictures}
    return [
        picture
        for picture in pictures
        if (found := _MASK.match(picture.stem.lower())) is not None and (picture.parent, found[1]) in stems
    ]


@contextlib.contextmanager
def _listing_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or path
        raise DataError(f"data {place}: cannot be read ({error.strerror}); mend its permissions") from error
