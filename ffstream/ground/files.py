"""Files: opened as what they should be, written whole or not at all, and what a failing disk is called."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ffstream.errors import ConfigError, StorageError

MANIFEST_BYTES = 64 << 20  # the most that a manifest or a configuration may have; ours have thousands

# What a file system answers that has no such call: the file is as good as that system keeps any.
_NOT_THERE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"),
)
_notes: list[str] = []
_noted: set[str] = set()


class UnsuitableFileError(OSError):
    """A name leads to something else than the regular file of plausible size that was expected there."""


@contextlib.contextmanager
def storage_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn whatever the system says of a file into a StorageError that names it and says what to do.

    The file that the system's error names is told, else `path`.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, doing) from error


def storage_error(error: OSError, path: Path, doing: str = "write") -> StorageError:
    """What to say of an error of the system while `doing` ("write", "read" or "remove") something with `path`."""
    reason = error.strerror or str(error) or type(error).__name__
    return StorageError(
        f"cannot {doing} {path}: {reason}; free space or mend permissions there, then resume: nothing that was "
        "committed is lost"
        if doing == "write"
        else f"cannot {doing} {path}: {reason}; mend its permissions or the disk that it lies on; nothing was changed"
    )


# --- reading


def describe_kind(mode: int) -> str:
    """What a file of this mode is, for a message."""
    return next((words for holds, words in _KINDS if holds(mode)), "a regular file")


def open_regular(path: str | Path, folder: int | None = None, *, follow: bool = True) -> io.FileIO:
    """Open a regular file for reading, unbuffered; `path` is relative to the descriptor `folder` if one is given.

    Nothing else is opened, as the opening or reading of a FIFO or a device may block or have an effect. Raises
    UnsuitableFileError for it, OSError as `os.open` does.
    """
    found = os.stat(path, dir_fd=folder, follow_symlinks=follow)
    if stat.S_ISREG(found.st_mode):
        flags = os.O_RDONLY | _flag("O_CLOEXEC") | _flag("O_NONBLOCK") | _flag("O_BINARY")
        descriptor = os.open(path, flags | (0 if follow else _flag("O_NOFOLLOW")), dir_fd=folder)
        found = os.fstat(descriptor)  # of what was opened, should the name lead elsewhere by now
        if stat.S_ISREG(found.st_mode):
            return io.FileIO(descriptor, "rb")
        os.close(descriptor)
    raise UnsuitableFileError(errno.EINVAL, f"is {describe_kind(found.st_mode)}, allowed a regular file", str(path))


def read_regular(path: str | Path, most_bytes: int = MANIFEST_BYTES, folder: int | None = None) -> bytes:
    """All of a regular file that may have `most_bytes`. Raises UnsuitableFileError before more is read, OSError."""
    with open_regular(path, folder) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        content = b"" if num_bytes > most_bytes else read_up_to(file, most_bytes + 1)
        if max(num_bytes, len(content)) > most_bytes:
            found = max(num_bytes, len(content))
            raise UnsuitableFileError(errno.EFBIG, f"has {found:,} bytes, allowed {most_bytes:,}", str(path))
    return content


def read_up_to(file: io.FileIO, most_bytes: int) -> bytes:
    """What is left of a file, `most_bytes` at the most."""
    parts = []
    while most_bytes > 0 and (part := file.read(min(most_bytes, 1 << 20))):
        parts.append(part)
        most_bytes -= len(part)
    return b"".join(parts)


def expand_home(text: str | Path) -> Path:
    """A path with the user's home in place of ~; the name of a user who is not there is left as it is.

    Raises ConfigError for an empty text, which pathlib takes for the current folder.
    """
    if text == "":
        raise ConfigError("path '': is empty, allowed the path of a file or folder; '.' is the current folder")
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib raises RuntimeError for it


def exists(path: Path) -> bool:
    """Whether a name is taken, by a broken link too. Raises StorageError when that cannot be told."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
        raise storage_error(reason, path, "read") from error
    return True


def sha256_file(path: Path) -> str:
    """Hex digest of a regular file. Raises OSError when it cannot be read."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- writing


def write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    """Write all of it: an unbuffered file may take less at once."""
    left = memoryview(data).cast("B")
    while len(left):
        left = left[file.write(left) :]


def sync_file(file: io.FileIO) -> None:
    """Write a file through to the disk."""
    os.fsync(file.fileno())


def sync_folder(folder: int | Path) -> None:
    """Make renames and removals in a folder durable, given by its descriptor or its path.

    A file system that has no such call is noted, and taken as it is.
    """
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = folder if isinstance(folder, int) else os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        _note(
            f"this file system cannot write a folder through to its disk ({error.strerror}): what was committed "
            "survives the end of the process, but a loss of power may take the newest of it"
        )
    finally:
        if not isinstance(folder, int):
            os.close(descriptor)


def copy_mode(file: io.FileIO, mode: int) -> None:
    """Give a file the permissions `mode`, where the file system has any."""
    try:
        os.fchmod(file.fileno(), stat.S_IMODE(mode))
    except OSError as error:
        if error.errno not in _NOT_THERE | {errno.EPERM}:
            raise
        _note(f"this file system keeps no permissions of files ({error.strerror})")


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, and those above it, where they are missing, durably: or all that is in it goes with the power.

    Returns those that were made, the uppermost first.
    """
    made = []
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # by another process, at the same time
            each.mkdir()
            made.append(each)
        sync_folder(each.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(folder))
    return made


def take_notes() -> list[str]:
    """What the file systems in use cannot do, each said once in the life of a process."""
    found, _notes[:] = list(_notes), []
    return found


def _note(text: str) -> None:
    if text not in _noted:
        _noted.add(text)
        _notes.append(text)


def _flag(name: str) -> int:
    """A flag of `os.open`, 0 where the system has none of that name."""
    return int(getattr(os, name, 0))


def suppress_each(actions: Iterator[Callable[[], object]]) -> None:
    """Do one after another, whatever the system says of any: what cannot be removed does not keep the rest."""
    for action in actions:
        with contextlib.suppress(OSError, StorageError):
            action()
