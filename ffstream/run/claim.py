"""Claiming a folder for a run: it is named, made, locked, and left as it was unless a run was started in it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ffstream.errors import FFStreamError, RunError, StorageError
from ffstream.ground.files import GO_ON, exists, make_folder, storage_errors, sync_folder
from ffstream.ground.lock import RunLock
from ffstream.settings.config import Config
from ffstream.storage.identity import FolderState
from ffstream.storage.run_directory import RunDirectory

_NUM_TRIES = 5
_MOST_LETTERS = 80  # of the data's name, in the default name of a run


def default_run_dirs(config: Config) -> Iterator[Path]:
    """Yield runs/<data>-<layers>x<width>-<time>, then the same with -2, -3 ... appended; existing paths are skipped."""
    data = Path(config.data).stem[:_MOST_LETTERS] or "data"
    name = f"{data}-{config.layers}x{config.width}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return (path for path in map(Path("runs").joinpath, names) if not exists(path))


@contextlib.contextmanager
def _naming_a_start(path: Path) -> Iterator[None]:
    """Where a folder cannot be written before there is a run in it, say that the run is to be started, not resumed."""
    try:
        yield
    except StorageError as error:
        if GO_ON not in str(error) or RunDirectory(path).exists():
            raise
        start = "then start the run again, or choose another --run-dir; there is no run yet"
        raise StorageError(str(error).replace(GO_ON, start)) from error.__cause__


@contextlib.contextmanager
def claim_folder(candidates: Iterable[Path], *, is_new: bool) -> Iterator[RunDirectory]:
    """Lock a folder in which a run exists or may be started, so that no other process starts or trains one meanwhile.

    It is the first of the candidates; if it `is_new`, the first one that this process can make itself, so that two
    processes never share a folder. The folder is checked again under its lock, because another process may just have
    started a run there. Raises RunError for a folder with somebody else's files, RunLockedError, StorageError.
    """
    with contextlib.ExitStack() as stack:
        for number in range(_NUM_TRIES):
            path, made = _make(candidates, is_new=is_new)
            stack.enter_context(_naming_a_start(path))
            stack.callback(_remove_empty, made)
            RunDirectory(path).check_is_free()  # before locking, as lock files must not be put into a foreign folder
            try:
                lock = stack.enter_context(RunLock(path))
                break
            except StorageError as error:
                # Another process had made the folder, started nothing in it, and has just removed it.
                if not isinstance(error.__cause__, FileNotFoundError) or number + 1 == _NUM_TRIES:
                    raise
        directory = RunDirectory(path, lock)
        stack.callback(_remove_unused, directory, lock)
        directory.check_is_free()
        yield directory


def _remove_unused(directory: RunDirectory, lock: RunLock) -> None:
    """Remove the lock's files again if no run was started."""
    with contextlib.suppress(FFStreamError):
        found = directory.survey()
        if found.state is FolderState.FREE and not found.identity:
            lock.remove()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that were made for a run, unless something is in them now."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()
            sync_folder(folder.parent)


def _make(candidates: Iterable[Path], *, is_new: bool) -> tuple[Path, list[Path]]:
    """The folder that was chosen, which exists now, and the folders that were made for it."""
    for path in candidates:
        if path.exists() and not path.is_dir():
            raise RunError(
                f"run {path}: is a file, allowed a folder that is missing, empty or a run; choose another --run-dir"
            )
        with _naming_a_start(path), storage_errors(path):
            made = make_folder(path.parent if is_new else path)
            if not is_new:
                return path, made
            with contextlib.suppress(FileExistsError):  # another process has taken this name
                path.mkdir()
                sync_folder(path.parent)
                return path, [*made, path]
    raise RunError("run: found no name for its folder; choose one with --run-dir")
