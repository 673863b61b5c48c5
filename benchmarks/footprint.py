"""Planned peak memory against measured, over a seeded sweep of configurations.

Measured by the device's own allocator (on a CPU: what torch's profiler is told by it), from the first layer's cache on
disk to the last layer's end. The data set is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import shutil
import statistics
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ffstream as ff
from ffstream.data import SOURCES
from ffstream.data.shape import DataShape
from ffstream.device.memory import measure_peak_bytes
from ffstream.field.blueprint import Blueprint
from ffstream.plan.dry_run import do_on_paper
from ffstream.plan.footprint import Footprint, add_slots
from ffstream.plan.probe import measure_kernels
from ffstream.run.executor import Runner
from ffstream.settings.config import Config
from ffstream.settings.sizes import Sizes
from ffstream.training.observer import Observer

NUM_CONFIGS = 260
NUM_CONV_CONFIGS = 160
NUM_CONVOLUTIONS = 120  # without local layers
NUM_FIRST = 200  # of recipes that show each layer a label; the others are of those that do not
_MOST_LOCAL_WEIGHTS = 3_000_000  # of a layer with fields, so that it is trained in seconds


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
    if number >= NUM_FIRST:
        recipe = rng.choice(["grouped", "mono", "unsupervised"])
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
        "cache.dtype": rng.choice(["bf16", "bf16", "int8", "fp32"]),
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
    if recipe in ("grouped", "mono"):
        settings["objective.name"] = "cross_entropy"
        settings["objective.goodness"] = rng.choice(["mean", "sum"])
    if rng.random() < 0.25:  # a batch in parts, half of these from shards of their own
        settings["micro_batch"] = rng.randint(max(1, batch // 8), batch)
        if rng.random() < 0.5:
            settings["cache.shard_samples"] = rng.randint(batch // 8, batch // 2)
    if rng.random() < 0.25:  # a layer in tiles
        settings["network.tile_units"] = rng.randint(-(-width // 8), width)
    settings["optimiser.state_dtype"] = rng.choice(["fp32", "fp32", "bf16"])
    settings["objective.perturbation"] = rng.choice([0.0, 0.1])
    if recipe in ("inject", "hinton"):
        settings["negatives.sampler"] = rng.choice(["uniform", "hard"])
    settings["network.stack_layers"] = rng.choice([0, 0, 1, 2])
    whole = "micro_batch" not in settings and recipe in ("inject", "grouped", "mono")
    settings["objective.similarity"] = rng.choice(["none", "none", "matching", "contrastive"]) if whole else "none"
    return config.override(settings), num_features


def draw_conv_config(number: int, device: str = "cpu") -> tuple[Config, int]:
    """A configuration of one to four convolutions, some with a dense layer above, and a number of pixels.

    From `NUM_CONVOLUTIONS` on, at least one of the convolutions is a local layer with a field instead.
    """
    rng = random.Random(f"conv {number}")
    recipe = rng.choice(["mono", "mono", "inject", "grouped", "unsupervised"])
    side = rng.choice([14, 28, 32])
    lines: list[dict[str, Any]] = []
    left = side
    for _ in range(rng.choice([1, 2, 3, 4])):
        stride, pool = (rng.choice([1, 1, 1, 2]), rng.choice([1, 2])) if left >= 8 else (1, 1)
        left //= stride * pool
        options: dict[str, Any] = {"kernel": rng.choice([1, 3, 3, 5]), "stride": stride, "pool": pool}
        options["normalise"] = rng.choice(["channels", "channels", "samples"])
        options["pooling"] = rng.choice(["max", "average"])
        width = 10 * rng.randint(1, 9)  # of ten classes each has as many channels
        lines.append({"kind": "conv", "width": width} | options)
    if rng.random() < 0.3:
        lines.append({"kind": "dense", "width": rng.choice([64, 500])})
    batch = rng.choice([16, 32, 64, 128])
    settings: dict[str, Any] = {
        "network.layers": lines,
        "precision": rng.choice(["bf16", "fp32"]),
        "optimiser.name": rng.choice(["adam", "sgd"]),
        "optimiser.state_dtype": rng.choice(["fp32", "fp32", "bf16"]),
        "cache.tier": "disk",
        "cache.dtype": rng.choice(["bf16", "bf16", "int8", "fp32"]),
        "cache.shard_samples": batch * rng.choice([1, 2, 4]),
        "network.dropout": rng.choice([0.0, 0.2]),
        "objective.scale": 0.1,
        "objective.perturbation": rng.choice([0.0, 0.1]),
        "objective.peer_normalisation": rng.choice([0.0, 0.03]),
        "validation_fraction": rng.choice([0.0, 0.1]),
    }
    if rng.random() < 0.25:
        settings["micro_batch"] = rng.randint(max(1, batch // 8), batch)
    config = Config(recipe=recipe, batch=batch, device=device, epochs=rng.choice([1, 2]))
    if recipe == "mono":
        settings["labels.head_layers"] = rng.choice([1, 2, 3])
    if number >= NUM_CONVOLUTIONS:
        settings["network.layers"] = lines = _draw_fields(lines, side, rng)
        if all(line["kind"] != "conv" for line in lines):
            settings["labels.head_layers"] = 1
    return config.override(settings), side * side


def _draw_fields(lines: list[dict[str, Any]], side: int, rng: random.Random) -> list[dict[str, Any]]:
    """The same layers with local ones in place of one convolution or more."""
    found, num_channels = list[dict[str, Any]](), 1
    chosen = rng.randrange(sum(line["kind"] == "conv" for line in lines))
    for place, line in enumerate(lines):
        if line["kind"] == "conv" and (place == chosen or rng.random() < 0.5):
            width, field = rng.choice([3, 4, 10]), min(rng.choice([1, 3, 4, 5, 7, 11]), 2 * side - 1)
            stride = line["stride"] * line["pool"]
            while field > 1 and (side // stride) ** 2 * width * field * field * num_channels > _MOST_LOCAL_WEIGHTS:
                field -= 1
            line = {"kind": "local", "width": width, "field": field, "stride": stride}
        if line["kind"] != "dense":
            side = -(-side // line["stride"]) // line.get("pool", 1)
            num_channels = line["width"]
        found.append(line)
    return found


def image_shape(num_features: int) -> tuple[int, int]:
    """(height, width), about square."""
    height = next(size for size in range(math.isqrt(num_features), 0, -1) if num_features % size == 0)
    return height, num_features // height


def write_images(path: Path, num_samples: int, num_features: int) -> None:
    """The embedded digits, repeated to the size that is asked for, as images that are about square."""
    digits = SOURCES["digits"](Path()).train
    images = digits.images[:].flatten(1).repeat(-(-num_samples // len(digits)), -(-num_features // 64))
    labels = digits.labels.repeat(-(-num_samples // len(digits)))
    images = images[:num_samples, :num_features].reshape(num_samples, *image_shape(num_features))
    x, y = images.to(torch.uint8).numpy(), labels[:num_samples].numpy()
    np.savez(path, x_train=x, x_test=x, y_train=y, y_test=y)


def measure_resumed_run(path: Path) -> int:
    """Peak bytes of what the runner does, the data set left out."""
    run, peaks = Runner.run, []

    def measured_run(runner: Runner) -> None:
        data_set = dict(runner._inputs._splits)  # so that what was there before is there after
        peaks.append(measure_peak_bytes(lambda: run(runner), runner._device))
        data_set.clear()

    with unittest.mock.patch.object(Runner, "run", measured_run):
        ff.resume(path)
    return peaks[0]


def compare(config: Config, num_features: int, folder: Path) -> tuple[int, int]:
    """(planned, measured) peak bytes of training all layers, from the first one's cache on disk."""
    footprints, measured = plan_and_measure(config, num_features, folder)
    return max(footprint.peak for footprint in footprints), measured


