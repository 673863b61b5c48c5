"""The training that is tortured: small, but with everything that a large one has."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import torch

import ffstream as ff
from ffstream.field.blueprint import Blueprint
from ffstream.ground.folder import TEMPORARY
from ffstream.plan import dry_run, fitting
from ffstream.run import executor
from ffstream.settings.sizes import Sizes
from tests.helpers import SMALL, InterruptAt, layer_digests, metrics_without_times

# Of each, the cases of a kind are tried at every point.
WORKLOADS: dict[str, dict[str, Any]] = {
    "disk": {"cache.tier": "disk"},
    "host": {"cache.tier": "host"},
    "device": {"cache.tier": "device", "save_every": "0.003s"},  # of a clock that counts
    "tiles": {
        **{"cache.tier": "disk", "cache.dtype": "int8", "network.tile_units": 12, "layers": 2},
        "save_every": "0.004s",
    },
    "stacks": {"cache.tier": "disk", "network.stack_layers": 2, "augmentation.views": 3, "augmentation.max_shift": 1},
    "initial": {"cache.tier": "disk", "layers": 2},  # from another run
    "rounds": {
        **{"cache.tier": "disk", "schedule.order": "rounds", "augmentation.restream": True, "layers": 2},
        **{"augmentation.max_shift": 1, "save_every": "0.003s"},
    },
    "windows": {
        **{"cache.tier": "disk", "schedule.order": "rounds", "schedule.window_samples": 100, "layers": 2},
        **{"augmentation.restream": True, "augmentation.max_shift": 1, "save_every": "0.003s"},
    },
    "stream": {
        **{"cache.tier": "disk", "schedule.order": "stream", "schedule.window_samples": 100, "layers": 2},
        **{"schedule.replays": 2, "epochs": 3, "save_every": "0.003s"},
    },
    "restream": {"cache.tier": "disk", "augmentation.restream": True, "augmentation.max_shift": 1, "layers": 2},
}

# Most of a case is its steps, and what is tried lies between them: between epochs, layers and shards.
_FEW_STEPS = {"batch": 96, "epochs": 2}
_MOST_PLANS = 8  # remembered


def make_config(name: str, data: Path) -> ff.Config:
    """Of a workload."""
    config = ff.Config().override(SMALL | _FEW_STEPS | {"data": str(data)} | WORKLOADS[name])
    if name != "initial":
        return config
    other = data.with_name("started-from")
    train(config.override({"seed": 1}), other)
    return config.override({"init_from": str(other)})


def plan_once() -> None:
    """Do on paper what a configuration takes once for all processes forked later: three quarters of a case's time.

    No file is touched by it, and nothing of a run's state is asked.
    """
    found: dict[str, list[dry_run.PaperLayer]] = {}

    def do_once(blueprint: Blueprint, **more: Any) -> list[dry_run.PaperLayer]:
        key = repr((blueprint.config, more))
        if key not in found:
            if len(found) == _MOST_PLANS:
                found.clear()
            found[key] = dry_run.do_on_paper(blueprint, **more)
        return found[key]

    setattr(fitting, "do_on_paper", do_once)  # noqa: B010


def be_steady(number: int) -> None:
    """Make times, peaks of memory and random names of this process functions of `number`, and of nothing else.

    Two processes that meet the same fault in the same way then leave the same bytes.
    """
    clock, chance = threading.local(), random.Random(number)

    def read_clock() -> float:
        clock.ticks = getattr(clock, "ticks", itertools.count(1))
        return next(clock.ticks) / 1024

    def make_token(num_bytes: int = 16) -> str:
        return chance.randbytes(num_bytes).hex()

    setattr(time, "perf_counter", read_clock)  # noqa: B010
    setattr(secrets, "token_hex", make_token)  # noqa: B010
    setattr(executor, "peak_memory_bytes", lambda _device: 1 << 20)  # noqa: B010


def digest_tree(folder: Path) -> str:
    """Of all that a process can find below a folder, but for which process had a lock."""
    digest = hashlib.sha256()
    for place, folders, names in os.walk(folder):
        folders.sort()
        digest.update(f"{place}\0{folders}\0{sorted(names)}\0".encode())
        for name in sorted(names):
            path = Path(place, name)
            found = path.lstat()
            data = path.read_bytes() if path.is_file() and not path.is_symlink() and "lock" not in name else b""
            digest.update(f"{found.st_mode} {len(data)}\0".encode() + data)
    return digest.hexdigest()


def stop_in_second_layer(config: ff.Config) -> InterruptAt:
    """Stops a run after the first epoch of its second layer; each tile of a layer is reported epochs of its own."""
    return InterruptAt("on_epoch", config.epochs * Sizes.of(config).num_tiles + 1)


def train(config: ff.Config, path: Path, observer: ff.Observer | None = None) -> None:
    """Train, or go on with what is there."""
    torch.set_num_threads(1)
    if config.schedule.is_stream:
        ff.stream(config, config.data, path, resume=True, observer=observer)
    else:
        ff.train(config, path, resume=True, observer=observer)


def describe(path: Path) -> dict[str, Any]:
    """All that two runs must have in common, and what must not be left."""
    run = ff.Run(path)
    run.verify()
    own = run.directory.read_identity() or ""
    names = (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    files = sorted(name.replace(own, "IDENTITY") for name in names)
    return {
        "layers": layer_digests(path),
        "metrics": metrics_without_times(path) if run.directory.metrics_path.exists() else None,  # put aside
        "test error": run.evaluate().error,
        "files": [name for name in files if "lock" not in name],
        "temporary": [name for name in files if TEMPORARY in name or "/.tmp" in name],
    }
