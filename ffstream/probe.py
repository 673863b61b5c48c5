"""What only the machine can tell: short measurements before a run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch

from ffstream.cache import CacheLayout
from ffstream.config import Config, MemoryConfig
from ffstream.errors import BudgetError
from ffstream.footprint import DataShape, KernelBytes, cache_layouts
from ffstream.labels import LabelMethod
from ffstream.ledger import PAPER, Ledger
from ffstream.memory import device_free_bytes, host_free_bytes, is_in_memory, measure_peak_bytes, resident_bytes
from ffstream.network import LayerSpec, build_layer
from ffstream.plan import Resources
from ffstream.propagation import chunk_samples
from ffstream.units import format_bytes, parse_bytes
from ffstream.workspace import Workspace

_TILE_UNITS = 1024  # a layer works by tiles of so many units, or of a divisor of it, and a remainder


# Of what is free, the share that a run takes unless it is told: the rest is for the allocator and for other programs.
_SHARE = 0.8


def survey_resources(settings: MemoryConfig, device: torch.device, folder: Path) -> Resources:
    """What a run in `folder` may take here: what it is told, else most of what is free.

    Raises BudgetError for a budget that is larger than the machine, or smaller than the interpreter.
    """
    used = resident_bytes()
    host_total = used + host_free_bytes()
    host = _budget("host", settings.host_budget, used + int(_SHARE * host_free_bytes()), host_total)
    if host <= used:
        raise BudgetError(
            f"host budget {format_bytes(host)}: the interpreter with its libraries takes {format_bytes(used)} already; "
            f"allowed more than that, up to {format_bytes(host_total)}"
        )
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(place)
    disk = _budget("disk", settings.disk_budget, int(_SHARE * usage.free), usage.free)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        device_bytes = _budget("device", settings.budget, int(_SHARE * device_free_bytes(device)), total)
    else:
        device_bytes = _budget("device", settings.budget, host - used, host_total)
    return Resources(
        device_type=device.type,
        device_bytes=device_bytes,
        host_bytes=host,
        host_used_bytes=used,
        disk_bytes=disk,
        disk_is_memory=is_in_memory(place),
    )


def _budget(noun: str, text: str, default_bytes: int, most_bytes: int) -> int:
    if text == "auto":
        return default_bytes
    num_bytes = parse_bytes(text)
    if num_bytes > most_bytes:
        raise BudgetError(
            f"{noun} budget {text}: this machine has {format_bytes(most_bytes)} of it; allowed up to that"
        )
    return num_bytes


@torch.no_grad()
def measure_kernels(
    config: Config, spec: LayerSpec, method: LabelMethod, data: DataShape, device: torch.device
) -> KernelBytes:
    """What the matrix products of this layer take on the device beside their operands.

    The libraries below torch pack operands, or keep a workspace, as they see fit: no formula tells.
    """
    if spec.num_units > _TILE_UNITS:
        spec = dataclasses.replace(spec, num_units=_TILE_UNITS + spec.num_units % _TILE_UNITS)

    def multiply(where: torch.device, row_counts: set[int], *, training: bool) -> None:
        most = max(row_counts)
        with where:
            layer = build_layer(config, spec, num_classes=1)
            rows, gradient = torch.zeros(most, spec.in_features), torch.zeros(most, spec.num_units)
        layer.workspace = Workspace(where)
        for num_rows in (most, *row_counts):  # the most first, which makes all buffers
            layer.preactivations(rows[:num_rows])
            for _ in layer.gradients(rows[:num_rows], gradient[:num_rows]) if training else ():
                pass

    def measure(row_counts: set[int], *, training: bool) -> int:
        with Ledger() as ledger:
            multiply(PAPER, row_counts, training=training)
        peak_bytes = measure_peak_bytes(lambda: multiply(device, row_counts, training=training), device)
        return int(max(peak_bytes - ledger.peak_bytes, 0))

    layouts = cache_layouts(config, method, data, spec.in_features)
    return KernelBytes(
        in_steps=measure(_step_rows(config, method, layouts["train"]), training=True),
        in_passes=measure(set().union(*map(_pass_rows, layouts.values())), training=False),
    )


def _step_rows(config: Config, method: LabelMethod, layout: CacheLayout) -> set[int]:
    """The numbers of rows that occur in the products of training."""
    assert isinstance(config.batch, int), "batch is resolved before it is planned for"
    rows_a_sample = 1 if method.uses_embedding else 1 + config.negatives.per_step
    counts = set()
    for samples in _shard_sizes(layout):
        num_batches = -(-samples // config.batch)
        counts |= {rows_a_sample * (samples // num_batches), rows_a_sample * -(-samples // num_batches)}
    return counts


def _pass_rows(layout: CacheLayout) -> set[int]:
    """The numbers of rows that occur in the products of a pass."""
    chunk = chunk_samples(layout)
    sizes = _shard_sizes(layout)
    counts = {min(chunk, samples) for samples in sizes} | {samples % chunk for samples in sizes}
    return {count * layout.num_rows for count in counts if count}


def _shard_sizes(layout: CacheLayout) -> set[int]:
    return {layout.shard_shape(shard)[0] for shard in (0, layout.num_shards - 1)}
