"""Short measurements of the machine before a run, for what cannot be computed."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from ffstream.cache import CacheLayout, MemoryCache
from ffstream.cache.pinned import allocate_host
from ffstream.cache.transfer import Transfer
from ffstream.data.shape import DataShape
from ffstream.device.accelerator import find_accelerator, operand_dtype
from ffstream.device.ledger import PAPER, Ledger, Work
from ffstream.device.memory import (
    device_free_bytes,
    host_free_bytes,
    host_installed_bytes,
    is_in_memory,
    measure_peak_bytes,
    resident_bytes,
    unpinned_reason,
)
from ffstream.device.parts import PartSizes, part_sizes
from ffstream.device.reservations import reserved_by_others
from ffstream.device.workspace import Workspace
from ffstream.errors import BudgetError
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import LAYER_KINDS, Mode
from ffstream.field.network import LayerSpec
from ffstream.ground.files import to_absolute
from ffstream.ground.units import format_bytes, parse_bytes
from ffstream.plan.black_box import refusing_undeclared, use_declared
from ffstream.plan.dry_run import do_on_paper
from ffstream.plan.footprint import KernelBytes, Kernels, cache_layouts
from ffstream.plan.pinned import PROBED_BYTES
from ffstream.plan.plan import INTERPRETER_BYTES, Rates, Resources
from ffstream.settings.config import Config
from ffstream.settings.sections import MemoryConfig
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.micro_batch import samples_in_sweep
from ffstream.training.propagation import chunk_samples

# The share of what is installed, and of what is free, that a run takes unless it is given a budget: the rest is for the
# allocator and for other programs.
_SHARE = 0.8

_NUM_REPEATS = 16
_ENOUGH_S = 1.0  # after which a measurement is not repeated any more
_NUM_EPOCHS, _NUM_STEPS = 8, 4
# Rows, units and features of the products that are measured. On an accelerator, launching a product of a CPU's size
# takes about as long as the product itself; these take milliseconds there, and 100 MiB.
_PRODUCT_ON_CPU, _PRODUCT_ON_ACCELERATOR = (512, 1000, 1000), (4096, 4096, 4096)
_LEAST_SHARE = 0.1  # least share assumed: of a step for all but products; of that for memory, and for operators


def survey_resources(settings: MemoryConfig, device: torch.device, folder: Path, held_bytes: int = 0) -> Resources:
    """What a run in `folder` may take on this machine: the budgets it is given, else most of what is free.

    Its `installed` is the same by what the machine has. `held_bytes` are on the disk already, in files that the run
    will replace. Raises BudgetError for a budget that is larger than the machine, or that the interpreter
    already uses up.
    """
    accelerator = find_accelerator(device)
    context = 0 if accelerator is None else accelerator.context_bytes(device)  # first, as it takes host memory too
    used, host_total = resident_bytes(), host_installed_bytes()
    free = max(host_free_bytes() - reserved_by_others(), 0)
    host = min(_budget("host", settings.host_budget, used + int(_SHARE * free), host_total), used + free)
    if host <= used:
        raise BudgetError(
            f"host budget {format_bytes(host)}: the interpreter with its libraries takes {format_bytes(used)} already; "
            f"allowed more than that, up to {format_bytes(host_total)}"
        )
    place = find_place(folder)
    usage = shutil.disk_usage(place)
    disk = _budget("disk", settings.disk_budget, int(_SHARE * usage.free) + held_bytes, usage.free + held_bytes)
    total = host_total if accelerator is None else accelerator.total_bytes(device)
    shares_host = accelerator is not None and accelerator.shares_host_memory(device)
    has_own = accelerator is not None and not shares_host
    device_bytes = int(_SHARE * (device_free_bytes(device) + context)) if has_own else min(host - used, total)
    device_bytes = _budget("device", settings.budget, device_bytes, total)
    most_host = _budget("host", settings.host_budget, INTERPRETER_BYTES + int(_SHARE * host_total), host_total)
    most_device = int(_SHARE * total) if has_own else min(most_host - INTERPRETER_BYTES, total)
    installed = Resources(
        device_type=device.type,
        device_bytes=_budget("device", settings.budget, most_device, total),
        host_bytes=most_host,
        host_used_bytes=INTERPRETER_BYTES,
        disk_bytes=disk,  # by what is free: all sizes need the same
        context_bytes=context,
        shares_host=shares_host,
        disk_is_memory=is_in_memory(place),
    )
    return Resources(
        device_type=device.type,
        device_bytes=device_bytes,
        host_bytes=host,
        host_used_bytes=used,
        disk_bytes=disk,
        context_bytes=context,
        shares_host=shares_host,
        disk_is_memory=is_in_memory(place),
        unpinned=_find_unpinned(device),
        installed=installed,
    )


def _find_unpinned(device: torch.device) -> str | None:
    """The warning if the system refuses to pin host memory, from which copies to the device start; else None."""
    if device.type == "cpu" or allocate_host(PROBED_BYTES, find_accelerator(device)).is_pinned():
        return None
    return unpinned_reason()


def _budget(noun: str, text: str, default_bytes: int, most_bytes: int) -> int:
    if text == "auto":
        return default_bytes
    num_bytes = parse_bytes(text)
    if num_bytes > most_bytes:
        raise BudgetError(f"{noun} budget {text}: allowed up to {format_bytes(most_bytes)}, what this machine has")
    return num_bytes


def measure_rates(config: Config, device: torch.device, folder: Path) -> Rates:
    """Measure how fast this machine does a run's work, by matrix products and by steps of small and large layers.

    Memory and the start of an operator are slower within a step than by themselves, so both are derived from steps.
    """
    flops_per_s = _measure_products(config, device)
    small_s, small = _measure_step(config, 256, 128, device)
    small_rest_s = _rest_s(small_s, small, flops_per_s)
    found = []
    for width in (1000, 2000):  # the first may be faster, as it may fit in a processor's caches: the mean is used
        large_s, large = _measure_step(config, width, 512, device)
        large_rest_s = _rest_s(large_s, large, flops_per_s)
        # Two equations: rest = moved_bytes / moved_bytes_per_s + num_operators * operator_s.
        ratio = small.num_operators / large.num_operators
        byte_s = (large_rest_s * ratio - small_rest_s) / (large.moved_bytes * ratio - small.moved_bytes)
        most_s = large_rest_s / large.moved_bytes
        found.append(min(max(byte_s, _LEAST_SHARE * most_s), most_s))
    byte_s = statistics.geometric_mean(found)
    operator_s = max(small_rest_s - small.moved_bytes * byte_s, _LEAST_SHARE * small_rest_s) / small.num_operators
    return Rates(
        flops_per_s=flops_per_s,
        moved_bytes_per_s=1 / byte_s,
        operator_s=operator_s,
        loaded_bytes_per_s={"host": measure_link(device), "disk": _measure_disk(folder)},
    )


def _rest_s(step_s: float, work: Work, flops_per_s: float) -> float:
    """Seconds of a step without its products; at least a small share, as these may have been measured too slow."""
    return max(step_s - work.flops / flops_per_s, _LEAST_SHARE * step_s)


def _measure_products(config: Config, device: torch.device) -> float:
    """FLOP/s of the two products of a step."""
    dtype = operand_dtype(config.precision)
    rows, units, features = _PRODUCT_ON_CPU if device.type == "cpu" else _PRODUCT_ON_ACCELERATOR
    left, right = (
        torch.zeros(rows, features, dtype=dtype, device=device),
        torch.zeros(units, features, dtype=dtype, device=device),
    )
    gradient = torch.zeros(rows, units, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(left, right.t())
        torch.mm(gradient[:, : units // 2].t(), left)
        torch.mm(gradient[:, units // 2 :].t(), left)

    return 4 * rows * units * features / best_s(multiply, device)


def _measure_step(config: Config, width: int, batch: int, device: torch.device) -> tuple[float, Work]:
    """Seconds and work of one step, within an epoch, of a layer that is as wide as its input."""
    with epochs_of_one_layer(config, width, batch, device) as (train_epoch, num_steps, step):
        return best_s(train_epoch, device, _NUM_EPOCHS) / num_steps, step


@contextlib.contextmanager
def epochs_of_one_layer(
    config: Config, width: int, batch: int, device: torch.device
) -> Iterator[tuple[Callable[[], object], int, Work]]:
    """Yield a function that trains a layer as wide as its input for an epoch, its number of steps, and a step's work.

    The rows that the layer reads lie on the device. The rest of the configuration decides what a step does.
    """
    num_classes, num_samples = 1 + max(config.negatives.per_step, 9), _NUM_STEPS * batch
    if config.labels.method == "overlay":
        config = config.override({"negatives.per_sample": "all"})  # as the number of classes is another here
    config = config.override({"network.kind": "linear", "network.layers": (), "layers": 1})  # which allows every shape
    config = dataclasses.replace(config, parts={k: v for k, v in config.parts if not k.startswith("layer.")})
    config = config.override({"width": width, "batch": batch, "epochs": 1})
    config = config.override({"network.tile_units": "auto", "micro_batch": "auto"})  # a whole layer, a batch at once
    config = config.override({"augmentation.views": 1, "augmentation.restream": False, "augmentation.transforms": ()})
    config = config.override({"labels.head_layers": 1})
    config = config.override({"cache.shard_samples": num_samples, "layers": 1})
    blueprint = Blueprint.of(config, DataShape(width, num_classes, {"train": num_samples}))
    (spec,) = blueprint.specs
    (on_paper,) = do_on_paper(blueprint, draws_on_device=False, parts=part_sizes(device.type))
    layout = cache_layouts(blueprint, spec.row)["train"]
    cache = MemoryCache(layout, device)
    rows = cache.allocate(0, device)
    assert rows is not None, "the cache lies on the device"
    rows.fill_(1.0)
    labels = torch.zeros(num_samples, dtype=torch.int64)
    trainer = LayerTrainer(blueprint.build_layer(spec), 0, blueprint, device)
    with torch.no_grad(), Transfer(device) as transfer:
        yield lambda: trainer.train_epoch(transfer, cache, labels, 0), _NUM_STEPS, on_paper.step


def measure_link(device: torch.device, *, back: bool = False) -> float:
    """Bytes per second from host memory to the device, or `back`; host memory is pinned unless the system refuses."""
    if device.type == "cpu":
        return float("inf")
    on_host = allocate_host(PROBED_BYTES, find_accelerator(device))
    on_device = torch.zeros(PROBED_BYTES, dtype=torch.uint8, device=device)
    source, target = (on_device, on_host) if back else (on_host, on_device)
    return PROBED_BYTES / best_s(lambda: target.copy_(source), device)


def find_place(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = to_absolute(folder)
    return next(path for path in (folder, *folder.parents) if path.exists())


def _measure_disk(folder: Path) -> float:
    """Bytes per second read from a file just written: from the system's page cache, as shards are if they fit there."""
    place = find_place(folder)
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        file.write(bytes(PROBED_BYTES))
        target = memoryview(bytearray(PROBED_BYTES))

        def read() -> None:
            file.seek(0)
            file.readinto(target)

        return PROBED_BYTES / best_s(read, torch.device("cpu"))


