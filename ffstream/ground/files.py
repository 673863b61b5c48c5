"""Opens only regular files, makes writes durable, and turns errors of the file system into messages for users."""

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

MANIFEST_BYTES = 64 << 20  # limit for a manifest or a configuration; ours have thousands of bytes

# Error numbers of file systems that lack a call, such as fsync of a folder: no failure, as they cannot do better.
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


GO_ON = "then resume: nothing that was committed is lost"  # what to do once a run can be written again


class UnsuitableFileError(OSError):
    """A path does not lead to a regular file of plausible size, as was expected."""


@contextlib.contextmanager
def storage_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn any OSError in the block into a StorageError that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, doing) from error


def storage_error(error: OSError, path: Path, doing: str = "write") -> StorageError:
    """The StorageError for an OSError that came while `doing` ("write", "read" or "remove") something with `path`."""
    reason = error.strerror or str(error) or type(error).__name__
    return StorageError(
        f"cannot {doing} {path}: {reason}; free space or mend permissions there, {GO_ON}"
        if doing == "write"
        else f"cannot {doing} {path}: {reason}; mend its permissions or the disk that it lies on; nothing was changed"
    )


# --- reading


def describe_kind(mode: int) -> str:
    """The kind of a file of this mode, in words for a message."""
    return next((words for holds, words in _KINDS if holds(mode)), "a regular file")


def open_regular(path: str | Path, folder: int | None = None, *, follow: bool = True) -> io.FileIO:
    """Open a regular file for reading, unbuffered; `path` is relative to the descriptor `folder` if one is given.

    Nothing but a regular file is opened, as opening or reading a FIFO or a device may block or have side effects.
    Raises UnsuitableFileError for anything else, and OSError as `os.open` does.
    """
    found = os.stat(path, dir_fd=folder, follow_symlinks=follow)
    if stat.S_ISREG(found.st_mode):
        flags = os.O_RDONLY | _flag("O_CLOEXEC") | _flag("O_NONBLOCK") | _flag("O_BINARY")
        descriptor = os.open(path, flags | (0 if follow else _flag("O_NOFOLLOW")), dir_fd=folder)
        found = os.fstat(descriptor)  # of the open file, as the name may lead elsewhere by now
        if stat.S_ISREG(found.st_mode):
            return io.FileIO(descriptor, "rb")
        os.close(descriptor)
    raise UnsuitableFileError(errno.EINVAL, f"is {describe_kind(found.st_mode)}, allowed a regular file", str(path))


def read_regular(path: str | Path, most_bytes: int = MANIFEST_BYTES, folder: int | None = None) -> bytes:
    """The content of a regular file of at most `most_bytes`.

    Raises UnsuitableFileError for a larger file, without reading all of it, and OSError.
    """
    with open_regular(path, folder) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        content = b"" if num_bytes > most_bytes else read_up_to(file, most_bytes + 1)
        if max(num_bytes, len(content)) > most_bytes:
            found = max(num_bytes, len(content))
            raise UnsuitableFileError(errno.EFBIG, f"has {found:,} bytes, allowed {most_bytes:,}", str(path))
    return content


def read_up_to(file: io.FileIO, most_bytes: int) -> bytes:
    """The rest of a file from its current position, at most `most_bytes`."""
    parts = []
    while most_bytes > 0 and (part := file.read(min(most_bytes, 1 << 20))):
        parts.append(part)
        most_bytes -= len(part)
    return b"".join(parts)


def expand_home(text: str | Path) -> Path:
    """A path with ~ replaced by the user's home; the ~name of an unknown user is left unchanged.

    Raises ConfigError for an empty text, which pathlib would take for the current folder.
    """
    if text == "":
        raise ConfigError("path '': is empty, allowed the path of a file or folder; '.' is the current folder")
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib raises RuntimeError for an unknown user


def find_current() -> Path | None:
    """The current folder; None if there is none, as when it was deleted while the program was in it."""
    try:
        return Path.cwd()
    except OSError:
        return None


def to_absolute(path: Path) -> Path:
    """The absolute path of a file or folder. Raises ConfigError if it begins at a current folder that is gone."""
    try:
        return path.absolute()
    except OSError as error:
        raise ConfigError(
            f"path {path}: begins at the current folder, which is not there any more, allowed an absolute path; give "
            "one, or change to another folder"
        ) from error


def exists(path: Path) -> bool:
    """Whether anything has this path, even a broken link. Raises StorageError when that cannot be determined."""
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
    """Write all of `data`: one call of an unbuffered file's `write` may take only a part of it."""
    left = memoryview(data).cast("B")
    while len(left):
        left = left[file.write(left) :]


def sync_file(file: io.FileIO) -> None:
    """Write a file through to the disk."""
    os.fsync(file.fileno())


def sync_folder(folder: int | Path) -> None:
    """Make renames and removals in a folder durable. The folder is given by its descriptor or its path.

    A file system that cannot do so is noted for `take_notes`; it is no error.
    """
    if os.name == "nt":  # Windows cannot open folders
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
    """Give a file the permissions of `mode`, if the file system keeps permissions."""
    try:
        os.fchmod(file.fileno(), stat.S_IMODE(mode))
    except OSError as error:
        if error.errno not in _NOT_THERE | {errno.EPERM}:
            raise
        _note(f"this file system keeps no permissions of files ({error.strerror})")


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and its missing parents, durably: else a loss of power could take them with all their content.

    Returns the folders that were made, the uppermost first.
    """
    made = []
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process may make it at the same time
            each.mkdir()
            made.append(each)
        sync_folder(each.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(folder))
    return made


def take_notes() -> list[str]:
    """Notes about what the file systems in use cannot do; each is returned only once in the life of a process."""
    found, _notes[:] = list(_notes), []
    return found


def _note(text: str) -> None:
    if text not in _noted:
        _noted.add(text)
        _notes.append(text)


def _flag(name: str) -> int:
    """A flag of `os.open`, or 0 if the system lacks it."""
    return int(getattr(os, name, 0))


def suppress_each(actions: Iterator[Callable[[], object]]) -> None:
    """Run all actions in order. An OSError or StorageError in one of them does not keep the rest from running."""
    for action in actions:
        with contextlib.suppress(OSError, StorageError):
            action()
