"""What a step makes of a GPU at several widths, and whether a run keeps a budget by the figure of the driver.

`python -m benchmarks.accelerator DEVICE FOLDER` makes the run within a budget alone, in a process of its own: the
driver counts what a process has taken before.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import ffstream as ff
from benchmarks.step import NUM_BATCHES, NUM_ROUNDS, make_epoch, measure_rates, time_s
from ffstream.device.accelerator import find_accelerator
from ffstream.device.device import resolve_device
from ffstream.ground.units import parse_bytes

WIDTHS = (512, 2048, 4096)
BATCH, BATCH_ON_CPU = 4096, 1024
BUDGET = "1GiB"
TIGHT = {"layers": 2, "width": 8192, "batch": 512, "epochs": 1}  # layers whose state alone is 768 MiB
_POLL_S = 0.2


class _Operators(TorchDispatchMode):
    """Counts the operators that do work on a device: those that return a view are left out."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operators, self._kind = 0, device.type

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        returned = [each.alias_info for each in func._schema.returns if each.alias_info is not None]
        tensors = (each for each in tree_iter((args, kwargs, found)) if isinstance(each, torch.Tensor))
        is_here = any(each.device.type == self._kind for each in tensors)
        self.num_operators += is_here and all(each.is_write for each in returned)
        return found


def measure_accelerator(device: str, folder: Path) -> dict[str, Any]:
    """By width: the share of a plain product's rate, operators and waits in a step, and streamed against resident.

    And the most bytes that the driver has shown of a run with a budget, None where there is no driver that tells.
    """
    on = resolve_device(device)
    batch = BATCH_ON_CPU if find_accelerator(on) is None else BATCH
    command = [sys.executable, "-m", "benchmarks.accelerator", device, str(folder / "budget")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        "config": f"recipe inject, second layer, as wide as what it reads, batch {batch}, {NUM_BATCHES} batches, bf16",
        "widths": [measure_width(width, batch, on) for width in WIDTHS],
        "budget": json.loads(done.stdout.splitlines()[-1]),
    }


def measure_width(width: int, batch: int, device: torch.device) -> dict[str, Any]:
    """The figures of one width. On a CPU nothing is waited for, and nothing is streamed."""
    config = ff.Config(recipe="inject", layers=2, width=width, batch=batch, epochs=1000, device=str(device))
    config = config.override({"precision": "bf16", "cache.shard_samples": NUM_BATCHES * batch // 2})
    left, right = (torch.randn(num, width).bfloat16().to(device) for num in (batch, width))
    out = left @ right.t()
    epoch, epoch_flops = make_epoch(config, device)
    rate, product_rate = measure_rates(
        epoch, epoch_flops, lambda: torch.mm(left, right.t(), out=out), 2 * batch * width * width, device
    )
    with _Operators(device) as counter:
        epoch()
    accelerator = find_accelerator(device)
    waits = None if accelerator is None else accelerator.count_waits(epoch)
    streamed = None if accelerator is None else make_epoch(config, device, is_streamed=True)[0]
    return {
        "width": width,
        "share": rate / product_rate,
        "tflop_per_s": rate / 1e12,
        "operators_a_step": counter.num_operators / NUM_BATCHES,
        "waits_a_step": None if waits is None else waits / NUM_BATCHES,
        "streamed_ratio": None if streamed is None else _compare_times(streamed, epoch, device),
    }


def _compare_times(mine: Callable[[], object], theirs: Callable[[], object], device: torch.device) -> float:
    """The median ratio of their times, interleaved."""
    return statistics.median(time_s(mine, device) / time_s(theirs, device) for _ in range(NUM_ROUNDS))


def train_within(budget: str, device: torch.device, folder: Path, **settings: Any) -> dict[str, Any]:
    """Train with a budget. Returns the plan's bytes, those that the allocator reserved at most, and the driver's."""
    accelerator = find_accelerator(device)
    config = ff.Config(data="digits", device=str(device)).override(TIGHT | {"cache.tier": "disk"} | settings)
    config = config.override({"memory.budget": budget})
    planned = ff.make_plan(config).device
    if accelerator is not None:
        accelerator.release_unused(device)
        accelerator.reset_peak(device)
    shown, is_done = [0], threading.Event()

    def poll() -> None:
        while accelerator is not None and not is_done.is_set():
            shown.append(accelerator.driver_bytes(device) or 0)
            is_done.wait(_POLL_S)

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        run = ff.train(config, folder)
    finally:
        is_done.set()
        poller.join()
    return {
        "budget_bytes": parse_bytes(budget),
        "planned_bytes": planned.num_bytes,
        "context_bytes": planned.terms.get("context", 0),
        "reserved_bytes": None if accelerator is None else accelerator.peak_reserved_bytes(device),
        "shown_bytes": max(shown) or None,
        "tile_units": run.config.network.tile_units,
    }


if __name__ == "__main__":
    print(json.dumps(train_within(BUDGET, resolve_device(sys.argv[1]), Path(sys.argv[2]))))
