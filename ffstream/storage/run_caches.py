"""The activation caches of a run's disk tier: the folder in which they lie, in the run or on another disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ffstream.errors import StorageError
from ffstream.ground.files import storage_errors, to_absolute
from ffstream.ground.folder import Folder
from ffstream.ground.lock import RunLock
from ffstream.storage.identity import CACHE
from ffstream.storage.run_names import CACHE_NAMES, SHARD_NAMES, find_run, is_run
from ffstream.storage.run_root import RunRoot


class RunCaches:
    """Finds, locks and removes the caches of one run; `cache_dir` is the folder on another disk that it was given."""

    def __init__(self, root: RunRoot, cache_dir: str = "") -> None:
        self._root, self._dir = root, cache_dir
        self._folder, self._path = root.folder, root.path

    def open(self, *, make: bool = False) -> tuple[Folder, str]:
        """The folder, and the name below it, under which the caches of this run lie: in the run or on another disk."""
        own = f"ffstream-{self._root.read_identity()}" if self._root.marker is not None else ""
        kind = None if self._dir else self._folder.find_kind(CACHE)
        if kind == "a folder" or (kind is None and not self._dir):
            if make and kind is None:
                self._folder.make_folder(CACHE)
            return self._folder, f"{CACHE}/{own}" if own else CACHE
        if make:
            self.check_base()
        return Folder(self.base, self._folder.identity), own

    def check_base(self) -> None:
        """Raise StorageError when the folder for caches is missing, or is part of a run."""
        base = self.base
        target, own = to_absolute(base).resolve(), to_absolute(self._path).resolve()
        is_own = target == own / CACHE
        other = None if is_own else target if is_run(target) else find_run(target)
        if not is_own and own in (target, *target.parents):  # also while there is no run in this folder yet
            other = self._path
        if other is not None:
            raise StorageError(f"cache {base}: is a part of the run {other}; choose another --cache-dir, or link")
        if not base.is_dir() and (self._dir or self._folder.find_kind(CACHE) is not None):
            raise StorageError(f"cache {base}: is no folder; make it, or choose another --cache-dir")
        if base.is_dir() and not os.access(base, os.W_OK | os.X_OK):
            raise StorageError(f"cache {base}: cannot be written; mend its permissions, or choose another --cache-dir")

    @contextlib.contextmanager
    def locked(self, *, make: bool = False) -> Iterator[None]:
        """Lock caches that lie on another disk: a copy of the run has the same identity and would use them too."""
        folder, name = self.open(make=make)
        if folder is self._folder or not name or not (make or folder.find_kind(name)):
            yield
            return
        with storage_errors(folder.path / name):
            folder.make_folder(name)
        with contextlib.ExitStack() as stack:
            stack.callback(folder.remove_if_empty, name)
            lock = stack.enter_context(RunLock(folder.path / name, noun="cache", needs_room=make))
            stack.callback(lock.remove)
            yield

    @property
    def base(self) -> Path:
        """The folder in which caches lie."""
        return Path(self._dir) if self._dir else self._path / CACHE

    def names(self) -> list[str]:
        """The names of the existing caches, below the folder that `open` returns."""
        folder, prefix = self.open()
        names = folder.names(prefix) if prefix else []
        return [f"{prefix}/{name}" for name in names if CACHE_NAMES.fullmatch(name)]

    def drop(self, kept: Sequence[str] | None = None) -> int:
        """Remove all caches and their folder, or only those that are not in `kept`. Returns the bytes removed."""
        folder, prefix = self.open()
        if self._root.marker is None:
            return 0
        names = [name for name in self.names() if name not in (kept or ())]
        num_bytes = sum(folder.remove_matching(name, *SHARD_NAMES) for name in names)
        if kept is not None:
            return num_bytes
        folder.remove_if_empty(prefix)
        if not self._dir and self._folder.find_kind(CACHE) == "a folder":
            self._folder.remove_if_empty(CACHE)
        return num_bytes

    def remove_half_shards(self) -> int:
        """Remove the half-written shards of the run's caches. Returns the bytes removed.

        Only the holder of the caches may call this: a copy of the run has the same identity, and may be using them.
        """
        folder, _ = self.open()
        names = self.names() if self._root.marker is not None else []
        return sum(folder.remove_matching(name, SHARD_NAMES[1]) for name in names)
