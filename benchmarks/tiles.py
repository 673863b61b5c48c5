"""Layers below one layer: the two ways to train a layer by tiles, against the same layer trained whole."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

import ffstream as ff
from benchmarks.footprint import plan_and_measure
from ffstream.data.shape import DataShape
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Layer, cut_units
from ffstream.settings.config import Config
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.micro_batch import MicroBatch

WIDTH, NUM_LAYERS, NUM_EPOCHS = 6144, 2, 4
STATE_BYTES_A_WEIGHT = 12  # float32 weights and two moments of Adam
BUDGET_SHARE = 8  # how many times the budget those of the widest layer are
SEEDS = (0,)
EXACT_BATCHES = (512, 4096)


class _Way(TypedDict):
    seconds: float
    validation_error: float
    test_error: float
    tile_units: int | str


def make_exact_trainers(
    tiles: list[Layer], layer_index: int, whole: Blueprint, device: torch.device
) -> list[LayerTrainer]:
    """One for each tile, that all learn at once, so that the goodness and the threshold are those of the whole."""
    return [LayerTrainer(tile, layer_index, whole, device, slice(0, whole.sizes.width)) for tile in tiles]


def take_exact_step(
    trainers: list[LayerTrainer],
    block: Tensor,
    index: Tensor,
    candidates: Tensor,
    factor: float,
    generator: torch.Generator,
) -> None:
    """The step of the whole layer, up to rounding: each tile's goodness, their sum, then each tile's update.

    Every tile visits the device twice a step, and its preactivations are computed twice.
    """
    state = generator.get_state()

    def rewound() -> torch.Generator:  # every visit drops the same features
        return generator.set_state(state)

    whole = MicroBatch(block, index, candidates)
    found = []
    for trainer in trainers:
        _, _, preactivations = trainer.multiply(whole, rewound())
        found.append(trainer.read_goodness(preactivations, candidates)[-1])
    total = torch.stack(found).sum(dim=0)
    for trainer, own in zip(trainers, found, strict=True):
        batch = MicroBatch(block, index, candidates, total - own)
        trainer.step([batch], len(index), factor, rewound())


def measure_tiles(data_root: str, device: str, folder: Path) -> dict[str, Any]:
    """Error, time and peak of a network whose widest layer is eight budgets large, against the same network whole."""
    budget_bytes = STATE_BYTES_A_WEIGHT * WIDTH * WIDTH // BUDGET_SHARE
    whole = Config(data="mnist", data_root=data_root, layers=NUM_LAYERS, width=WIDTH, epochs=NUM_EPOCHS, device=device)
    whole = whole.override({"precision": "bf16"})
    tight = whole.override({"memory.budget": str(budget_bytes)})
    pairs: list[dict[str, _Way]] = []
    for seed in SEEDS:
        pair: dict[str, _Way] = {}
        for name, config in {"whole": whole, "tiles": tight}.items():
            shutil.rmtree(folder, ignore_errors=True)
            start_s = time.perf_counter()
            run = ff.train(dataclasses.replace(config, seed=seed), folder)
            elapsed_s, error = time.perf_counter() - start_s, run.layers[-1].validation_error_to_here
            assert error is not None, "images are held out"
            pair[name] = {
                "seconds": elapsed_s,
                "validation_error": error,
                "test_error": run.evaluate().error,
                "tile_units": run.config.network.tile_units,
            }
        pairs.append(pair)
    plan = ff.make_plan(tight)
    # The same tiles over few samples: the account of a long run takes more memory than there is.
    short = plan.config.override({"cache.tier": "disk", "cache.shard_samples": plan.config.batch})
    short = short.override({"epochs": 1, "memory.budget": "auto"})
    footprints, measured_bytes = plan_and_measure(short, plan.layers[0].in_features, folder)
    return {
        "config": f"mnist, {NUM_LAYERS} x {WIDTH}, {NUM_EPOCHS} epochs, recipe inject, bf16",
        "budget_bytes": budget_bytes,
        "planned_bytes": plan.device.num_bytes,
        "planned_over_measured": max(footprint.peak for footprint in footprints) / measured_bytes,
        "num_tiles": plan.layers[-1].num_tiles,
        "time_ratio": statistics.median(pair["tiles"]["seconds"] / pair["whole"]["seconds"] for pair in pairs),
        "added_validation_error": statistics.mean(
            pair["tiles"]["validation_error"] - pair["whole"]["validation_error"] for pair in pairs
        ),
        "seeds": [{"seed": seed} | pair for seed, pair in zip(SEEDS, pairs, strict=True)],
        "exact": [time_exact_steps(batch, plan.sizes.tile_units, device) for batch in EXACT_BATCHES],
    }


def time_exact_steps(batch: int, tile_units: int, device_name: str, width: int = WIDTH) -> dict[str, Any]:
    """A step of the whole layer against one of its tiles that visit the device twice, weights and state with them.

    Neither is adversarial.
    """
    device = torch.device(device_name)
    config = Config(layers=2, width=width, batch=batch)
    config = config.override(
        {"precision": "bf16", "micro_batch": batch, "cache.shard_samples": batch, "objective.perturbation": 0.0}
    )
    blueprint = Blueprint.of(config, DataShape(width, 10))
    spec = blueprint.specs[1]
    tiles = [blueprint.build_layer(spec, units) for units in cut_units(width, tile_units)]
    exact = make_exact_trainers(tiles, 0, blueprint, device)
    whole = LayerTrainer(blueprint.build_layer(spec), 0, blueprint, device)
    block = torch.ones(batch, 1, width, dtype=torch.bfloat16, device=device)
    index, candidates = torch.arange(batch, device=device), torch.zeros(batch, 4, dtype=torch.int64, device=device)
    generator = torch.Generator(device)
    at_rest, slot = (torch.zeros(3 * tile_units * width, device=where) for where in ("cpu", device))

    def visit_twice() -> None:
        for _ in tiles:
            slot[: tile_units * width].copy_(at_rest[: tile_units * width])
        take_exact_step(exact, block, index, candidates, 1.0, generator)
        for _ in tiles:
            slot.copy_(at_rest)
            at_rest.copy_(slot)

    def step_at_once() -> None:
        whole.step([MicroBatch(block, index, candidates)], batch, 1.0, generator)

    seconds: dict[str, list[float]] = {"whole": [], "exact": []}
    for _ in range(6):
        for name, work in (
            ("whole", step_at_once),
            ("exact", visit_twice),
        ):
            start_s = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start_s)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {"batch": batch, "ratio": medians["exact"] / medians["whole"], "seconds": medians}
