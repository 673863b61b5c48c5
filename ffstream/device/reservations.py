"""Memory that processes of one user have planned to take and have not taken yet, so that each plans with what is left.

Every process that trains leaves a file in a folder of the user's own, below the system's for temporary files. It says
where a cache may lie, and never what is computed. Where such a folder cannot be had, each process plans for itself.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ffstream.device.memory import resident_bytes
from ffstream.ground.processes import find_pid, is_of_dead_process, make_tag

_PREFIX = "memory-"
_WAIT_S = 20.0  # for another process that is planning; a plan takes a part of a second
_MOST_DIGITS = 20  # of a number of bytes


@contextlib.contextmanager
def planning() -> Iterator[None]:
    """While other processes of this user wait with their plans, until this one has reserved what it plans to take."""
    folder = _find_folder(make=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            if folder is not None:
                file = stack.enter_context((folder / "planning").open("w"))
                ends_s = time.monotonic() + _WAIT_S
                while time.monotonic() < ends_s:
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    time.sleep(0.02)
        yield


@contextlib.contextmanager
def reserved(num_bytes: int) -> Iterator[None]:
    """This process may hold up to so many bytes of host memory, what it holds already included."""
    folder, name = _find_folder(make=True), f"{_PREFIX}{make_tag()}-{time.monotonic_ns()}"
    with contextlib.suppress(OSError):
        if folder is not None:
            (folder / name).write_text(str(num_bytes))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if folder is not None:
                (folder / name).unlink()


def reserved_by_others() -> int:
    """Bytes that other processes of this user have reserved and do not hold yet. What dead ones left is removed."""
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
                    with path.open() as file:
                        num_bytes = int(file.read(_MOST_DIGITS))
                    total += max(num_bytes - resident_bytes(pid), 0)
    return total


def _find_folder(*, make: bool) -> Path | None:
    """The user's own folder; None where it is not there, or is somebody else's, or a link."""
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
