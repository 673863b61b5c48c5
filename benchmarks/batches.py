"""What a batch size brings in a given time: validation error and seconds of runs of few and of many epochs."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any, TypedDict

import ffstream as ff

NUM_LAYERS, WIDTH, NUM_SEEDS = 4, 1000, 3
EPOCHS = (8, 16)
BATCHES = (128, 256, 512)


class _Run(TypedDict):
    seed: int
    epochs: int
    batch: int
    validation_error: float
    training_s: float


def measure_batches(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Recipe inject at its own learning rate, 10,000 images held out; runs of all sizes take turns."""
    runs: list[_Run] = []
    for seed in range(NUM_SEEDS):
        for epochs in EPOCHS:
            for batch in BATCHES:
                config = ff.Config(data="mnist", data_root=data_root, layers=NUM_LAYERS, width=WIDTH, device=device)
                config = config.override({"epochs": epochs, "batch": batch, "seed": seed, "validation_fraction": 1 / 6})
                shutil.rmtree(folder, ignore_errors=True)
                layers = ff.train(config, folder).layers
                error, elapsed_s = layers[-1].validation_error_to_here, sum(layer.elapsed_s for layer in layers)
                assert error is not None, "images are held out"
                runs.append(
                    {"seed": seed, "epochs": epochs, "batch": batch, "validation_error": error, "training_s": elapsed_s}
                )
    rows = []
    for epochs in EPOCHS:
        for batch in BATCHES:
            alike = [run for run in runs if (run["epochs"], run["batch"]) == (epochs, batch)]
            row = {
                "mean_validation_error": statistics.mean(run["validation_error"] for run in alike),
                "median_training_s": statistics.median(run["training_s"] for run in alike),
            }
            rows.append({"epochs": epochs, "batch": batch} | row)
    return {
        "config": f"mnist, {NUM_LAYERS} x {WIDTH}, recipe inject, 10,000 images held out, {NUM_SEEDS} seeds",
        "rows": rows,
        "runs": runs,
    }
