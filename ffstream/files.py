"""Durable files: temporary file in the same folder, flush, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ffstream.errors import StorageError

TEMPORARY = ".tmp-"  # what a file is called until it is whole and durable
_UMASK = os.umask(0)  # can only be read by setting it; once, before there are threads
os.umask(_UMASK)
_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full, failing or forbidden disk into a StorageError that names the file and what to do.

    Some libraries wrap the system's error in their own type and keep only its text, so the text is read as well.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        raise StorageError(_storage_message(path, str(error.strerror))) from error
    except Exception as error:
        if "os error" not in str(error) or type(error).__name__ != "SafetensorError":
            raise
        raise StorageError(_storage_message(path, str(error))) from error


def _storage_message(path: Path, reason: str) -> str:
    return (
        f"cannot write {path}: {reason}; free space or mend permissions there, then resume: "
        "nothing that was committed is lost"
    )


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, durably; on any failure it is removed."""
    with storage_errors(path):
        temporary = make_temporary(path)
        with removed_on_error(temporary):
            yield temporary
            publish(temporary, path)


def make_temporary(path: Path) -> Path:
    """An empty file in the same folder, which is made when it is not there."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    os.close(handle)
    return Path(name)


@contextlib.contextmanager
def removed_on_error(temporary: Path) -> Iterator[None]:
    """Remove a half-written file when what is done with it fails, as far as a failing disk lets it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def publish(temporary: Path, path: Path) -> None:
    """Write a whole file through to the disk, then give it its name, durably."""
    temporary.chmod(0o666 & ~_UMASK)  # mkstemp and safetensors leave 0600
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` durably, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing, durably: or all that is in it goes with the power."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left half-written anywhere below `folder`, as far as a failing disk lets it."""
    with contextlib.suppress(OSError):
        for path in folder.rglob(f"{TEMPORARY}*"):
            path.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hex digest of a file. Raises OSError when it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
