"""Time of a run with the cache on disk against the same run with the cache on the device, interleaved."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import ffstream as ff

NUM_PAIRS = 3
EPOCHS = 4


def measure_tiers(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """The median over pairs of runs of time(disk) / time(device)."""
    ratios, seconds = [], {"disk": [], "device": []}
    for pair in range(NUM_PAIRS + 1):
        for tier in ("disk", "device") if pair % 2 else ("device", "disk"):
            path = folder / f"tier-{tier}"
            shutil.rmtree(path, ignore_errors=True)
            config = ff.Config(data="mnist", data_root=data_root, layers=3, width=1000, epochs=EPOCHS, device=device)
            start_s = time.perf_counter()
            ff.train(config.override({"cache.tier": tier, "precision": "bf16"}), path)
            seconds[tier].append(time.perf_counter() - start_s)
            shutil.rmtree(path)
        ratios.append(seconds["disk"][-1] / seconds["device"][-1])
    return {
        "config": f"mnist, 3 x 1000, {EPOCHS} epochs a layer, recipe inject, bf16; {NUM_PAIRS} pairs after a warm-up",
        "disk_over_device_median": statistics.median(ratios[1:]),
        "disk_over_device": ratios[1:],
        "seconds": {tier: values[1:] for tier, values in seconds.items()},
    }
