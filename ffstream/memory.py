"""How much memory a layer needs, how much there is, and which tier the cache fits in. The choices are pure."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ffstream.config import Config
from ffstream.errors import StorageError
from ffstream.network import LayerSpec

# Of what is free, the share that an automatic choice takes: the rest is for the allocator and for other programs.
_DEVICE_SHARE = 0.8
_HOST_SHARE = 0.5

_OPTIMISER_BYTES = {"adam": 8, "adamw": 8, "sgd": 4}  # of float32 state a parameter


def layer_footprint_bytes(config: Config, spec: LayerSpec, num_classes: int) -> int:
    """Device bytes that one layer takes while it trains: parameters, gradient, optimiser state, one batch."""
    num_parameters = (spec.in_features + 1) * spec.num_units
    num_candidates = 1 + config.negatives.per_step
    batch = config.batch
    assert isinstance(batch, int), "batch is resolved before it is planned for"
    num_rows = batch
    if config.labels.method == "injection":
        num_parameters += num_classes * spec.num_units
    else:
        num_rows *= num_candidates
    per_parameter = 4 + 4 + _OPTIMISER_BYTES[config.optimiser.name] + (4 if config.precision == "bf16" else 0)
    rows = num_rows * spec.in_features * 4
    activities = batch * num_candidates * spec.num_units * 4 + 2 * num_rows * spec.num_units * 4
    return num_parameters * per_parameter + rows + activities


def choose_tier(
    requested: str, device_type: str, cache_bytes: int, device_free_bytes: int, host_free_bytes: int
) -> str:
    """The tier of the activation cache: "device", "host" or "disk".

    `cache_bytes` is the largest that the cache becomes, `device_free_bytes` what the layer leaves.
    On a CPU the device's memory is the host's.
    """
    if requested != "auto":
        return "host" if requested == "device" and device_type == "cpu" else requested
    if device_type != "cpu" and cache_bytes <= _DEVICE_SHARE * device_free_bytes:
        return "device"
    return "host" if cache_bytes <= _HOST_SHARE * host_free_bytes else "disk"


def check_disk(folder: Path, cache_bytes: int, free_bytes: int) -> None:
    """Raise StorageError when a cache on disk cannot fit."""
    if cache_bytes > free_bytes:
        raise StorageError(
            f"cache in {folder}: needs {format_bytes(cache_bytes)}, found {format_bytes(free_bytes)} free; free space "
            "there, choose another --run-dir, --cache host, fewer --negatives-per-sample or a smaller --width"
        )


def device_free_bytes(device: torch.device) -> int:
    """Bytes that this process could still allocate on the device; 0 for a CPU, whose memory is the host's."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def host_free_bytes() -> int:
    """Bytes of host memory that are available, within the limit of this process's cgroup."""
    available = _meminfo_available_bytes()
    limit = _read_number(Path("/sys/fs/cgroup/memory.max"))
    used = _read_number(Path("/sys/fs/cgroup/memory.current"))
    if limit is not None and used is not None:
        available = min(available, max(limit - used, 0))
    return available


def peak_memory_bytes(device: torch.device) -> int:
    """Highest device memory so far: allocated bytes on CUDA, the resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not there on Windows, where only CUDA's figure is known

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors made by `work` on this thread had on the device at once, as its allocator tells."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it looks for a GPU and complains on stderr
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(max(itertools.accumulate((num_bytes for _, num_bytes in changes), initial=0)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host has no memory left; torch has no one type for both."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def format_bytes(num_bytes: float) -> str:
    """3221225472 -> "3.0 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def _meminfo_available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no /proc: assume half of it is free


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
