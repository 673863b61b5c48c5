"""Time of a run with the cache on disk against the same run with the cache on the device, interleaved."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import ffstream as ff
from ffstream.doctor import sum_seconds
from ffstream.metrics import MetricsFile
from ffstream.transfer import READING, SYNCING, WRITING

# Epochs a layer and pairs of runs: a cache is written once a layer, so that it weighs most where a layer trains least.
SETTINGS = ((4, 5), (20, 3))
STALLS = (READING, WRITING, SYNCING, "saving")


def measure_tiers(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """For each number of epochs a layer, the median over pairs of runs of time(disk) / time(device)."""
    _time_run("device", 1, data_root, device, folder)  # a warm-up
    return {
        "config": "mnist, 3 x 1000, recipe inject, bf16",
        "by_epochs": {
            epochs: _measure_pairs(epochs, num_pairs, data_root, device, folder) for epochs, num_pairs in SETTINGS
        },
    }


def _measure_pairs(epochs: int, num_pairs: int, data_root: str, device: str, folder: Path) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"disk": [], "device": []}
    stalls: dict[str, list[dict[str, float]]] = {"disk": [], "device": []}
    for pair in range(num_pairs):
        for tier in ("disk", "device") if pair % 2 else ("device", "disk"):
            elapsed_s, shares = _time_run(tier, epochs, data_root, device, folder)
            seconds[tier].append(elapsed_s)
            stalls[tier].append(shares)
    ratios = [disk / resident for disk, resident in zip(seconds["disk"], seconds["device"], strict=True)]
    stalled = {noun: statistics.median(shares[noun] for shares in stalls["disk"]) for noun in STALLS}
    return {"median": statistics.median(ratios), "ratios": ratios, "seconds": seconds, "stalled_on_disk": stalled}


def _time_run(tier: str, epochs: int, data_root: str, device: str, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds, and which shares of the layers' time the thread that computes waited, or saved."""
    path = folder / f"tier-{tier}"
    shutil.rmtree(path, ignore_errors=True)
    config = ff.Config(data="mnist", data_root=data_root, layers=3, width=1000, epochs=epochs, device=device)
    start_s = time.perf_counter()
    ff.train(config.override({"cache.tier": tier, "precision": "bf16"}), path)
    elapsed_s = time.perf_counter() - start_s
    found = sum_seconds(MetricsFile(path / "metrics.jsonl").read())
    shutil.rmtree(path)
    return elapsed_s, {noun: found.get(noun, 0.0) / sum(found.values()) for noun in STALLS}
