"""Loads a folder of images by class: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or FOLDER/CLASS/*.png."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ffstream.data.colours import WHITE, is_coloured
from ffstream.data.dataset import Dataset, Split, check_dataset
from ffstream.data.picture_file import open_picture
from ffstream.data.room import Room
from ffstream.data.split_folders import check_class, find_layout, list_classes
from ffstream.data.tree import describe_left_out, list_others, walk
from ffstream.errors import DataError

_MASK = re.compile(r"(.+?)[ _.-](?:mask|masks|seg|segmentation|groundtruth|gt)(?:[ _.-]?\d+)?$")
_LEAVE_OUT = "leave such files out with --bad-images skip"


def load_folder(path: Path, *, skips_bad: bool = False, room: Room | None = None) -> Dataset:
    """Read a folder of images, all of one size. Raises DataError naming the first file that does not fit.

    Images are grey when all files of all splits are, else RGB. With `skips_bad`, files that cannot be read, and those
    of another size than most training images, are left out and counted. Whatever else the folder holds is named in the
    notes. Raises BudgetError when the images do not fit in the room, before memory for them is allocated.
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
        splits = {split: part.read(*asked, room, bad, skips_bad=skips_bad) for split, part in parts.items()}
    num_images = sum(len(split) for split in splits.values())
    coloured = [path for part in parts.values() for path in part.coloured]
    notes = layout.notes + [note for part in parts.values() for note in part.notes]
    # Of photographs, a few are often of greys alone; others are a surprise if most are, or if files are of a grey mode.
    is_surprise = 2 * len(coloured) < num_images or any(
        head.mode == "L" for part in parts.values() for head in part.heads
    )
    if 0 < len(coloured) < num_images and is_surprise:
        notes.append(
            f"{len(coloured)} of {num_images} images are in colour, such as {coloured[0]}, so all are read in colour"
        )
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
        files=[head.path for head in parts["train"].heads],
        white=WHITE,
    )


def _find_mode_and_size(parts: Mapping[str, _Part]) -> tuple[str, tuple[int, ...]]:
    """The mode and size that all pictures are read in: RGB if any is in colour, and the most common training size."""
    has_colours = any(head.mode == "RGB" for part in parts.values() for head in part.heads)
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


@dataclass(frozen=True)
class _Head:
    """What is known of a picture before it is decoded."""

    path: Path
    label: int
    mode: str
    size: tuple[int, ...]  # (height, width)


@dataclass
class _Part:
    """The files of a split."""

    place: Path
    class_names: tuple[str, ...]
    samples: list[tuple[Path, int]]  # each with the number of its class
    left_out: list[str]
    notes: list[str]
    heads: list[_Head] = field(default_factory=list)
    coloured: list[Path] = field(default_factory=list)  # of those that are read in colour, those that show any

    def look(self, room: Room, bad: list[str], *, skips_bad: bool) -> None:
        """Read the headers of all files. With `skips_bad`, errors of single files are added to `bad` and not raised."""
        for file, label in self.samples:
            try:
                picture = open_picture(file, room)
                picture.check_is_opaque(room)
            except DataError as error:
                if not skips_bad:
                    raise DataError(f"{error}, or {_LEAVE_OUT}") from error
                bad.append(str(error))
                continue
            self.heads.append(_Head(file, label, picture.mode, picture.shape[:2]))
        if not self.heads:
            raise DataError(
                f"data {self.place}: found no image that can be read; the last of {len(self.samples)}: {bad[-1]}"
            )

    def read(self, mode: str, size: tuple[int, ...], room: Room, bad: list[str], *, skips_bad: bool) -> Split:
        """Decode all pictures of one size. `heads` keeps those that could be decoded."""
        odd = [head for head in self.heads if head.size != size]
        if odd and not skips_bad:
            raise DataError(f"{_of_another_size(odd[0], size)}; resize all to one size, or {_LEAVE_OUT}")
        bad += [_of_another_size(head, size) for head in odd]
        heads, self.heads, self.coloured = [head for head in self.heads if head.size == size], [], []
        shape = size if mode == "L" else (*size, 3)
        images = room.allocate(f"data {self.place}", (len(heads), *shape), torch.uint8)
        for head in heads:
            try:
                picture = open_picture(head.path, room, mode)
                if picture.shape != shape:
                    raise DataError(f"data {head.path}: altered while it was read; read it anew")
                pixels = picture.decode(room)
                images.numpy()[len(self.heads)] = pixels
            except DataError as error:
                if not skips_bad:
                    raise DataError(f"{error}, or {_LEAVE_OUT}") from error
                bad.append(str(error))
                continue
            self.heads.append(head)
            if mode == "RGB" and bool(is_coloured(torch.from_numpy(pixels)[None])[0]):
                self.coloured.append(head.path)
        if not self.heads:
            raise DataError(f"data {self.place}: found no image that can be read; the last of {len(heads)}: {bad[-1]}")
        return Split(images[: len(self.heads)], torch.tensor([head.label for head in self.heads], dtype=torch.int64))


def _list_part(place: Path, parts: list[Path]) -> _Part:
    """The classes of a split and their files, sorted by names of folders and files. Raises DataError, OSError."""
    classes = list_classes(place)
    found = _Part(place, tuple(folder.name for folder in classes), [], list_others(place), [])
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
        found.samples += [(file, label) for file in tree.pictures]
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


def _of_another_size(head: _Head, size: tuple[int, ...]) -> str:
    return f"data {head.path}: image of shape {head.size}, most others have {size}"
