"""Tells which process left a file, and whether that process is still running."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_TAG = re.compile(r"(\d{1,10})-(\d{1,20})-([0-9a-f]{8})")


@dataclass(frozen=True)
class Process:
    """One process on one machine. Its start tells it from a later process of the same number."""

    pid: int
    start: int  # clock ticks from the start of the machine; 0 if the system does not tell
    machine: str  # host name, identifier of its last boot, and namespace of process numbers

    @classmethod
    def here(cls) -> Process:
        """This process."""
        return cls(os.getpid(), _start_of(os.getpid()) or 0, _describe_machine())

    @classmethod
    def from_mapping(cls, values: Any) -> Process | None:
        """The inverse of `to_mapping`; None for anything else."""
        if not isinstance(values, dict) or not isinstance(values.get("machine"), str):
            return None
        pid, start = values.get("pid"), values.get("start")
        if type(pid) is not int or type(start) is not int or not 0 < pid < 1 << 31:
            return None
        return cls(pid, start, values["machine"])

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def is_running(self) -> bool | None:
        """Whether it is still running; None for a process of another machine or of another namespace."""
        return _is_running(self.pid, self.start) if self.machine == _describe_machine() else None

    @property
    def host(self) -> str:
        """The name of its machine."""
        return self.machine.partition("/")[0]


def make_tag() -> str:
    """A tag for the name of a file that says which process made it: number, start and machine of this process."""
    here = Process.here()
    return f"{here.pid}-{here.start}-{_machine_code()}"


def is_of_dead_process(tag: str) -> bool:
    """Whether a tag is that of a process of this machine that has ended."""
    return is_of_this_machine(tag) and find_pid(tag) is None


def is_of_this_machine(tag: str) -> bool:
    """Whether a tag was made on this machine since it was started, in the same namespace of process numbers."""
    found = _TAG.fullmatch(tag)
    return found is not None and found[3] == _machine_code()


def find_pid(tag: str) -> int | None:
    """The number of the process of a tag, if that process is still running on this machine; else None."""
    found = _TAG.fullmatch(tag)
    if found is None or found[3] != _machine_code() or not _is_running(int(found[1]), int(found[2])):
        return None
    return int(found[1])


def _is_running(pid: int, start: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is running, but belongs to another user
        pass
    found = _start_of(pid)
    return found is None or (found >= 0 if not start else found == start)


def _start_of(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name of the command, in parentheses, may contain anything
    return -1 if fields[0] == "Z" else int(fields[19])  # a zombie has ended, and waits for its parent to collect it


def _describe_machine() -> str:
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _machine_code() -> str:
    return hashlib.sha256(_describe_machine().encode()).hexdigest()[:8]
