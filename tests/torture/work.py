"""The training that is tortured: small, but with everything that a large one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import ffstream as ff
from ffstream import paper, planner
from ffstream.folder import TEMPORARY
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

_MOST_PLANS = 8  # remembered


def make_config(name: str, data: Path) -> ff.Config:
    """Of a workload."""
    return ff.Config().override(SMALL | {"data": str(data)} | WORKLOADS[name])


def plan_once() -> None:
    """Do on paper what a configuration takes once for all processes forked later: three quarters of a case's time.

    No file is touched by it, and nothing of a run's state is asked.
    """
    found: dict[str, list[paper.PaperLayer]] = {}

    def do_once(config: ff.Config, *others: Any, **more: Any) -> list[paper.PaperLayer]:
        key = repr((config, more))
        if key not in found:
            if len(found) == _MOST_PLANS:
                found.clear()
            found[key] = paper.do_on_paper(config, *others, **more)
        return found[key]

    setattr(planner, "do_on_paper", do_once)  # noqa: B010


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
