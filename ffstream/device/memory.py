"""How much memory there is, and how much is taken."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from ffstream.device.accelerator import find_accelerator
from ffstream.errors import DeviceError
from ffstream.ground.files import to_absolute
from ffstream.ground.units import format_bytes

# Messages of torch's allocator, of the system if a file cannot be mapped, and of Python if a thread gets no stack.
_NO_THREAD = "Resource temporarily unavailable"  # of pthread_create, if a process may not start another thread
_THREAD = "can't start new thread"
# And of the libraries of accelerators, whose errors have types of their own or none. (cuBLAS and cuDNN allocate
# workspaces beside torch's allocator; ROCm and oneAPI have words of their own.)
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    _THREAD,
    _NO_THREAD,
    "out of memory",
    "_ALLOC_FAILED",
    "OUT_OF_MEMORY",
    "OUT_OF_DEVICE_MEMORY",
    "OUT_OF_HOST_MEMORY",
    "OUT_OF_RESOURCES",
)


def device_free_bytes(device: torch.device) -> int:
    """Bytes that this process could still allocate on the device; 0 for a CPU, whose memory is the host's."""
    accelerator = find_accelerator(device)
    return 0 if accelerator is None else accelerator.free_bytes(device)


def host_free_bytes() -> int:
    """Bytes of host memory that are available, within the limits of this process's cgroups."""
    return min([_meminfo_available_bytes(), *(limit.room_bytes for limit in _find_limits())])


def host_installed_bytes() -> int:
    """Bytes of host memory in total, used or not, within the limits of this process's cgroups."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(limit.limit_bytes for limit in _find_limits())])


def resident_bytes(pid: int | None = None) -> int:
    """Bytes of host memory that this process holds now, or process `pid`: 0 if its bytes are not known."""
    try:
        text = Path(f"/proc/{'self' if pid is None else pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the peak of this process instead
        return peak_memory_bytes(torch.device("cpu")) if pid is None else 0


def unpinned_reason() -> str:
    """The warning if the system refuses to pin memory: that it costs time, and the limit that may be the cause.

    The limit is only reported and never enforced here: many drivers pin more than it allows, some obey it.
    """
    said = (
        "host memory cannot be pinned here, so that copies between it and the device are slower and the computation "
        "waits for them"
    )
    if sys.platform == "win32":  # Windows has no such limit
        return said
    import resource

    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "none" if limit_bytes == resource.RLIM_INFINITY else format_bytes(limit_bytes)
    return f"{said}; the limit on locked memory is {limit} (ulimit -l)"


def is_in_memory(folder: Path) -> bool:
    """Whether a folder lies in a file system that is kept in memory, so that its files take up memory."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return False
    kinds = {line.split()[1]: line.split()[2] for line in lines}
    path = to_absolute(folder).resolve()
    mount = next((str(place) for place in (path, *path.parents) if str(place) in kinds), "/")
    return kinds.get(mount) in ("tmpfs", "ramfs")


