"""How much memory there is, and how much is taken."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ffstream.cache.pinned import allocate_host
from ffstream.device import ledger
from ffstream.device.accelerator import ACCELERATORS
from ffstream.device.memory import (
    PeakMeter,
    _find_limits,
    _Limit,
    host_free_bytes,
    host_installed_bytes,
    is_in_memory,
    is_out_of_memory,
    measure_peak_bytes,
    resident_bytes,
)

GIB, MIB = 1 << 30, 1 << 20
CPU = torch.device("cpu")


def test_free_host_memory_is_some_and_not_more_than_there_is():
    assert 0 < host_free_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_limits(folder, limit, used, names=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")


def rooms(folder):
    return [limit.room_bytes for limit in _find_limits(folder / "cgroup", folder / "fs")]


@pytest.mark.parametrize(("limit", "used", "expected"), [(GIB, GIB // 4, [3 * GIB // 4]), (GIB, 2 * GIB, [0])])
def test_a_cgroups_limit_leaves_what_is_not_used(limit, used, expected, tmp_path):
    (tmp_path / "cgroup").write_text("0::/user/shell\n")
    write_limits(tmp_path / "fs/user/shell", limit, used)
    assert rooms(tmp_path) == expected


def test_the_limits_of_the_cgroups_above_count_too(tmp_path):
    (tmp_path / "cgroup").write_text("0::/user/shell\n")
    write_limits(tmp_path / "fs/user/shell", "max", 5)
    write_limits(tmp_path / "fs/user", 100, 30)
    write_limits(tmp_path / "fs", 80, 30)
    assert sorted(rooms(tmp_path)) == [50, 70]


def test_limits_of_the_first_version_of_cgroups_count(tmp_path):
    (tmp_path / "cgroup").write_text("5:cpu:/x\n4:memory:/box\n0::/\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write_limits(tmp_path / "fs/memory/box", 1000, 400, names)
    assert rooms(tmp_path) == [600]
    assert _find_limits(tmp_path / "absent", tmp_path / "fs") == []


@pytest.mark.parametrize("version", [1, 2])
def test_pages_of_files_that_the_system_takes_back_are_free(version, tmp_path):
    """Of a container that has read its data once, most of what is used is that."""
    prefix = "total_" if version == 1 else ""
    waiting = ("total_dirty", "total_writeback") if version == 1 else ("file_dirty", "file_writeback")
    folder = tmp_path / ("fs/memory/box" if version == 1 else "fs/box")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    (tmp_path / "cgroup").write_text("4:memory:/box\n" if version == 1 else "0::/box\n")
    write_limits(folder, 3500, 3490, names)
    counts = {f"{prefix}inactive_file": 2000, f"{prefix}active_file": 1000, waiting[0]: 40, waiting[1]: 10, "anon": 7}
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in counts.items()))
    assert rooms(tmp_path) == [3500 - 3490 + 3000 - 50]


def test_installed_memory_is_what_there_is_or_what_the_cgroups_allow(monkeypatch):
    monkeypatch.setattr("ffstream.device.memory._find_limits", lambda *_: [])
    total = host_installed_bytes()
    assert total >= host_free_bytes()
    monkeypatch.setattr("ffstream.device.memory._find_limits", lambda *_: [_Limit(total // 4, total // 5, 0)])
    assert host_installed_bytes() == total // 4


def test_free_host_memory_is_the_least_that_any_limit_leaves(monkeypatch):
    monkeypatch.setattr("ffstream.device.memory._meminfo_available_bytes", lambda: 100 * GIB)
    monkeypatch.setattr(
        "ffstream.device.memory._find_limits", lambda *_: [_Limit(4 * GIB, GIB, 0), _Limit(9 * GIB, 4 * GIB, 0)]
    )
    assert host_free_bytes() == 3 * GIB


def test_resident_memory_grows_with_what_is_touched():
    before = resident_bytes()
    kept = mmap.mmap(-1, 100 << 20)  # pages of its own: the allocator may have some left of an earlier test
    kept[::4096] = bytes(len(range(0, len(kept), 4096)))
    assert resident_bytes() - before > 90 << 20
    kept.close()


def test_a_file_system_in_memory_is_told_from_others():
    if Path("/dev/shm").is_dir():
        assert is_in_memory(Path("/dev/shm/x"))
    assert not is_in_memory(Path("/proc"))


def test_the_peak_is_of_what_was_alive_at_once():
    def work():
        for _ in range(3):
            first = torch.empty(1000)
            second = torch.empty(500)
            del first, second

    assert measure_peak_bytes(work, CPU) == 6000
    assert measure_peak_bytes(lambda: None, CPU) == 0


def test_what_was_not_seen_made_is_not_seen_freed():
    with PeakMeter(CPU) as meter:
        meter.start()
        made = [torch.empty(1000, dtype=torch.uint8) for _ in range(50)]
        meter.stop()
        addresses = {tensor.data_ptr() for tensor in made}
        made.clear()
        unseen = [torch.empty(1000, dtype=torch.uint8) for _ in range(1000)]
        assert addresses & {tensor.data_ptr() for tensor in unseen}  # which torch takes for those of the first
        meter.start()
        kept = torch.empty(5000, dtype=torch.uint8)
        unseen.clear()
        torch.empty(800, dtype=torch.uint8)
        assert meter.lap() == 5800
        del kept
        torch.empty(900, dtype=torch.uint8)
        assert meter.stop() == 5000


@pytest.mark.parametrize(
    ("laps", "peaks"),
    [
        ([[(1, 10), (2, 30), (2, -30), (1, -10)], [(3, 5)]], [40, 5]),
        ([[(1, 10)], [(2, 30), (1, -10), (3, 15)]], [10, 45]),
        ([[(1, -10), (2, 30)]], [30]),  # made before, or on another thread
        ([[(1, 10), (2, 30)], [(1, 20), (3, 1)]], [40, 51]),  # freed on another thread, or between the laps
        ([[], []], [0, 0]),
    ],
)
def test_the_account_follows_each_block_by_its_address(laps, peaks):
    meter = PeakMeter(CPU)
    assert [meter._follow(lap) for lap in laps] == peaks


def test_what_is_measured_leaves_nothing_behind():
    def work():
        for _ in range(1000):
            torch.empty(1000)

    for _ in range(3):
        measure_peak_bytes(work, CPU)
    before = resident_bytes()
    gc.disable()  # which would find it at some time
    try:
        for _ in range(30):
            measure_peak_bytes(work, CPU)
    finally:
        gc.enable()
    assert resident_bytes() - before < 10 * MIB


def test_work_that_fails_while_it_is_measured_lets_the_interpreter_end():
    program = (
        "import torch; from ffstream.device.memory import measure_peak_bytes\n"
        "measure_peak_bytes(lambda: torch.zeros(3) / None, torch.device('cpu'))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "TypeError" in ended.stderr.splitlines()[-1]


def test_memory_that_cannot_be_locked_is_taken_pageable(monkeypatch):
    def empty(*shape, pin_memory=False, **settings):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")  # what a limit on locked memory is reported as
        return torch.zeros(*shape, **settings)

    monkeypatch.setattr(torch, "empty", empty)
    taken = allocate_host(100, ACCELERATORS["cuda"])
    assert (taken.shape, taken.dtype) == ((100,), torch.uint8)
    assert not taken.any()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("unable to mmap 50056 bytes from file <a>: Cannot allocate memory (12)"), True),
        (RuntimeError("can't start new thread"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Cannot allocate memory"), False),
    ],
)
def test_whatever_says_that_memory_is_out_is_known_for_it(error, expected):
    assert is_out_of_memory(error) is expected


def test_what_was_done_on_paper_before_is_counted_as_it_was():
    """Shapes that operators give are remembered: the second time, peak, work and results are those of the first."""

    def work():
        with ledger.Ledger() as book:
            a = torch.empty(30, 40, device=ledger.PAPER)
            b = torch.empty(40, 50, device=ledger.PAPER, dtype=torch.bfloat16).t().float().t()
            c = (a @ b).square().mean(dim=1)
            order, index = torch.sort(c)
            parts = torch.stack([order, index.float()], dim=1).flatten().view(2, 30).t().reshape(-1)
            whole = a.contiguous()  # which is `a` itself
            real = torch.ones(3) * 2.0
            kinds = [torch.full((3,), value, device=ledger.PAPER) for value in (1, 1.0, True)]
            del c, order
            found = [parts, index, whole, real, *kinds, torch.nn.functional.softplus(a), a.to(torch.float64)]
            described = [(each.shape, each.stride(), each.dtype, each.device) for each in found]
            return described, book.peak_bytes, book.live_bytes, book.work, whole is a, real.tolist()

    ledger._outcomes.clear()
    first = work()
    assert ledger._outcomes
    assert work() == first
    assert first[-1] == [2.0, 2.0, 2.0]
