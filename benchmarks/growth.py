"""How the time of a layer grows: with depth, with samples, and with width."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import ffstream as ff
from ffstream.data import load_dataset

NUM_LAYERS, NUM_AVERAGED = 400, 40  # of those, at either end
SAMPLES, WIDTHS = (6000, 12000, 24000, 48000), (512, 1024, 2048, 4096)
NUM_ROUNDS = 3


def measure_growth(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Seconds of a layer, medians; sizes take turns, and a layer is the third of its network."""
    deep = ff.Config(layers=NUM_LAYERS, width=64, epochs=2, device=device).override({"network.stack_layers": 0})
    times = _time_layers(deep, folder)
    first, last = (statistics.median(part) for part in (times[2 : 2 + NUM_AVERAGED], times[-NUM_AVERAGED:]))
    wide = ff.Config(layers=3, epochs=2, batch=512, device=device).override({"validation_fraction": 0.0})
    dataset, rounds = load_dataset("mnist", data_root, download=True), []
    for _ in range(NUM_ROUNDS):
        found: dict[str, dict[int, float]] = {"samples": {}, "width": {}}
        for noun, sizes in (("samples", SAMPLES), ("width", WIDTHS)):
            for size in sizes:
                num_samples, width = (size, 1000) if noun == "samples" else (SAMPLES[0], size)
                path = folder / "data.safetensors"
                path.parent.mkdir(parents=True, exist_ok=True)
                images, labels = dataset.train.images[:num_samples], dataset.train.labels[:num_samples]
                save_file({"train.images": images.clone(), "train.labels": labels.clone()}, path)
                config = wide.override({"data": str(path), "width": width})
                found[noun][size] = _time_layers(config, folder / "run")[2]
        rounds.append(found)
    medians = {
        noun: {size: statistics.median(found[noun][size] for found in rounds) for size in sizes}
        for noun, sizes in (("samples", SAMPLES), ("width", WIDTHS))
    }
    return {
        "config": "recipe inject, 2 epochs; digits for depth, MNIST for samples (1000 units) and width (6000 samples)",
        "depth_ratio": last / first,
        "seconds": medians,
        "per_sample_ratio": _ratio(medians["samples"], 1),
        "per_square_width_ratio": _ratio(medians["width"], 2),
    }


def _ratio(seconds: dict[int, float], power: int) -> float:
    """Of the largest size, by how much it grew to the power of how much larger it is."""
    small, large = min(seconds), max(seconds)
    return seconds[large] / seconds[small] / (large / small) ** power


def _time_layers(config: ff.Config, folder: Path) -> list[float]:
    shutil.rmtree(folder, ignore_errors=True)
    return [figures.elapsed_s for figures in ff.train(config, folder).layers]
