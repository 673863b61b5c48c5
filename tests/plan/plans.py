"""Plans of small configurations on machines that are described and not measured."""

from __future__ import annotations

import dataclasses

import torch

import ffstream as ff
from ffstream.data.shape import DataShape
from ffstream.plan.fitting import compute_plan
from ffstream.plan.plan import Resources

CPU = torch.device("cpu")
MIB, GIB = 1 << 20, 1 << 30
PLENTY = Resources("cpu", 64 * GIB, 64 * GIB, GIB // 4, 64 * GIB)
CUDA = dataclasses.replace(PLENTY, device_type="cuda")


def plan(resources=PLENTY, num_samples=60000, num_features=784, num_done=0, is_started=False, must_fit=True, **changes):
    recipe = changes.pop("recipe", "inject")
    config = ff.Config(recipe=recipe, layers=changes.pop("layers", 4), width=changes.pop("width", 500), batch=256)
    config = config.override({"precision": "bf16", "negatives.sampler": "uniform"} | changes)
    data = DataShape(num_features, 10, {"train": num_samples, "validation": num_samples // 10})
    options = {"is_started": is_started, "must_fit": must_fit}
    return compute_plan(config, data, num_samples * num_features, resources, num_done, **options)


def with_less(resources=PLENTY, **fields):
    return dataclasses.replace(resources, **fields)
