"""One writer a run: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from ffstream.errors import RunLockedError
from ffstream.files import make_folder, storage_errors


class RunLock:
    """Holds RUN/lock while a process trains there. The operating system frees it when the process dies.

    Who holds it stands in RUN/lock.json, for the message alone.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._lock = FileLock(run_dir / "lock")
        self._holder = run_dir / "lock.json"

    def __enter__(self) -> RunLock:
        """Make the folder where it is missing, and take the lock. Raises RunLockedError when another holds it."""
        with storage_errors(self._run_dir / "lock"):
            make_folder(self._run_dir)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RunLockedError(
                    f"run {self._run_dir}: in use by {self._describe_holder()}; "
                    "wait for it, stop it, or choose another folder"
                ) from None
            self._holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # of a failing disk, about which more has been said by now
            self._holder.unlink(missing_ok=True)
        self._lock.release()

    def _describe_holder(self) -> str:
        try:
            holder = json.loads(self._holder.read_text())
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
