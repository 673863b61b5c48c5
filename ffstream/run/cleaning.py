"""Removing from a run what is not needed: caches, which can be made again, and files that dead processes left."""

from __future__ import annotations

from ffstream.ground.files import storage_errors
from ffstream.ground.lock import RunLock
from ffstream.run.run import Run
from ffstream.storage.run_directory import RunDirectory


def clean_run(run: Run) -> int:
    """Remove caches and temporary files of a run that is not being trained. Returns the bytes removed.

    All that was committed stays, including the progress of the layer in training: a resume makes the caches again, with
    the same bits. Files that are not the run's are not touched. Raises RunLockedError, RunError, CorruptFileError,
    StorageError.
    """
    cache_dir = run.config.cache.folder
    with storage_errors(run.path, "remove"), RunLock(run.path, needs_room=False) as lock:
        directory = RunDirectory(run.path, lock)
        directory.check_is_run()
        directory.folder.identity = directory.read_identity() or ""
        caches = directory.caches(cache_dir)
        with caches.locked():
            num_bytes = directory.remove_temporaries() + caches.drop()
        num_bytes += directory.initial.drop(directory.count_layers())
        if directory.has_stale_progress():  # the layer is committed already
            num_bytes += directory.drop_progress()
    return num_bytes
