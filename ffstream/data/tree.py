"""Lists what is in and below a folder of pictures, by the same rules for training and for prediction."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ffstream.data.picture_file import PICTURES, begins_like_picture
from ffstream.ground.lock import LOCK, is_holder_name

# Files that systems and tools leave in folders. They are skipped without a note.
_OF_THE_SYSTEM = (".ds_store", "thumbs.db", "desktop.ini", ".directory", ".gitkeep", ".gitignore")
_FOLDERS_OF_THE_SYSTEM = ("__macosx",)
_OF_RUN = "run.json"
_NUM_NAMED = 2

# The device and inode numbers of a folder, the same for every path that leads to it.
FolderKey = tuple[int, int]


@dataclass
class Tree:
    """The pictures in and below a folder, and everything else there, each with the reason why it is not read."""

    pictures: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def walk(folder: Path, others: Iterable[Path] = ()) -> Tree:
    """Find all pictures in and below a folder, sorted by folder and name. Raises OSError.

    A picture is any entry, except a folder, that has the suffix or the first bytes of a picture. Hidden files and
    folders are left out, and so are runs. Links to folders are followed, but no folder is entered twice, so that links
    that lead back do no harm. The folders `others` are not entered, as they are read by themselves. Of several paths to
    a folder, the one without links is used.
    """
    found, entered = Tree(), {key for other in others if (key := find_key(other)) is not None}
    entered.discard(key_of(folder.stat()))
    waiting, linked = [folder], list[Path]()  # folders that are still to be entered
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
    """Add one entry of a folder to `found`, or to the folders in `waiting` or `linked`."""
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
    """The folders in a folder and links to folders, sorted by name, except hidden ones and runs. Raises OSError."""
    found = (entry for entry in list_entries(folder) if leads_to_folder(entry))
    return [folder / entry.name for entry in found if not is_hidden(entry.name) and not holds_runs(folder / entry.name)]


def list_others(folder: Path) -> list[str]:
    """What a folder holds beside the folders of `list_folders` and system files, with reasons. Raises OSError."""
    found, folders = Tree(), list[Path]()
    for entry in list_entries(folder):
        _sort_in(folder / entry.name, entry, found, folders, folders)
    return sorted([*(f"{picture} (a picture beside the folders)" for picture in found.pictures), *found.left_out])


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that cannot be followed is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Whether a folder of this name is hidden or belongs to the system."""
    return name.startswith(".") or name.lower() in _FOLDERS_OF_THE_SYSTEM


def holds_runs(folder: Path) -> bool:
    """Whether a folder is a run, or holds only runs, as the default folder of runs does."""
    if _is_run(folder):
        return True
    try:
        entries = list_entries(folder)
    except OSError:  # whoever reads the folder next reports the error
        return False
    return bool(entries) and all(leads_to_folder(entry) and _is_run(folder / entry.name) for entry in entries)


def _is_run(folder: Path) -> bool:
    """Whether a folder has a file that marks a run, or the lock of a run that is being started."""
    if (folder / _OF_RUN).is_file():
        return True
    return (folder / LOCK).is_file() and any(is_holder_name(entry.name) for entry in list_entries(folder))


def find_key(folder: Path) -> FolderKey | None:
    """The key of the folder that a path leads to; None where there is none."""
    try:
        return key_of(folder.stat())
    except OSError:
        return None


def key_of(status: os.stat_result) -> FolderKey:
    """The key of the folder with this status."""
    return status.st_dev, status.st_ino


def describe_left_out(left_out: list[str]) -> str | None:
    """A note that names the first files that are not read, and counts the rest; None if all are read."""
    if not left_out:
        return None
    more = f" and {len(left_out) - _NUM_NAMED} more" if len(left_out) > _NUM_NAMED else ""
    return f"not read: {', '.join(left_out[:_NUM_NAMED])}{more}"
