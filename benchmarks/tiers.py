"""Time of a run with the cache on disk against the same run with the cache on the device, interleaved.

Once with memory to spare, and once with the page cache dropped behind every shard; beside it, the rate at which shards
come from the disk against that of plain direct reads.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import ffstream as ff
from ffstream.cache import CacheLayout, DiskCache
from ffstream.cache.transfer import READING, SYNCING, WRITING, Transfer
from ffstream.ground.folder import Folder
from ffstream.storage.metrics import MetricsFile
from ffstream.studies.doctor import sum_seconds

# Epochs a layer and pairs of runs: a cache is written once a layer, so that it weighs most where a layer trains least.
SETTINGS = ((4, 5), (20, 3))
STALLS = (READING, WRITING, SYNCING, "saving")
WAYS = {"device": "device", "disk": "disk", "disk, dropped": "disk"}  # a name, and its tier
RATE_ROWS, RATE_FEATURES, RATE_ROUNDS = 1 << 19, 1000, 3  # a gigabyte in bf16


def measure_tiers(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """For each number of epochs a layer, the medians over rounds of runs of time(disk) / time(device)."""
    _time_run("device", 1, data_root, device, folder)  # a warm-up
    return {
        "config": "mnist, 3 x 1000, recipe inject, bf16",
        "by_epochs": {
            epochs: _measure_rounds(epochs, num_rounds, data_root, device, folder) for epochs, num_rounds in SETTINGS
        },
        "cold_reads": measure_cold_reads(folder),
    }


def _measure_rounds(epochs: int, num_rounds: int, data_root: str, device: str, folder: Path) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    stalls: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(num_rounds):
        for way in reversed(WAYS) if number % 2 else WAYS:
            with dropped_pages() if "dropped" in way else contextlib.nullcontext():
                elapsed_s, shares = _time_run(WAYS[way], epochs, data_root, device, folder)
            seconds[way].append(elapsed_s)
            stalls[way].append(shares)
    found: dict[str, Any] = {"seconds": seconds}
    for way in ("disk", "disk, dropped"):
        ratios = [disk / resident for disk, resident in zip(seconds[way], seconds["device"], strict=True)]
        stalled = {noun: statistics.median(shares[noun] for shares in stalls[way]) for noun in STALLS}
        found[way] = {"median": statistics.median(ratios), "ratios": ratios, "stalled": stalled}
    return found


@contextlib.contextmanager
def dropped_pages() -> Iterator[None]:
    """Meanwhile no page of a shard stays in memory that was read, or is on the disk: the next read is the disk's."""
    load, sync = DiskCache.load, DiskCache.sync

    def load_and_drop(cache: DiskCache, shard: int, slot: torch.Tensor) -> None:
        load(cache, shard, slot)
        _drop(cache._path(shard))

    def sync_and_drop(cache: DiskCache, shard: int) -> None:
        sync(cache, shard)
        _drop(cache._path(shard))

    with mock.patch.object(DiskCache, "load", load_and_drop), mock.patch.object(DiskCache, "sync", sync_and_drop):
        yield


def _drop(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # not named yet, or gone
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure_cold_reads(folder: Path) -> dict[str, Any]:
    """Bytes a second of an epoch's shards that lie on the disk alone, and of direct reads of the same files."""
    layout = CacheLayout(RATE_ROWS, 1, RATE_FEATURES, "bf16", 4096)
    folder.mkdir(parents=True, exist_ok=True)
    cache = DiskCache(layout, Folder(folder), "rate")
    rows = torch.empty(layout.shard_shape(0), dtype=layout.dtype).random_(0, 100)
    for shard in range(layout.num_shards):
        cache.store(shard, rows[: layout.shard_shape(shard)[0]])
        cache.sync(shard)
    paths = [cache._path(shard) for shard in range(layout.num_shards)]
    room = memoryview(mmap.mmap(-1, 2 * layout.shard_bytes))  # a page's beginning, as direct reads want it

    def stream() -> None:
        with Transfer(torch.device("cpu")) as transfer:
            for _ in transfer.blocks(cache, range(layout.num_shards)):
                pass

    def read_directly() -> None:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            while os.readv(descriptor, [room]):
                pass
            os.close(descriptor)

    ways: dict[str, Callable[[], None]] = {"streamed": stream, "direct": read_directly}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RATE_ROUNDS):
        for name, read in ways.items():
            for path in paths:
                _drop(path)
            start_s = time.perf_counter()
            read()
            rates[name].append(layout.num_bytes / (time.perf_counter() - start_s))
    cache.drop()
    return {f"{name}_bytes_per_s": statistics.median(found) for name, found in rates.items()}


def _time_run(tier: str, epochs: int, data_root: str, device: str, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds, and which shares of the layers' time the thread that computes waited, or saved."""
    path = folder / f"tier-{tier}"
    shutil.rmtree(path, ignore_errors=True)
    config = ff.Config(data="mnist", data_root=data_root, layers=3, width=1000, epochs=epochs, device=device)
    start_s = time.perf_counter()
    ff.train(config.override({"cache.tier": tier, "precision": "bf16"}), path)
    elapsed_s = time.perf_counter() - start_s
    found = sum_seconds(MetricsFile(Folder(path)).read(None))
    shutil.rmtree(path)
    return elapsed_s, {noun: found.get(noun, 0.0) / sum(found.values()) for noun in STALLS}