def best_s(work: Callable[[], object], device: torch.device, num_repeats: int = _NUM_REPEATS) -> float:
    """Seconds of the fastest of several calls of `work`, which are ended after about a second."""
    times: list[float] = []
    accelerator = find_accelerator(device)
    while len(times) < num_repeats and not (len(times) > 1 and sum(times) > _ENOUGH_S):
        start_s = time.perf_counter()
        work()
        if accelerator is not None:
            accelerator.synchronise(device)
        times.append(time.perf_counter() - start_s)
    return min(times)  # disturbances only slow a call down


def measure_kernels(blueprint: Blueprint, device: torch.device) -> Kernels:
    """Measure what the matrix products of the first layers take on an accelerator beside their operands.

    The libraries below torch may pack operands or keep a workspace: no formula tells how large these are. On a CPU,
    each operator is measured by itself while a step runs on paper.
    """
    if device.type == "cpu":
        return Kernels(by_operator=True)
    return Kernels(tuple(_measure_layer(blueprint, spec, device) for spec in blueprint.distinct))


@torch.no_grad()
def _measure_layer(blueprint: Blueprint, spec: LayerSpec, device: torch.device) -> KernelBytes:
    config, width = blueprint.config, blueprint.tiles_of(spec)[0].stop
    layouts = cache_layouts(blueprint, spec.row)
    parts = part_sizes(device.type)
    most = parts.product_units  # a layer works on so many units at a time, and on a remainder
    if width > most and LAYER_KINDS[spec.kind].tileable and not LAYER_KINDS[spec.kind].has_places:
        width = most + width % most
    units = slice(0, width)
    of_one_class = dataclasses.replace(blueprint, data=dataclasses.replace(blueprint.data, num_classes=1))

    def multiply(where: torch.device, row_counts: set[int], *, training: bool, of_head: bool) -> None:
        most = max(row_counts)
        with where if where == PAPER else contextlib.nullcontext():  # a layer is made on the host
            layer = of_one_class.build_layer(spec, units).to(where)
        if where == PAPER:
            use_declared(layer)
        rows = torch.zeros(most, spec.in_features, device=where)
        gradient = torch.zeros(most, layer.num_units, device=where)
        layer.workspace = Workspace(where, parts)
        layer.begin(Mode.TRAINING if training else Mode.MEASURING)
        for num_rows in (most, *row_counts):  # the most rows first, which makes all buffers
            if of_head:
                summary, *kept = layer.summarise(gradient[:num_rows], keep=training)
                if training:
                    layer.through_summary_(gradient[:num_rows], summary, kept)
                continue
            layer.preactivations(rows[:num_rows])
            if training and config.objective.perturbation:
                for _ in layer.input_gradients(rows[:num_rows], gradient[:num_rows]):
                    pass
            if training and layer.has_gradients:
                for _ in layer.gradients(rows[:num_rows], gradient[:num_rows]):
                    pass

    def measure(row_counts: set[int], *, training: bool) -> int:
        found = [0]
        for of_head in (False, True) if spec.shape.head_layers > 1 else (False,):
            run = partial(multiply, row_counts=row_counts, training=training, of_head=of_head)
            with refusing_undeclared(spec.kind), Ledger() as ledger:
                run(PAPER)
            found.append(measure_peak_bytes(partial(run, device), device) - ledger.peak_bytes)
        return int(max(found))

    return KernelBytes(
        in_steps=measure(_step_rows(blueprint, layouts["train"]), training=True),
        in_passes=measure(set().union(*(_pass_rows(each, parts, spec) for each in layouts.values())), training=False),
    )


