"""A step of each convolution of a network against torch's own convolution and its gradient by the weights alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ffstream.data.shape import DataShape
from ffstream.device.accelerator import find_accelerator
from ffstream.device.parts import part_sizes
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Conv
from ffstream.field.network import LayerSpec
from ffstream.settings.config import Config
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.micro_batch import draw_for

_BATCH, _SHARD = 128, 512
_NUM_PAIRS, _NUM_WARM = 9, 2  # of a step and the library's work in turn, and how many of them are left out
_IMAGES = DataShape(3072, 10, {"train": 5000}, (32, 32, 3))


def measure_conv_step(device: str) -> dict[str, Any]:
    """Medians of pairs, layer by layer: five convolutions of recipe `conv` on images of 32 x 32 in colour."""
    config = Config(recipe="conv", layers=5, batch=_BATCH, device=device, precision="bf16")
    config = config.override({"cache.shard_samples": _SHARD})
    plain, whole = (Blueprint.of(each, _IMAGES) for each in (config.override({"labels.head_layers": 1}), config))
    layers = []
    for spec, its in zip(plain.specs, whole.specs, strict=True):
        found = _measure_layer(plain, spec, torch.device(device))
        found["with_classifier_ratio"] = _measure_layer(whole, its, torch.device(device))["ratio"]
        layers.append(found)
    return {
        "config": f"recipe conv, linear local classifiers, batch {_BATCH}, bf16, rows in memory, images of 32 x 32 x 3",
        "num_threads": torch.get_num_threads(),
        "layers": layers,
        "lowest_ratio": min(layer["ratio"] for layer in layers),
        "highest_ratio": max(layer["ratio"] for layer in layers),
    }


def _measure_layer(blueprint: Blueprint, spec: LayerSpec, device: torch.device) -> dict[str, Any]:
    layer = blueprint.build_layer(spec)
    assert isinstance(layer, Conv), "the recipe has no other layers"
    layer.workspace = Workspace(device, part_sizes(device.type))
    trainer = LayerTrainer(layer, spec.index, blueprint, device)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(_SHARD, 1, spec.in_features, generator=generator).to(device, torch.bfloat16)
    labels = torch.zeros(_SHARD, dtype=torch.int64)
    drawn = draw_for(labels, blueprint.method.candidates, None, generator, device, informed=False)
    index = torch.randperm(_SHARD, generator=generator)[:_BATCH].to(device)
    on_device = torch.Generator(device)
    planes = layer.read(block[index, 0])
    weight = layer.weight.detach().to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(F.conv2d(planes, weight, padding=layer.padding))

    def multiply() -> None:
        F.conv2d(planes, weight, padding=layer.padding)
        sides = [1, 1], [layer.padding] * 2, [1, 1]
        torch.ops.aten.convolution_backward(
            *(gradient, planes, weight, None, *sides, False, [0, 0], 1), output_mask=[False, True, False]
        )

    step_s, library_s = [], []
    for _ in range(_NUM_PAIRS):
        step_s.append(_time(lambda: trainer.step([drawn.take(block, index)], _BATCH, 1.0, on_device), device))
        library_s.append(_time(multiply, device))
    pairs = list(zip(step_s, library_s, strict=True))[_NUM_WARM:]
    return {
        "shape": spec.describe(),
        "step_s": statistics.median(step for step, _ in pairs),
        "library_s": statistics.median(library for _, library in pairs),
        "ratio": statistics.median(step / library for step, library in pairs),
    }


def _time(work: Callable[[], object], device: torch.device) -> float:
    accelerator = find_accelerator(device)
    start_s = time.perf_counter()
    work()
    if accelerator is not None:
        accelerator.synchronise(device)
    return time.perf_counter() - start_s
