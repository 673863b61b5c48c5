"""One writer per folder: a lock that ends with its process and is checked again before anything is committed.

FOLDER/lock        is locked by the operating system, which frees it when the process dies; it is never written
FOLDER/lock.json   says which process holds the lock, and is created only if it does not exist: so a second writer is
                   noticed even on file systems whose locks do nothing, or if somebody has deleted FOLDER/lock
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ffstream.errors import RunLockedError, StorageError
from ffstream.ground.files import storage_errors, write_all
from ffstream.ground.folder import Folder
from ffstream.ground.processes import Process

LOCK, HOLDER = "lock", "lock.json"
_MAX_HOLDER_BYTES = 1 << 16
_FORMAT = "ffstream lock"

# Error numbers: of systems that cannot lock files, for a file that another process has locked, and of a full disk.
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NUM_TRIES = 20
_PAUSE_S = 0.05  # wait for a process that has created its lock.json but not yet written it

_held: set[str] = set()  # tokens of the locks that this process holds


class RunLock:
    """Holds an existing folder against all other writers. The attribute `folder` is that folder, open while held.

    Without `needs_room` it works on a full disk too, where no other process can create the files of a lock either.
    Raises RunLockedError when another process holds the folder, StorageError if files of these names are not a lock's.
    """

    def __init__(self, path: Path, identity: str = "", *, noun: str = "run", needs_room: bool = True) -> None:
        self._noun, self._needs_room = noun, needs_room
        self._has_holder = True
        self.folder = Folder(path, identity, self.check)
        self._token = secrets.token_hex(16)
        self._is_supported = True
        self._closing = contextlib.ExitStack()
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        with contextlib.ExitStack() as stack, storage_errors(self.folder.path / LOCK):
            stack.enter_context(self.folder.held())
            is_new = self.folder.find_kind(LOCK) is None
            if is_new:
                self._read_holder()  # refuses a foreign lock.json before anything is made beside it
            with self._suppress_full():
                self._lock_file()
            stack.callback(self._unlock_file)
            with self.folder.removed_on_error(LOCK) if is_new else contextlib.nullcontext(), self._suppress_full():
                self._become_holder()
            _held.add(self._token)
            stack.callback(self._step_down)
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def check(self) -> None:
        """Raise RunLockedError unless this process is still the writer. Called before anything is committed."""
        for _ in range(_NUM_TRIES):
            found = self._read_holder()
            if found is not None and found.get("token") == self._token:
                return
            if found is None and not self._has_holder:
                return
            if found is None and self._write_holder():  # it had been deleted, and no other process has taken over
                continue
            if found is not None:
                break
        raise RunLockedError(
            f"{self._noun} {self.folder.path}: {_describe(found)} has taken it over, as locks do not work on "
            f"this file system or {LOCK} was deleted; this process stops, and commits nothing more"
        )

    def remove(self) -> None:
        """Delete the files of the held lock, so that the folder is as it was before."""
        for name in (HOLDER, LOCK):
            with contextlib.suppress(OSError, StorageError):
                self.folder.remove(name)

    @contextlib.contextmanager
    def _suppress_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._needs_room or error.errno not in _FULL:
                raise
            self._has_holder = False

    # --- the operating system's lock

    def _lock_file(self) -> None:
        """Lock FOLDER/lock. Retries if it was deleted after it was opened: locking a deleted file protects nothing."""
        for _ in range(_NUM_TRIES):
            with self.folder.append(LOCK) as file:
                descriptor = os.dup(file.fileno())
            try:
                self._is_supported = _try_lock(descriptor)
            except BlockingIOError:
                os.close(descriptor)
                found = None
                with contextlib.suppress(StorageError):  # who holds it is only for the message
                    found = self._read_holder()
                raise self._refuse(found) from None
            except BaseException:
                os.close(descriptor)
                raise
            if self.folder.is_same(LOCK, descriptor):
                self._descriptor = descriptor
                return
            os.close(descriptor)
        raise self._refuse(None)

    def _unlock_file(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # this frees the lock
            self._descriptor = None

    # --- who holds it

    def _become_holder(self) -> None:
        for _ in range(_NUM_TRIES):
            if self._write_holder():
                return
            found = self._read_holder()
            if found is None:
                continue
            if not found and not self._is_supported:  # it may not have been written yet
                time.sleep(_PAUSE_S)
                continue
            if not self._is_left_over(found):
                raise self._refuse(found)
            self.folder.remove(HOLDER)
        raise self._refuse(self._read_holder())

    def _write_holder(self) -> bool:
        """Create lock.json, which names this process. Returns False if the file exists already."""
        content = {
            "format": _FORMAT,
            "token": self._token,
            "folder": self._name_folder(),
            **Process.here().to_mapping(),
        }
        file = self.folder.create_new(HOLDER)
        if file is None:
            return False
        with self.folder.removed_on_error(HOLDER), file:
            write_all(file, json.dumps(content).encode())
        return True

    def _read_holder(self) -> dict[str, Any] | None:
        """The content of lock.json; {} if it was not written to its end, None if it is missing.

        Raises StorageError for a file of that name that ffstream did not write.
        """
        kind = self.folder.find_kind(HOLDER)
        if kind is None:
            return None
        if kind != "a regular file":
            raise StorageError(f"lock {self.folder.path / HOLDER}: is {kind}, allowed a file of ffstream; move it away")
        try:
            data = self.folder.read(HOLDER, _MAX_HOLDER_BYTES)
        except FileNotFoundError:
            return None
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = {} if _could_be_torn(data) else None
        # Earlier versions wrote only `pid` and `host`.
        if isinstance(found, dict) and (not found or found.get("format") == _FORMAT or found.keys() == {"pid", "host"}):
            return found
        raise StorageError(f"lock {self.folder.path / HOLDER}: is no file of ffstream; move it away")

    def _is_left_over(self, found: dict[str, Any]) -> bool:
        """Whether the process that wrote lock.json has ended for certain.

        If its number cannot tell, it has ended where the file system supports locks: this process now holds the lock.
        """
        process = Process.from_mapping(found)
        if found.get("folder", self._name_folder()) != self._name_folder():
            return True  # it was copied here with another folder
        if process is None or process.is_running is None:  # incomplete, of an earlier version, or of another machine
            return self._is_supported
        if process.is_running and process == Process.here():
            return found.get("token") not in _held
        return not process.is_running

    def _name_folder(self) -> list[int]:
        """The device and the inode of the folder, which tell it from a copy."""
        found = self.folder.path.stat()
        return [found.st_dev, found.st_ino]

    def _step_down(self) -> None:
        _held.discard(self._token)
        with contextlib.suppress(OSError, StorageError):  # a failing disk has been reported by now
            found = self._read_holder()
            if found is not None and found.get("token") == self._token:
                self.folder.remove(HOLDER)

    def _refuse(self, found: dict[str, Any] | None) -> RunLockedError:
        remedy = "wait for it, stop it, or choose another folder"
        process = Process.from_mapping(found)
        is_torn = found == {}  # its process died before it wrote the file, or is writing it now
        if is_torn or (process is not None and process.is_running is None):
            remedy += f"; should it be gone for sure, delete {self.folder.path / HOLDER}"
        return RunLockedError(f"{self._noun} {self.folder.path}: in use by {_describe(found)}; {remedy}")


def _describe(found: dict[str, Any] | None) -> str:
    process = Process.from_mapping(found)
    return "another process" if process is None else f"process {process.pid} on {process.host}"


def _could_be_torn(data: bytes) -> bool:
    """Whether a file is empty or the beginning of a lock.json, as left by a process that died while it wrote one."""
    ours = json.dumps({"format": _FORMAT}).encode()[:-1]
    return data.startswith(ours) or ours.startswith(data) or data.startswith(b'{"pid": ') or not data.strip(b"\0")


def _try_lock(descriptor: int) -> bool:
    """Lock a file. Returns False if the system cannot; raises BlockingIOError if another process has locked it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise BlockingIOError(error.errno, error.strerror) from error
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True
