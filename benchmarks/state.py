"""The optimiser's state in half the memory: what it saves, and what it costs in validation error and time."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

import ffstream as ff
from ffstream.footprint import DataShape

NUM_LAYERS, WIDTH, NUM_EPOCHS, NUM_SEEDS = 3, 1000, 10, 3
DTYPES = ("fp32", "bf16")


def measure_state(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Validation error and time of training, side by side; planned peaks of a layer of 2000 x 2000."""
    rows = []
    for seed in range(NUM_SEEDS):
        for dtype in DTYPES if seed % 2 == 0 else DTYPES[::-1]:
            config = ff.Config(data="mnist", data_root=data_root, layers=NUM_LAYERS, width=WIDTH, epochs=NUM_EPOCHS)
            config = config.override({"seed": seed, "device": device, "optimiser.state_dtype": dtype})
            shutil.rmtree(folder, ignore_errors=True)
            layers = ff.train(config, folder).layers
            error, elapsed_s = layers[-1].validation_error_to_here, sum(layer.elapsed_s for layer in layers)
            rows.append({"seed": seed, "state_dtype": dtype, "validation_error": error, "training_s": elapsed_s})
    peaks = {}
    for dtype in DTYPES:
        config = ff.Config(layers=3, width=2000, batch=512, device=device, precision="bf16")
        config = config.override({"cache.tier": "disk", "cache.shard_samples": 512})  # as a small budget chooses
        plan = ff.make_plan(
            config.override({"optimiser.state_dtype": dtype}), data=DataShape.of(60000, 784, 10, 1 / 12)
        )
        peaks[dtype] = plan.device.num_bytes
    of = {dtype: [row for row in rows if row["state_dtype"] == dtype] for dtype in DTYPES}
    errors, times = (
        {dtype: [row[name] for row in of[dtype]] for dtype in DTYPES} for name in ("validation_error", "training_s")
    )
    return {
        "config": f"mnist, {NUM_LAYERS} x {WIDTH}, {NUM_EPOCHS} epochs a layer, recipe inject, {NUM_SEEDS} seeds",
        "mean_validation_error": {dtype: statistics.mean(errors[dtype]) for dtype in DTYPES},
        "time_ratio": statistics.median(times["bf16"]) / statistics.median(times["fp32"]),
        "planned_peak_bytes_2000": peaks,
        "runs": rows,
    }