def _step_rows(blueprint: Blueprint, layout: CacheLayout) -> set[int]:
    """The numbers of rows that occur in the matrix products of training."""
    candidates, sizes = blueprint.method.candidates, blueprint.sizes
    num_choices = candidates.num_choices
    rows_a_sample = 1 if candidates.shares_row else candidates.num_candidates
    parts = [(size, min(sizes.num_micro_batches, size)) for size in layout.batch_sizes(sizes.batch)]
    counts = {size for count, num in parts for size in (count // num, -(-count // num))}
    found = {rows_a_sample * count for count in counts}
    if candidates.informed is not None and not candidates.shares_row:
        swept = [(count, samples_in_sweep(count, candidates.num_candidates, num_choices)) for count in counts]
        found |= {num_choices * size for count, most in swept for size in (min(most, count), count % most)}
    return found - {0}


def _pass_rows(layout: CacheLayout, parts: PartSizes, spec: LayerSpec) -> set[int]:
    """The numbers of rows that occur in the matrix products of a pass."""
    chunk = chunk_samples(layout.num_rows, parts, spec)
    sizes = layout.shard_sizes()
    counts = {min(chunk, samples) for samples in sizes} | {samples % chunk for samples in sizes}
    return {count * layout.num_rows for count in counts if count}
