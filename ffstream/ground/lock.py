"""One writer per folder: a lock that ends with its process and is checked again before anything is committed.

FOLDER/lock                         is locked by the operating system, which frees it when the process dies; it is never
                                    written
FOLDER/lock-<process>-<token>.json  says which process holds the lock, or waits for it: so a second writer is noticed
                                    even on file systems whose locks do nothing, or if somebody has deleted FOLDER/lock

Every process announces itself by a file of its own, and then looks for those of others: of two processes, the one that
looks later sees the other (Lamport's bakery algorithm, Communications of the ACM 17(8), 1974). As no two holders share
a name, removing the file of a dead one never removes that of a living one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
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
from ffstream.ground.processes import Process, find_pid, is_of_this_machine, make_tag

LOCK = "lock"
_OLD_HOLDER = "lock.json"  # of earlier versions, which had one name for all holders
_HOLDER = re.compile(r"lock-(\d+-\d+-[0-9a-f]{8})-([0-9a-f]{16})\.json")
_MAX_HOLDER_BYTES = 1 << 16
_FORMAT = "ffstream lock"

# Error numbers: of systems that cannot lock files, for a file that another process has locked, and of a full disk.
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NUM_TRIES = 20
_PAUSE_S = 0.05  # wait for a process that has announced itself and may give way

_held: set[str] = set()  # tokens of the locks that this process holds, or wants

_Holder = tuple[str, dict[str, Any]]  # the name and the content of the file by which a process announces itself


class RunLock:
    """Holds an existing folder against all other writers. The attribute `folder` is that folder, open while held.

    Without `needs_room` it works on a full disk too, where no other process can create the files of a lock either.
    Raises RunLockedError when another process holds the folder, StorageError if files of these names are not a lock's.
    """

    def __init__(self, path: Path, identity: str = "", *, noun: str = "run", needs_room: bool = True) -> None:
        self._noun, self._needs_room = noun, needs_room
        self._has_holder = True
        self.folder = Folder(path, identity, self.check)
        self._token = secrets.token_hex(8)
        self._name = f"lock-{make_tag()}-{self._token}.json"
        self._is_supported = True
        self._closing = contextlib.ExitStack()
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        with contextlib.ExitStack() as stack, storage_errors(self.folder.path / LOCK):
            stack.enter_context(self.folder.held())
            is_new = self.folder.find_kind(LOCK) is None
            if is_new:
                self._find_others(removes=False)  # refuses somebody else's file before anything is made beside it
            with self._suppress_full():
                self._lock_file()
            stack.callback(self._unlock_file)
            stack.callback(self._step_down)
            with self.folder.removed_on_error(LOCK) if is_new else contextlib.nullcontext(), self._suppress_full():
                self._become_holder()
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def check(self) -> None:
        """Raise RunLockedError unless this process is still the writer. Called before anything is committed."""
        if not self._has_holder or self.folder.find_kind(self._name) is not None:
            return
        # Somebody has deleted its file. While it still has the operating system's lock, nobody else came in meanwhile.
        others, is_locked = self._find_others(), self._is_locked()
        if is_locked and not others:
            self._announce()
            others = self._find_others()
            if not others:
                return
        found = f"{_describe(others[0][1])} has taken it over" if others else "another process may have taken it over"
        raise RunLockedError(
            f"{self._noun} {self.folder.path}: {found}, as locks do not work on this file system or the files of the "
            "lock were deleted; this process stops, and commits nothing more"
        )

    def remove(self) -> None:
        """Delete the files of the held lock, so that the folder is as it was before."""
        for name in (self._name, LOCK):
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
                others = []
                with contextlib.suppress(StorageError):  # who holds it is only for the message
                    others = self._find_others(removes=False)
                raise self._refuse(*others[:1]) from None
            except BaseException:
                os.close(descriptor)
                raise
            if self.folder.is_same(LOCK, descriptor):
                self._descriptor = descriptor
                return
            os.close(descriptor)
        raise self._refuse()

    def _is_locked(self) -> bool:
        return self._is_supported and self._descriptor is not None and self.folder.is_same(LOCK, self._descriptor)

    def _unlock_file(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # this frees the lock
            self._descriptor = None

    # --- who holds it

    def _become_holder(self) -> None:
        """Announce this process, and wait a little for others to give way; the one with the smallest name does not."""
        others: list[_Holder] = []
        for _ in range(_NUM_TRIES):
            self._announce()
            others = self._find_others()
            if not others:
                return
            if min(name for name, _ in others) < self._name:
                self._step_down()
            time.sleep(_PAUSE_S)
        raise self._refuse(others[0])

    def _announce(self) -> None:
        """Create the file that names this process, unless it is there."""
        content = {
            "format": _FORMAT,
            "token": self._token,
            "folder": self._name_folder(),
            **Process.here().to_mapping(),
        }
        _held.add(self._token)  # first: other threads of this process may see the file as soon as it is there
        file = self.folder.create_new(self._name)
        if file is not None:
            with self.folder.removed_on_error(self._name), file:
                write_all(file, json.dumps(content).encode())

    def _find_others(self, *, removes: bool = True) -> list[_Holder]:
        """The other processes that hold the lock or want it; what dead ones left is removed if it `removes`.

        Raises StorageError for a file of such a name that ffstream did not write.
        """
        others = []
        for name in self.folder.names():
            if not is_holder_name(name) or name == self._name:
                continue
            content = self._read(name)
            if content is None:
                continue
            if not self._is_left_over(name, content):
                others.append((name, content))
            elif removes:
                self.folder.remove(name)
        return others

    def _read(self, name: str) -> dict[str, Any] | None:
        """The content of a holder's file; {} if it was not written to its end, None if it is missing by now."""
        kind = self.folder.find_kind(name)
        if kind is None:
            return None
        if kind != "a regular file":
            raise StorageError(f"lock {self.folder.path / name}: is {kind}, allowed a file of ffstream; move it away")
        try:
            data = self.folder.read(name, _MAX_HOLDER_BYTES)
        except FileNotFoundError:
            return None
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = {} if _could_be_torn(data) else None
        # Earlier versions wrote only `pid` and `host`.
        if isinstance(found, dict) and (not found or found.get("format") == _FORMAT or found.keys() == {"pid", "host"}):
            return found
        raise StorageError(f"lock {self.folder.path / name}: is no file of ffstream; move it away")

    def _is_left_over(self, name: str, content: dict[str, Any]) -> bool:
        """Whether the process that announced itself by a file has ended for certain.

        If its number cannot tell, it has ended where the file system supports locks: this process now holds the lock.
        """
        if self._was_copied(content):
            return True
        found = _HOLDER.fullmatch(name)
        if found is not None:  # the name is there from the first moment, the content only later
            tag, token = found.groups()
            if tag == make_tag():
                return token not in _held
            return find_pid(tag) is None if is_of_this_machine(tag) else self._is_locked()
        process = Process.from_mapping(content)
        if process is None or process.is_running is None:  # incomplete, of an earlier version, or of another machine
            return self._is_locked()
        return not process.is_running or process == Process.here()

    def _was_copied(self, content: dict[str, Any]) -> bool:
        """Whether a file came here with a copy of another folder. Each machine numbers network disks for itself."""
        found, here = content.get("folder"), self._name_folder()
        if not isinstance(found, list):  # torn, or of an earlier version
            return False
        process = Process.from_mapping(content)
        is_here = process is not None and process.is_running is not None
        return found != here if is_here else found[-1:] != here[-1:]

    def _name_folder(self) -> list[int]:
        """The device and the inode of the folder, which tell it from a copy."""
        found = self.folder.path.stat()
        return [found.st_dev, found.st_ino]

    def _step_down(self) -> None:
        _held.discard(self._token)
        with contextlib.suppress(OSError, StorageError):  # a failing disk has been reported by now
            self.folder.remove(self._name)

    def _refuse(self, other: _Holder | None = None) -> RunLockedError:
        remedy = "wait for it, stop it, or choose another folder"
        name, content = other if other is not None else ("", None)
        process, tag = Process.from_mapping(content), _HOLDER.fullmatch(name)
        is_here = tag is not None and is_of_this_machine(tag[1])
        # One that cannot be asked: of another machine, or of an earlier version and died before it wrote its file.
        if content is not None and not is_here and (process is None or process.is_running is None):
            remedy += f"; should it be gone for sure, delete {self.folder.path / name}"
        return RunLockedError(f"{self._noun} {self.folder.path}: in use by {_describe(content)}; {remedy}")


def is_holder_name(name: str) -> bool:
    """Whether a file of this name says which process holds a lock, or did so in an earlier version."""
    return name == _OLD_HOLDER or _HOLDER.fullmatch(name) is not None


def is_lock_name(name: str) -> bool:
    """Whether a lock uses this name in its folder."""
    return name == LOCK or is_holder_name(name)


def _describe(content: dict[str, Any] | None) -> str:
    process = Process.from_mapping(content)
    return "another process" if process is None else f"process {process.pid} on {process.host}"


def _could_be_torn(data: bytes) -> bool:
    """Whether a file is empty or the beginning of a holder's, as left by a process that died while it wrote one."""
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
