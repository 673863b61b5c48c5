"""Reservations of memory that processes of one user plan to take and have not taken yet: each plans with the rest.

Every process that trains leaves a file in a folder of the user's own, in the system's folder for temporary files. It
affects where a cache may lie, but what is computed only if the usual sizes on this machine do not fit in the rest. If
such a folder cannot be made, each process plans for itself.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ffstream.device.memory import resident_bytes
from ffstream.ground.processes import find_pid, is_of_dead_process, make_tag

_PREFIX = "memory-"
_WAIT_S = 20.0  # at most, for another process to plan; a plan takes a fraction of a second
_MOST_DIGITS = 20  # of a number of bytes, as read from a file


@contextlib.contextmanager
def planning() -> Iterator[None]:
    """Hold a lock: other processes of this user wait with their plans until this one has reserved its memory."""
    folder = _find_folder(make=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            if folder is not None:
                file = stack.enter_context(_open(folder / "planning", os.O_CREAT))
                ends_s = time.monotonic() + _WAIT_S
                while time.monotonic() < ends_s:
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    time.sleep(0.02)
        yield


@contextlib.contextmanager
def reserved(num_bytes: int) -> Iterator[None]:
    """Reserve host memory for this process during the block: `num_bytes` in all, including what it holds already."""
    folder, name = _find_folder(make=True), f"{_PREFIX}{make_tag()}-{time.monotonic_ns()}"
    with contextlib.suppress(OSError):
        if folder is not None:
            with _open(folder / name, os.O_CREAT | os.O_EXCL) as file:
                file.write(str(num_bytes).encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if folder is not None:
                (folder / name).unlink()


def reserved_by_others() -> int:
    """Bytes that other processes of this user have reserved and do not hold yet. Removes files of dead processes."""
    folder, total, own = _find_folder(make=False), 0, make_tag()
    if folder is None:
        return 0
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{_PREFIX}*"):
            tag = path.name.removeprefix(_PREFIX).rpartition("-")[0]
            with contextlib.suppress(OSError, ValueError):
                pid = find_pid(tag)
                if is_of_dead_process(tag):
                    path.unlink()
                elif pid is not None and tag != own:
                    with _open(path) as file:
                        num_bytes = int(file.read(_MOST_DIGITS))
                    total += max(num_bytes - resident_bytes(pid), 0)
    return total


def _open(path: Path, flags: int = 0) -> io.FileIO:
    """Open a regular file as it is, and never through a link. Raises OSError for anything else."""
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = io.FileIO(os.open(path, flags, 0o600), "r+b")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return file


def _find_folder(*, make: bool) -> Path | None:
    """The user's own folder; None if it is missing or a link, or if somebody else owns it or may write to it."""
    if not hasattr(os, "getuid"):
        return None
    path = Path(tempfile.gettempdir()) / f"ffstream-{os.getuid()}"
    try:
        if make:
            path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return path if is_own else None
