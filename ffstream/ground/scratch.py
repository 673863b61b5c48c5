"""Temporary folders outside of any run. Those that killed processes left are removed when the next one is made."""

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
    """Yield a new folder for this process alone, in `above` or the system's temporary folder; removed on leaving."""
    place = above if above is not None else Path(tempfile.gettempdir())
    remove_left_over(place)
    with storage_errors(place):
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{make_tag()}-", dir=place))
    try:
        yield Folder(path, identity)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_left_over(place: Path) -> None:
    """Remove the temporary folders in `place` that ended processes of this user left. No link is followed."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        found = [entry for entry in entries if _is_left_over(entry)]
        suppress_each(lambda entry=entry: shutil.rmtree(entry.path) for entry in found)  # type: ignore[misc]


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    name = _NAME.fullmatch(entry.name)
    if name is None or not is_of_dead_process(name[1]) or not entry.is_dir(follow_symlinks=False):
        return False
    return not hasattr(os, "getuid") or entry.stat(follow_symlinks=False).st_uid == os.getuid()
