"""The files in and below a folder."""

from __future__ import annotations

import os
from pathlib import Path


def list_files(folder: Path, endings: tuple[str, ...], *, follows_links: bool) -> list[Path]:
    """Whatever is no folder and has a name with one of the endings, in no order. Raises OSError.

    What is listed need not be a regular file. Every folder is entered once, however many links lead to it, so that
    links that lead back end; of its names the one without links counts.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    waiting, linked = [folder], list[Path]()  # folders
    while waiting or linked:
        place = (waiting or linked).pop()
        status = place.stat()
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        for entry in list_entries(place):
            if not leads_to_folder(entry):
                if entry.name.lower().endswith(endings):
                    found.append(place / entry.name)
            elif not entry.is_symlink():
                waiting.append(place / entry.name)
            elif follows_links:
                linked.append(place / entry.name)
    return found


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
