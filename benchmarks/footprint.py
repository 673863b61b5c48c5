"""Planned peak memory against measured, over a seeded sweep of configurations.

Measured by the device's own allocator (on a CPU: what torch's profiler is told by it), from the first layer's cache on
disk to the last layer's end. The data set is left out.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import statistics
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ffstream as ff
from ffstream.config import Config
from ffstream.data import SOURCES
from ffstream.footprint import NUM_DISTINCT, DataShape, do_on_paper
from ffstream.labels import make_label_method
from ffstream.memory import measure_peak_bytes
from ffstream.network import compute_layer_specs
from ffstream.observer import Observer
from ffstream.probe import measure_kernels
from ffstream.runner import Runner

NUM_CONFIGS = 200


class StoppedError(Exception):
    """Ends a run before its first layer is trained."""


class StopBeforeTraining(Observer):
    """The caches that the first layer reads are there; what is measured begins."""

    def on_step(self, description: str) -> None:
        """Raise StoppedError."""
        if description.startswith("training"):
            raise StoppedError


def draw_config(number: int, device: str = "cpu") -> tuple[Config, int]:
    """A configuration of a few layers, and a number of features."""
    rng = random.Random(number)
    recipe = rng.choice(["inject", "inject", "hinton"])
    granularity = rng.choice([1, 8, 64])
    width = int(2 ** rng.uniform(6, 13)) // granularity * granularity
    num_features = rng.choice([64, 784, 784, 3072])
    batch = rng.choice([32, 64, 128, 256, 512, 1024])
    config = Config(
        recipe=recipe,
        layers=rng.choice([1, 2, 3, 4]),
        width=width,
        batch=batch,
        device=device,
        epochs=rng.choice([1, 2]),
    )
    settings: dict[str, Any] = {
        "precision": rng.choice(["bf16", "fp32"]),
        "optimiser.name": rng.choice(["adam", "adamw", "sgd"]),
        "cache.tier": "disk",
        "cache.dtype": rng.choice(["bf16", "bf16", "fp16", "fp32"]),
        "cache.shard_samples": batch * (rng.choice([1, 2, 4]) if width <= 2048 else 1),
        "network.dropout": rng.choice([0.0, 0.4]),
        "network.input_skip": rng.random() < 0.25,
        "negatives.per_step": rng.choice([1, 3, 9]) if recipe == "inject" else rng.choice([1, 3]),
        "objective.name": rng.choice(["cross_entropy", "logistic", "pairwise"]),
        "objective.goodness": rng.choice(["mean_squares", "sum_squares", "neg_mean_squares"]),
        "objective.peer_normalisation": rng.choice([0.0, 0.03]),
        "objective.scale": 0.1,
        "validation_fraction": rng.choice([0.0, 0.1]),
    }
    if recipe == "hinton":
        settings["negatives.per_sample"] = rng.choice([3, "all"])
    return config.override(settings), num_features


def write_images(path: Path, num_samples: int, num_features: int) -> None:
    """The embedded digits, repeated to the size that is asked for."""
    digits = SOURCES["digits"]("").train
    images = digits.images.flatten(1).repeat(-(-num_samples // len(digits)), -(-num_features // 64))
    labels = digits.labels.repeat(-(-num_samples // len(digits)))
    arrays = {"x": images[:num_samples, :num_features].to(torch.uint8), "y": labels[:num_samples]}
    np.savez(path, **{f"{name}_{part}": array.numpy() for name, array in arrays.items() for part in ("train", "test")})


def measure_resumed_run(path: Path) -> int:
    """Peak bytes of what the runner does, the data set left out."""
    run, peaks = Runner.run, []

    def measured_run(runner: Runner) -> None:
        data_set = dict(runner._images)  # so that what was there before is there after
        peaks.append(measure_peak_bytes(lambda: run(runner), runner._device))
        data_set.clear()

    with unittest.mock.patch.object(Runner, "run", measured_run):
        ff.resume(path)
    return peaks[0]


def compare(config: Config, num_features: int, folder: Path) -> tuple[int, int]:
    """(planned, measured) peak bytes of training all layers, from the first one's cache on disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    assert isinstance(config.batch, int)
    num_samples = 2 * int(config.cache.shard_samples) + config.batch + 40
    write_images(folder / "data.npz", num_samples, num_features)
    config = config.override({"data": str(folder / "data.npz")})
    with contextlib.suppress(StoppedError):
        ff.train(config, folder / "run", observer=StopBeforeTraining())
    measured = measure_resumed_run(folder / "run")
    shutil.rmtree(folder)
    num_validation = round(num_samples * config.validation_fraction)
    counts = {"train": num_samples - num_validation} | ({"validation": num_validation} if num_validation else {})
    data = DataShape(num_features, 10, counts)
    method = make_label_method(config, 10, num_features)
    specs = compute_layer_specs(config, num_features)[:NUM_DISTINCT]
    device = torch.device(config.device)
    kernels = [measure_kernels(config, spec, method, data, device) for spec in specs]
    on_host = device.type == "cpu"
    layers = do_on_paper(config, specs, method, data, draws_on_device=on_host, staged=True, kernels=kernels)
    return max(layer.footprint.peak for layer in layers), measured


def measure_footprint(device: str, folder: Path) -> dict[str, Any]:
    """Ratios planned / measured over the sweep: none below 1, none above 1.1."""
    rows = []
    for number in range(NUM_CONFIGS):
        config, num_features = draw_config(number, device)
        planned, measured = compare(config, num_features, folder)
        rows.append({"number": number, "planned_bytes": planned, "measured_bytes": measured})
    ratios = [row["planned_bytes"] / row["measured_bytes"] for row in rows]
    return {
        "config": f"configurations 0 to {NUM_CONFIGS - 1} of benchmarks/footprint.py, cache on disk",
        "lowest_ratio": min(ratios),
        "median_ratio": statistics.median(ratios),
        "highest_ratio": max(ratios),
        "configurations": rows,
    }
