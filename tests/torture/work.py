"""The training that is tortured: small, but with everything that a large one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import ffstream as ff
from ffstream.files import TEMPORARY
from tests.helpers import SMALL, layer_digests, metrics_without_times

# Of each, the cases of a kind are tried at every point.
WORKLOADS: dict[str, dict[str, Any]] = {
    "disk": {"cache.tier": "disk"},
    "host": {"cache.tier": "host"},
    "device": {"cache.tier": "device"},
    "tiles": {"cache.tier": "disk", "cache.dtype": "int8", "network.tile_units": 12, "layers": 2},
    "stacks": {"cache.tier": "disk", "network.stack_layers": 2, "augmentation.views": 3, "augmentation.max_shift": 1},
    "restream": {"cache.tier": "disk", "augmentation.restream": True, "augmentation.max_shift": 1, "layers": 2},
}


def make_config(name: str, data: Path) -> ff.Config:
    """Of a workload."""
    return ff.Config().override(SMALL | {"data": str(data)} | WORKLOADS[name])


def train(config: ff.Config, path: Path) -> None:
    """Train, or go on with what is there."""
    torch.set_num_threads(1)
    ff.train(config, path, resume=True)


def describe(path: Path) -> dict[str, Any]:
    """All that two runs must have in common, and what must not be left."""
    run = ff.Run(path)
    run.verify()
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return {
        "layers": layer_digests(path),
        "metrics": metrics_without_times(path) if run.directory.metrics_path.exists() else None,  # put aside
        "test error": run.evaluate().error,
        "files": [name for name in files if "lock" not in name],
        "temporary": [name for name in files if TEMPORARY in name or "/.tmp" in name],
    }
