"""What is told of a run when it starts or resumes."""

from __future__ import annotations

import torch

from ffstream.field.blueprint import Blueprint
from ffstream.plan.plan import Plan
from ffstream.run.cycle import Cycle
from ffstream.run.schedule import Pass
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.observer import RunOutline


def outline_run(
    directory: RunDirectory,
    plan: Plan,
    blueprint: Blueprint,
    device: torch.device,
    cycle: Cycle | None,
    first: Pass,
    num_done: int,
    num_epochs_saved: int,
) -> RunOutline:
    """The outline of a run that goes on with the pass `first`, of which `num_done` layers are committed.

    An earlier process has saved `num_epochs_saved` of the next layer.
    """
    config, needed = plan.config, plan.device
    apart = sum(needed.terms.get(name, 0) for name in ("cache", "context"))
    return RunOutline(
        path=str(directory.path),
        num_layers=len(blueprint.specs),
        num_done=num_done,
        num_rounds=0 if cycle is None and not config.schedule.is_stream else config.epochs,
        num_rounds_done=max(first.round - 1, 0),
        num_windows=first.window.num,
        num_windows_done=first.window.number,
        is_stream=config.schedule.is_stream,
        num_epochs_saved=num_epochs_saved,
        num_in_stack=config.network.stack_layers,
        num_samples=int(config.schedule.window_samples)
        if config.schedule.is_stream
        else blueprint.data.num_samples["train"],
        num_tiles=max(len(blueprint.tiles_of(spec)) for spec in blueprint.distinct),
        num_epochs=tuple(spec.num_epochs for spec in blueprint.specs),
        is_labelled=config.labels.method != "none",
        device_type=device.type,
        planned_bytes=needed.num_bytes - apart - needed.terms.get("allocator", 0),
        allowed_bytes=needed.allowed_bytes - apart,
    )
