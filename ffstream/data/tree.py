"""What is in and below a folder of pictures: one rule for training and for predictions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ffstream.data.picture_file import PICTURES, begins_like_picture

# What systems leave in folders that people look at. Nobody misses it.
_OF_THE_SYSTEM = (".ds_store", "thumbs.db", "desktop.ini", ".directory", ".gitkeep", ".gitignore")
_FOLDERS_OF_THE_SYSTEM = ("__macosx",)
_OF_RUNS = ("run.json", "lock.json")
_NUM_NAMED = 2

# The device and the number of a folder, whatever name leads to it.
FolderKey = tuple[int, int]


@dataclass
class Tree:
    """The pictures in and below a folder, and what else is there, each with the reason why it is not read."""

    pictures: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def walk(folder: Path, others: Iterable[Path] = ()) -> Tree:
    """Find all pictures in and below a folder, in the order of their folders and names. Raises OSError.

    A picture is whatever is no folder and has the name of one, or begins like one. What is hidden is left out. Links to
    folders are followed, but no folder is entered twice, nor any of the `others`, which are read by themselves: links
    that lead back end. Of the names of a folder the one without links counts.
    """
    found, entered = Tree(), {key for other in others if (key := find_key(other)) is not None}
    entered.discard(key_of(folder.stat()))
    waiting, linked = [folder], list[Path]()  # folders
    while waiting or linked:
        place = (waiting or linked).pop()
        key = key_of(place.stat())
        if key in entered:
            found.left_out.append(f"{place} (a link to a folder that is read already)")
            continue
        entered.add(key)
        for entry in list_entries(place):
            _sort_in(place / entry.name, entry, found, waiting, linked)
    found.pictures.sort(key=lambda file: (str(file.parent), file.name))
    found.left_out.sort()
    return found


def _sort_in(path: Path, entry: os.DirEntry[str], found: Tree, waiting: list[Path], linked: list[Path]) -> None:
    """Put one entry of a folder where it belongs."""
    name = entry.name.lower()
    if leads_to_folder(entry):
        if is_hidden(entry.name):
            found.left_out.append(f"{path} (a hidden folder)")
        elif holds_runs(path):
            found.left_out.append(f"{path} (runs)")
        else:
            (linked if entry.is_symlink() else waiting).append(path)
    elif name in _OF_THE_SYSTEM:
        return
    elif name.startswith("."):
        found.left_out.append(f"{path} (hidden)")
    elif name.endswith(PICTURES) or begins_like_picture(path):
        found.pictures.append(path)
    else:
        found.left_out.append(f"{path} (no picture of a format that is read)")


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder, links to them too, in the order of their names; hidden ones are none. Raises OSError."""
    found = (entry for entry in list_entries(folder) if leads_to_folder(entry))
    return [folder / entry.name for entry in found if not is_hidden(entry.name) and not holds_runs(folder / entry.name)]


def list_others(folder: Path) -> list[str]:
    """What is in a folder beside folders that are not hidden, as far as somebody may have meant it. Raises OSError."""
    found, folders = Tree(), list[Path]()
    for entry in list_entries(folder):
        _sort_in(folder / entry.name, entry, found, folders, folders)
    return sorted([*(f"{picture} (a picture beside the folders)" for picture in found.pictures), *found.left_out])


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in the order of the names. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that cannot be followed is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Whether nobody is meant to see a folder of that name."""
    return name.startswith(".") or name.lower() in _FOLDERS_OF_THE_SYSTEM


def holds_runs(folder: Path) -> bool:
    """Whether a folder is a run, or holds nothing but runs, as the one that runs without a name are put into."""
    if _is_run(folder):
        return True
    try:
        entries = list_entries(folder)
    except OSError:  # of which its reader will say more
        return False
    return bool(entries) and all(leads_to_folder(entry) and _is_run(folder / entry.name) for entry in entries)


def _is_run(folder: Path) -> bool:
    """Whether a folder has the files by which a run, or one that is being started, is known."""
    return any((folder / name).is_file() for name in _OF_RUNS)


def find_key(folder: Path) -> FolderKey | None:
    """Which folder it is that a path leads to, None where there is none."""
    try:
        return key_of(folder.stat())
    except OSError:
        return None


def key_of(status: os.stat_result) -> FolderKey:
    """Which folder it is."""
    return status.st_dev, status.st_ino


def describe_left_out(left_out: list[str]) -> str | None:
    """A sentence that counts and names what is not read; None where that is nothing."""
    if not left_out:
        return None
    more = f" and {len(left_out) - _NUM_NAMED} more" if len(left_out) > _NUM_NAMED else ""
    return f"not read: {', '.join(left_out[:_NUM_NAMED])}{more}"
