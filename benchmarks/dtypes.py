"""Fewer bytes for the optimiser's state, or for cached rows: what it saves, and what it costs in error and time."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ffstream as ff
from benchmarks.tiers import dropped_pages
from ffstream.data.shape import DataShape

NUM_LAYERS, WIDTH, NUM_EPOCHS, NUM_SEEDS = 3, 1000, 10, 3
STATE_DTYPES = ("fp32", "bf16")
ROW_DTYPES = ("bf16", "int8")
TIERS = ("device", "disk")
CONFIG = f"mnist, {NUM_LAYERS} x {WIDTH}, {NUM_EPOCHS} epochs a layer, recipe inject, {NUM_SEEDS} seeds"


def measure_state(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Validation error and time of training, side by side; planned peaks of a layer of 2000 x 2000."""
    peaks = {}
    for dtype in STATE_DTYPES:
        config = ff.Config(layers=3, width=2000, batch=512, device=device, precision="bf16")
        config = config.override({"cache.tier": "disk", "cache.shard_samples": 512})  # as a small budget chooses
        plan = ff.make_plan(
            config.override({"optimiser.state_dtype": dtype}), data=DataShape.of(60000, 784, 10, 1 / 12)
        )
        peaks[dtype] = plan.device.num_bytes
    found = _compare("optimiser.state_dtype", STATE_DTYPES, "auto", data_root, device, folder)
    return {"config": CONFIG, **found, "planned_peak_bytes_2000": peaks}


def measure_rows(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Validation error, time and bytes, with the cache on the device and on a disk whose pages memory does not keep."""
    by_tier, cache_bytes = {}, {}
    for tier in TIERS:
        with dropped_pages() if tier == "disk" else contextlib.nullcontext():
            by_tier[tier] = _compare("cache.dtype", ROW_DTYPES, tier, data_root, device, folder)
    for dtype in ROW_DTYPES:
        config = ff.Config(layers=NUM_LAYERS, width=WIDTH, device=device).override({"cache.dtype": dtype})
        plan = ff.make_plan(config, data=DataShape.of(60000, 784, 10, 1 / 12))
        cache_bytes[dtype] = plan.layers[-1].cache_bytes
    return {"config": CONFIG, "by_tier": by_tier, "cache_bytes": cache_bytes}


def _compare(
    setting: str, dtypes: Sequence[str], tier: str, data_root: str, device: str, folder: Path
) -> dict[str, Any]:
    """Mean validation error of each, and the time of the second against that of the first; runs take turns."""
    rows = []
    errors: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    times: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    for seed in range(NUM_SEEDS):
        for dtype in dtypes if seed % 2 == 0 else dtypes[::-1]:
            config = ff.Config(data="mnist", data_root=data_root, layers=NUM_LAYERS, width=WIDTH, epochs=NUM_EPOCHS)
            config = config.override({"seed": seed, "device": device, "cache.tier": tier, setting: dtype})
            shutil.rmtree(folder, ignore_errors=True)
            layers = ff.train(config, folder).layers
            error, elapsed_s = layers[-1].validation_error_to_here, sum(layer.elapsed_s for layer in layers)
            assert error is not None, "images are held out"
            errors[dtype].append(error)
            times[dtype].append(elapsed_s)
            rows.append({"seed": seed, "dtype": dtype, "validation_error": error, "training_s": elapsed_s})
    first, second = dtypes
    return {
        "mean_validation_error": {dtype: statistics.mean(errors[dtype]) for dtype in dtypes},
        "time_ratio": statistics.median(times[second]) / statistics.median(times[first]),
        "runs": rows,
    }
