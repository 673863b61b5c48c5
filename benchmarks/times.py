"""The time that a plan foretells against the time that the run then takes, on different shapes."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import ffstream as ff

SHAPES: tuple[dict[str, Any], ...] = (
    {"layers": 3, "width": 512, "epochs": 4},
    {"layers": 3, "width": 1000, "epochs": 4},
    {"layers": 2, "width": 2000, "epochs": 4},
    {"layers": 2, "width": 4000, "epochs": 3},
    {"layers": 3, "width": 250, "epochs": 4, "batch": 128},
    {"layers": 3, "width": 1000, "epochs": 4, "recipe": "hinton"},
    {"layers": 2, "width": 1000, "epochs": 4, "precision": "fp32"},
    {"layers": 2, "width": 2000, "epochs": 2, "network.tile_units": 512},
    {"layers": 2, "width": 1000, "epochs": 4, "batch": 2048, "micro_batch": 256, "cache.shard_samples": 512},
)


class Clock(ff.Observer):
    """The time from the first layer's first step to the end, as a plan counts it."""

    start_s: float | None = None
    elapsed_s = 0.0

    def on_step(self, description: str) -> None:
        """Start at the first layer."""
        if self.start_s is None and description.startswith("training"):
            self.start_s = time.perf_counter()

    def on_finish(self, layers: list[ff.LayerFigures]) -> None:
        """Stop."""
        assert self.start_s is not None
        self.elapsed_s = time.perf_counter() - self.start_s


def measure_times(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Planned over measured seconds for each shape."""
    rows, ratios = [], []
    for shape in SHAPES:
        config = ff.Config(recipe=shape.get("recipe", "inject"), data="mnist", data_root=data_root, device=device)
        config = config.override(shape)
        planned_s = ff.make_plan(config).total_s
        assert planned_s is not None
        shutil.rmtree(folder, ignore_errors=True)
        clock = Clock()
        ff.train(config, folder, observer=clock)
        rows.append({"shape": shape, "planned_s": planned_s, "measured_s": clock.elapsed_s})
        ratios.append(planned_s / clock.elapsed_s)
    return {
        "config": "mnist, recipe inject, cache auto, unless said otherwise",
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "shapes": rows,
    }
