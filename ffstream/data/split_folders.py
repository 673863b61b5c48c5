"""Finds which folders in a folder of pictures are its splits, and which are its classes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ffstream.data.tree import list_folders, list_others, walk
from ffstream.errors import DataError

# Common names of splits, as the last word of a folder's name once the words in _EMPTY_WORDS are taken off its end.
_WORDS = {
    "train": ("train", "training", "trainset", "trn"),
    "validation": ("val", "valid", "validation", "validate", "valset", "dev"),
    "test": ("test", "testing", "testset", "tst"),
}
_EMPTY_WORDS = ("set", "data", "dataset", "split", "images", "image", "imgs", "img", "pictures", "photos", "files")
_RULE = "FOLDER/train/CLASS/*.png with test and validation beside train, or FOLDER/CLASS/*.png"


@dataclass
class Layout:
    """The folder of each split, which holds the folders of its classes; what is not used; and notes for the user."""

    places: dict[str, Path]
    left_out: list[str]
    notes: list[str] = field(default_factory=list)


def find_split(name: str) -> str | None:
    """Which split a folder's name stands for, "train", "validation" or "test"; None for any other name."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    words = [word.lower() for word in words]
    while len(words) > 1 and words[-1] in _EMPTY_WORDS:
        words.pop()
    return next((split for split, known in _WORDS.items() if words and words[-1] in known), None)


def find_layout(path: Path) -> Layout:
    """Find the splits of a folder by their common names, also one level down, as in train/train.

    Without any split, the folder itself is the training split. If only one split is held out, it is the test split,
    even where it is called validation. Raises DataError where the splits are unclear, and OSError.
    """
    folders = list_folders(path)
    by_split: dict[str, list[Path]] = {}
    for folder in folders:
        split = find_split(folder.name)
        if split is not None:
            by_split.setdefault(split, []).append(folder)
    if not by_split:
        _check_no_prefixes(path, [folder.name for folder in folders])
        return Layout({"train": path}, [])
    for split, found in by_split.items():
        if len(found) > 1:
            raise DataError(
                f"data {path}: both {found[0].name} and {found[1].name} read like its {split} split, allowed one; "
                "rename or move the other"
            )
    if "train" not in by_split:
        named = next(iter(by_split.values()))[0].name
        raise DataError(
            f"data {path}: {named} reads like a split, but there is no train beside it; allowed {_RULE}; rename it if "
            "it is a class"
        )
    rest = [folder for folder in folders if find_split(folder.name) is None]
    left_out = [f"{folder} (a folder beside the splits)" for folder in rest] + list_others(path)
    places = {split: _enter(found[0], split, left_out) for split, found in by_split.items()}
    train = places["train"]
    if rest and not list_folders(train) and walk(train).pictures:
        raise DataError(
            f"data {path}: {train.name} reads like a split, but holds pictures and no folders of classes; allowed "
            f"{_RULE}; rename it if it is a class, as {rest[0].name} may be"
        )
    layout = Layout(places, left_out)
    for split in ("test", "validation"):
        if split in places and not list_folders(places[split]) and walk(places[split]).pictures:
            layout.left_out.append(f"{places.pop(split)} (pictures without folders of classes)")
    if "test" not in places and "validation" in places:
        places["test"] = places.pop("validation")
        layout.notes.append(f"{places['test']} is taken as the test split, as there is no other")
    return layout


def _check_no_prefixes(path: Path, names: list[str]) -> None:
    """Raise DataError for names of classes of which some begin like a training split, and others like a held-out one.

    Such as trainA and testA, or train_cats and test_cats; a class that is called like one of them alone may be one.
    """
    begun: dict[str, str] = {}
    for name in names:
        first = re.match(r"([A-Za-z][a-z]*)(?=[^a-z]|$)", name)
        split = next((split for split, known in _WORDS.items() if first and first[1].lower() in known), None)
        if split is not None:
            begun.setdefault(split, name)
    if "train" in begun and len(begun) > 1:
        other = next(name for split, name in begun.items() if split != "train")
        raise DataError(
            f"data {path}: {begun['train']} and {other} read like splits and classes in one name; allowed {_RULE}; "
            "move "
            "each class into the folder of its split"
        )


def _enter(folder: Path, split: str, left_out: list[str]) -> Path:
    """The folder of a split, or the only folder in it if that is named after the same split, as in some archives."""
    within = list_folders(folder)
    while len(within) == 1 and find_split(within[0].name) == split:
        left_out += list_others(folder)
        folder, within = within[0], list_folders(within[0])
    return folder


def list_classes(place: Path) -> list[Path]:
    """The folders of the classes, sorted by name. Raises DataError where there are none, and OSError."""
    found = list_folders(place)
    if not found:
        raise DataError(f"data {place}: found no folder in it, needs one folder of images a class: {_RULE}")
    return found


def check_class(place: Path, folder: Path, pictures: list[Path]) -> None:
    """Raise DataError where a folder cannot be a class: it holds no pictures, or holds them only in its subfolders."""
    if not pictures:
        raise DataError(f"data {place}: found no image in {folder.name}, needs one folder of images a class")
    if not any(picture.parent == folder for picture in pictures):
        raise DataError(
            f"data {place}: {folder.name} holds no image itself, but folders that do, such as {pictures[0].parent}; "
            f"allowed {_RULE}; give the folder above the classes, or move their images up"
        )
