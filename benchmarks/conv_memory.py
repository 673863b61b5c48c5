"""Peak memory of convolutional networks by depth, beside backpropagation of the same network."""

from __future__ import annotations

import contextlib
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import ffstream as ff
from benchmarks.footprint import StopBeforeTraining, StoppedError, measure_resumed_run
from ffstream.device.memory import measure_peak_bytes
from ffstream.field.network import compute_layer_specs
from ffstream.settings.config import Config

DEPTHS = (8, 16, 32)
BUDGET = "80MiB"  # less than checkpointed backpropagation takes of 8 layers
_BATCH, _NUM_STEPS, _NUM_IMAGES = 128, 2, 1200
_SHAPE, _NUM_CLASSES = (32, 32, 3), 10


def measure_conv_memory(device: str, folder: Path) -> dict[str, Any]:
    """Of networks of recipe `conv`, in bf16 and with the cache on disk, at each depth."""
    rows = [_measure_depth(depth, device, folder) for depth in DEPTHS]
    growth = {}
    for name in ("ffstream_bytes", "in_budget_bytes"):
        ours = [row[name] for row in rows]
        growth[name] = max(ours) / min(ours) - 1
    return {
        "config": f"recipe conv, batch {_BATCH}, bf16, images of 32 x 32 x 3, cache on disk; backprop with Adam by "
        "autocast, channels_last, checkpointed in about sqrt(layers) segments",
        "depths": rows,
        "budget": BUDGET,
        "growth": growth,
        "highest_share": max(row["in_budget_bytes"] / row["checkpointed_bytes"] for row in rows),
    }


def _measure_depth(depth: int, device: str, folder: Path) -> dict[str, Any]:
    config = Config(recipe="conv", layers=depth, epochs=1, batch=_BATCH, device=device, precision="bf16")
    config = config.override({"cache.tier": "disk"})
    backprop, checkpointed = (_measure_backprop(config, torch.device(device), flag) for flag in (False, True))
    return {
        "depth": depth,
        "ffstream_bytes": _measure_ours(config, folder),
        "in_budget_bytes": _measure_ours(config.override({"memory.budget": BUDGET}), folder),
        "backprop_bytes": backprop,
        "checkpointed_bytes": checkpointed,
    }


def _measure_ours(config: Config, folder: Path) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (_NUM_IMAGES, *_SHAPE), dtype=np.uint8)
    labels = np.arange(_NUM_IMAGES) % _NUM_CLASSES
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images[:99], y_test=labels[:99])
    with contextlib.suppress(StoppedError):
        ff.train(config.override({"data": str(folder / "data.npz")}), folder / "run", observer=StopBeforeTraining())
    found = measure_resumed_run(folder / "run")
    shutil.rmtree(folder)
    return found


def _measure_backprop(config: Config, device: torch.device, is_checkpointed: bool) -> int:
    specs = compute_layer_specs(config, math.prod(_SHAPE), _SHAPE)

    def train() -> None:
        layers: list[nn.Module] = []
        for spec in specs:
            options = spec.shape.options
            parts: list[nn.Module] = [nn.Conv2d(spec.shape.reads.num_channels, spec.width, options.kernel, padding=1)]
            parts.append(nn.ReLU(inplace=True))
            parts += [nn.MaxPool2d(options.pool)] * (options.pool > 1)
            layers.append(nn.Sequential(*parts))
        readout = nn.Sequential(nn.Flatten(), nn.Linear(specs[-1].handed_on.num_features, _NUM_CLASSES))
        network = nn.Sequential(*layers, readout).to(device)
        network = network.to(memory_format=torch.channels_last)
        optimiser = torch.optim.Adam(network.parameters(), fused=True)
        images = torch.rand(_BATCH, 3, 32, 32).to(device, memory_format=torch.channels_last)
        labels = (torch.arange(_BATCH) % _NUM_CLASSES).to(device)
        for _ in range(_NUM_STEPS):
            with torch.autocast(device.type, torch.bfloat16):
                if is_checkpointed:
                    segments = round(math.sqrt(len(specs)))
                    scores = checkpoint_sequential(network, segments, images, use_reentrant=False)
                else:
                    scores = network(images)
                loss = nn.functional.cross_entropy(scores, labels)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    with torch.enable_grad():
        return measure_peak_bytes(train, device)