def plan_and_measure(config: Config, num_features: int, folder: Path) -> tuple[list[Footprint], int]:
    """The footprints of the first layers, and the peak bytes of training all of them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sizes = Sizes.of(config)
    num_samples = 2 * max(sizes.shard_samples, sizes.batch) + sizes.batch + 40
    write_images(folder / "data.npz", num_samples, num_features)
    config = config.override({"data": str(folder / "data.npz"), "cache.tier": "disk"})  # in memory, it counts as well
    with contextlib.suppress(StoppedError):
        ff.train(config, folder / "run", observer=StopBeforeTraining())
    measured = measure_resumed_run(folder / "run")
    shutil.rmtree(folder)
    data = DataShape.of(num_samples, num_features, 10, config.validation_fraction)
    data = dataclasses.replace(data, image_shape=image_shape(num_features))
    blueprint, device = Blueprint.of(config, data), torch.device(config.device)
    kernels = measure_kernels(blueprint, device)
    layers = do_on_paper(blueprint, draws_on_device=device.type == "cpu", kernels=kernels)
    layers = add_slots(layers, blueprint, staged=True)
    return [layer.footprint for layer in layers], measured


def measure_layer(device: str, folder: Path) -> dict[str, Any]:
    """One layer of 2000 x 2000 with Adam against what it cannot do without: state, two slots and one batch."""
    config = Config(layers=1, width=2000, batch=512, device=device, epochs=1, validation_fraction=0.0)
    config = config.override({"precision": "bf16", "cache.tier": "disk", "cache.shard_samples": 4096})
    (footprint,), measured = plan_and_measure(config, 2000, folder)
    state = footprint.weights + footprint.optimiser
    batch = footprint.rows + footprint.activities + Sizes.of(config).batch * 2000 * 2  # with its product in bf16
    return {
        "measured_bytes": measured,
        "state_bytes": state,
        "slots_bytes": footprint.slots,
        "batch_bytes": batch,
        "ratio": measured / (state + footprint.slots + batch),
    }


def measure_footprint(device: str, folder: Path) -> dict[str, Any]:
    """Ratios planned / measured over the sweep: none below 1, none above 1.1."""
    found = _sweep(draw_config, NUM_CONFIGS, device, folder)
    return found | {"layer_2000": measure_layer(device, folder)}


def measure_conv_footprint(device: str, folder: Path) -> dict[str, Any]:
    """The same for convolutions."""
    return _sweep(draw_conv_config, NUM_CONV_CONFIGS, device, folder)


def _sweep(
    draw: Callable[[int, str], tuple[Config, int]], num_configs: int, device: str, folder: Path
) -> dict[str, Any]:
    rows = []
    for number in range(num_configs):
        config, num_features = draw(number, device)
        planned, measured = compare(config, num_features, folder)
        rows.append({"number": number, "planned_bytes": planned, "measured_bytes": measured})
    ratios = [row["planned_bytes"] / row["measured_bytes"] for row in rows]
    return {
        "config": f"{draw.__name__} of 0 to {num_configs - 1} in benchmarks/footprint.py, cache on disk",
        "lowest_ratio": min(ratios),
        "median_ratio": statistics.median(ratios),
        "highest_ratio": max(ratios),
        "configurations": rows,
    }
