"""The fault line: a small library, preloaded, that sees every change to files and can kill or fail a process at any.

Cases are children forked from one process that has imported everything, so that each takes a fraction of a second.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffstream as ff

SOURCE = Path(__file__).with_name("faultline.c")
LIMIT_S = 120.0  # of one case; what takes longer hangs


def start_preloaded(arguments: list[str]) -> int:
    """Run this Python once more with the library preloaded, built from source if need be. Returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "faultline.so"
        command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", str(SOURCE), "-o", str(library), "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *arguments], env=environment, check=False).returncode


class Faults:
    """The preloaded library, of this process and of those forked from it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        try:
            self._library.faultline_count.restype = ctypes.c_long
        except AttributeError:
            raise RuntimeError("the fault line is not preloaded; use start_preloaded") from None
        self._library.faultline_fail.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_int]

    def watch(self, folder: Path) -> None:
        """Count changes to what lies below `folder`, from 1."""
        self._library.faultline_watch(str(folder).encode())

    def kill_before(self, number: int) -> None:
        """SIGKILL in place of that change."""
        self._library.faultline_fail(number, number, 0)

    def fail(self, first: int, last: int, error: int) -> None:
        """These changes fail with an errno."""
        self._library.faultline_fail(first, last, error)

    def record(self, file: Path) -> None:
        """Write every change to a file, with the data."""
        if not self._library.faultline_record(str(file).encode()):
            raise OSError(f"cannot record to {file}")

    def count(self) -> int:
        """Changes so far."""
        return int(self._library.faultline_count())

    def stop(self) -> None:
        """Watch no more."""
        self._library.faultline_stop()


@dataclass(frozen=True)
class Outcome:
    """How a child ended: with a value, a refusal by name, a traceback, a signal, or not at all."""

    value: Any = None
    refusal: str = ""  # an error that a user is meant to read
    bug: str = ""  # any other
    signal: int = 0
    hung: bool = False

    @property
    def finished(self) -> bool:
        """Whether it ended with a value."""
        return not (self.refusal or self.bug or self.signal or self.hung)


def in_child(work: Callable[[], Any]) -> Outcome:
    """Do some work in a forked process, whose value must be plain."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _report(work, writing)
        finally:  # whatever it was, the child does not go on with its parent's work, and remove its folder
            os._exit(1)
    os.close(writing)
    parts, ends_s = [], time.monotonic() + LIMIT_S
    while select.select([reading], [], [], max(ends_s - time.monotonic(), 0))[0]:
        part = os.read(reading, 1 << 16)
        if not part:
            break
        parts.append(part)
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if time.monotonic() >= ends_s:
        return Outcome(hung=True)
    if os.WIFSIGNALED(status):
        return Outcome(signal=os.WTERMSIG(status))
    return Outcome(**json.loads(b"".join(parts)))


def _report(work: Callable[[], Any], writing: int) -> None:
    """Of the child, which ends here."""
    try:
        try:
            found = {"value": work()}
        finally:  # or one still to come would come in what follows, on whichever thread it is delivered
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
    except ff.FFStreamError as error:
        found = {"refusal": f"{type(error).__name__}: {error}"}
    except KeyboardInterrupt:
        found = {"refusal": "interrupted"}
    except BaseException:
        found = {"bug": traceback.format_exc()}
    data = json.dumps(found).encode()
    while data:
        data = data[os.write(writing, data) :]
    os._exit(0)