def peak_memory_bytes(device: torch.device) -> int:
    """Highest device memory so far: bytes of tensors on an accelerator, the resident set of the process on a CPU."""
    accelerator = find_accelerator(device)
    if accelerator is not None:
        return accelerator.peak_bytes(device)
    import resource  # missing on Windows, where only an accelerator's figure is known

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMeter:
    """Measures the most bytes that tensors take on a device at once, from `start` on, as its allocator reports.

    On a CPU, torch's profiler sees the tensors of this thread only, and records hundreds of bytes for every allocation,
    so that long work is measured in laps. The profiler is closed on leaving `with`, after an error too: an interpreter
    that ends with an open profiler crashes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._accelerator = device, find_accelerator(device)
        self._before_bytes = 0  # on an accelerator: bytes that tensors had at the start
        self._blocks: dict[int, int] = {}  # on a CPU: bytes, by address, of what was made since and is alive
        self._profiler: Any = None  # while it is open

    def __enter__(self) -> PeakMeter:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._profiler is not None:
            self._close_account()

    def start(self) -> None:
        """Begin to measure: what is allocated from here on counts."""
        if self._accelerator is not None:
            self._accelerator.synchronise(self._device)
            self._accelerator.reset_peak(self._device)
            self._before_bytes = self._accelerator.requested_bytes(self._device)
        else:
            self._blocks.clear()
            self._open_account()

    def lap(self) -> int:
        """The peak in bytes since the start or the last lap; another lap begins."""
        peak_bytes = self.stop()
        if self._accelerator is not None:
            self._accelerator.reset_peak(self._device)
        else:
            self._open_account()
        return peak_bytes

    def stop(self) -> int:
        """The peak in bytes since the start or the last lap; the measurement ends."""
        if self._accelerator is not None:
            self._accelerator.synchronise(self._device)
            return self._accelerator.peak_bytes(self._device) - self._before_bytes
        return self._follow(self._close_account())

    def _follow(self, changes: Iterable[tuple[int, int]]) -> int:
        """The most bytes alive at once, from changes (address, bytes) in order of time: negative bytes are freed.

        If a tensor is freed that was made before, or on another thread, torch reports the bytes of a tensor that it saw
        at that address earlier. So freed bytes count only if their allocation was seen, and a tensor whose release was
        not seen ends when its address is allocated again.
        """
        alive_bytes = peak_bytes = sum(self._blocks.values())
        for address, num_bytes in changes:
            alive_bytes -= self._blocks.pop(address, 0)
            if num_bytes > 0:
                self._blocks[address] = num_bytes
                alive_bytes += num_bytes
                peak_bytes = max(peak_bytes, alive_bytes)
        return peak_bytes

    def _open_account(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler looks for a GPU and complains on stderr
        from torch.profiler import ProfilerActivity, profile

        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profiler.__enter__()

    def _close_account(self) -> list[tuple[int, int]]:
        """Close the profiler. Returns all changes since it was opened, as (address, bytes), in order of time."""
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        found: list[tuple[int, int, int]] = []
        events = profiler.profiler.kineto_results.experimental_event_tree()[::-1]
        profiler.profiler.kineto_results = None  # tens of MiB, in a reference cycle that is collected late
        while events:
            event = events.pop()
            events.extend(reversed(event.children))
            if event.tag == torch._C._profiler._EventType.Allocation:
                found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
        found.sort(key=itemgetter(0))
        return [(address, num_bytes) for _, address, num_bytes in found]


def measure_peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors made by `work` on this thread had on the device at once."""
    with PeakMeter(device) as meter:
        meter.start()
        work()
        return meter.stop()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host has no memory left; no single type covers all such errors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def explain_no_thread(error: BaseException) -> str | None:
    """What keeps this process from starting a thread, if an error says that it may not; None for other errors."""
    if not any(words in str(error) for words in (_THREAD, _NO_THREAD)):
        return None
    import resource  # missing on Windows, where no error says this

    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    own = "none" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    return (
        f"another thread cannot be started ({str(error).splitlines()[0]}); the limit of this user's processes and "
        f"threads (ulimit -u) is {own}, and a container may have one of its own (pids.max); raise them, set "
        "OMP_NUM_THREADS=1, or free memory if they are not reached"
    )


@contextlib.contextmanager
def limiting(device: torch.device, num_bytes: int | None) -> Iterator[None]:
    """Let an accelerator's allocator reserve no more than so many bytes beside what it holds now; None: no limit."""
    accelerator = find_accelerator(device)
    if accelerator is None or num_bytes is None:
        yield
        return
    accelerator.release_unused(device)
    accelerator.limit(device, num_bytes + accelerator.reserved_bytes(device))
    try:
        yield
    finally:
        accelerator.limit(device, None)


@contextlib.contextmanager
def naming_lack_of_memory(device: torch.device, remedy: str) -> Iterator[None]:
    """Turn an error that says that memory is out into a DeviceError that ends with a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        no_thread = explain_no_thread(error)
        if no_thread is not None:
            raise DeviceError(f"device {device}: {no_thread}; what is committed is kept") from error
        reason = str(error).partition("\n")[0] or type(error).__name__  # a MemoryError may have no message
        raise DeviceError(f"device {device}: out of memory ({reason}); {remedy}") from error


def _meminfo_available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no /proc: assume half of it is free


@dataclass(frozen=True)
class _Limit:
    """The memory that a cgroup may take, and the memory that it takes."""

    limit_bytes: int
    used_bytes: int
    file_bytes: int  # of used_bytes: pages of files, which the system reclaims when memory is needed

    @property
    def room_bytes(self) -> int:
        return max(self.limit_bytes - self.used_bytes + min(self.file_bytes, self.used_bytes), 0)


def _find_limits(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[_Limit]:
    """The limits of this process's cgroup and of those above it, in both versions of cgroups."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            folder, limit_name, used_name, prefix = root / name.lstrip("/"), "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            folder = root / "memory" / name.lstrip("/")
            limit_name, used_name, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        for place in (folder, *folder.parents):
            limit, used = _read_number(place / limit_name), _read_number(place / used_name)
            if limit is not None and used is not None:
                limits.append(_Limit(limit, used, _read_file_bytes(place / "memory.stat", prefix)))
            if place == root:
                break
    return limits


def _read_file_bytes(path: Path, prefix: str) -> int:
    """Bytes of a cgroup's pages of files that are not waiting to be written, from its statistics."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    found = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
    kept = sum(found.get(prefix + name, 0) for name in ("inactive_file", "active_file"))
    waiting = ("file_dirty", "file_writeback") if not prefix else ("total_dirty", "total_writeback")
    return max(kept - sum(found.get(name, 0) for name in waiting), 0)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
