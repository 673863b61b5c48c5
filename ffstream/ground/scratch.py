"""Folders for what ends with a process, outside of any run; those that killed processes left go at the next start."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ffstream.ground.files import storage_errors, suppress_each
from ffstream.ground.folder import Folder
from ffstream.ground.processes import is_of_dead_process, make_tag

_PREFIX = "ffstream-scratch-"
_NAME = re.compile(re.escape(_PREFIX) + r"(\d+-\d+-[0-9a-f]{8})-\w+")


@contextlib.contextmanager
def make_scratch(above: Path | None = None, identity: str = "") -> Iterator[Folder]:
    """A new folder for this process alone, in the system's folder for such or in `above`; it is gone on leaving."""
    place = above if above is not None else Path(tempfile.gettempdir())
    remove_left_over(place)
    with storage_errors(place):
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{make_tag()}-", dir=place))
    try:
        yield Folder(path, identity)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_left_over(place: Path) -> None:
    """Remove the folders there that this user's processes left which are gone. No link is followed."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        found = [entry for entry in entries if _is_left_over(entry)]
        suppress_each(lambda entry=entry: shutil.rmtree(entry.path) for entry in found)  # type: ignore[misc]


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    name = _NAME.fullmatch(entry.name)
    if name is None or not is_of_dead_process(name[1]) or not entry.is_dir(follow_symlinks=False):
        return False
    return not hasattr(os, "getuid") or entry.stat(follow_symlinks=False).st_uid == os.getuid()
