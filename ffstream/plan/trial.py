"""Tries steps before a run, so that a run that does not fit is refused at the start and does not fail halfway."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ffstream.cache import ActivationCache, CacheLayout
from ffstream.cache.transfer import Transfer
from ffstream.device.memory import is_out_of_memory, measure_peak_bytes
from ffstream.device.workspace import Workspace
from ffstream.errors import BudgetError
from ffstream.field.blueprint import Blueprint
from ffstream.field.network import LayerSpec
from ffstream.ground.interrupts import Interrupts
from ffstream.ground.units import format_bytes
from ffstream.plan.footprint import cache_layouts
from ffstream.plan.plan import Plan
from ffstream.training.epoch_batches import EpochBatches
from ffstream.training.layer_trainer import LayerTrainer

_NUM_STEPS = 2  # the second reuses all buffers


def try_steps(plan: Plan, blueprint: Blueprint, device: torch.device) -> None:
    """Take steps of each layer shape of a plan as the run will take them, on zeros. Nothing is read or written.

    `blueprint` is that of the plan.

    Raises BudgetError when the steps take more than the plan may: a layer kind may allocate on a device what it does
    not on paper, and another program may have taken memory that was free.
    """
    apart = sum(plan.device.terms.get(name, 0) for name in ("cache", "context"))
    allowed_bytes = plan.device.allowed_bytes - apart
    staged = plan.tier == "disk" or (plan.tier == "host" and device.type != "cpu")
    for spec, planned in zip(blueprint.distinct, plan.layers, strict=True):
        layout = cache_layouts(blueprint, spec.row)["train"]
        taken = f"more than {format_bytes(allowed_bytes)}"
        try:
            num_bytes = measure_steps(blueprint, spec, layout, device, staged=staged, keeps_cast=plan.keeps_cast)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            if num_bytes <= allowed_bytes:
                continue
            taken = format_bytes(num_bytes)
        raise BudgetError(
            f"plan: a step of layer {spec.index + 1} that was tried took {taken} on device {device}, planned "
            f"{format_bytes(planned.footprint.training)}, allowed {format_bytes(allowed_bytes)}; use a smaller --batch "
            "or --width, or a larger --budget"
        )


def measure_steps(
    blueprint: Blueprint,
    spec: LayerSpec,
    layout: CacheLayout,
    device: torch.device,
    *,
    staged: bool = False,
    keeps_cast: bool = False,
) -> int:
    """Peak bytes of the first steps of a layer, or of the layer's first tile, on zeros in a cache of this layout.

    The cache lies on the device and is not counted, unless shards are `staged` from elsewhere.
    """
    cache = _BlankCache(layout, None if staged else device)
    labels = torch.zeros(cache.layout.num_samples, dtype=torch.int64)
    units, informed = blueprint.tiles_of(spec)[0], spec.num_epochs > 1

    def take_steps() -> None:
        layer = blueprint.build_layer(spec, units)
        layer.workspace = Workspace(device, keeps_cast=keeps_cast)
        trainer = LayerTrainer(layer, spec.index, blueprint, device, units)
        with Interrupts(defers=True), Transfer(device) as transfer:
            batches = EpochBatches(cache, range(cache.layout.num_shards), blueprint, device)
            loaded = batches.load(transfer, labels, None, torch.Generator(), informed=informed)
            for num_samples, parts in itertools.islice(loaded, _NUM_STEPS):
                trainer.step(parts, num_samples, 1.0, torch.Generator(device))

    return measure_peak_bytes(take_steps, device)


class _BlankCache(ActivationCache):
    """A cache of zeros: with a device, one shard of them lies there; else they are made when a shard is loaded."""

    def __init__(self, layout: CacheLayout, device: torch.device | None) -> None:
        self.layout = layout
        shape, dtype = layout.stored_shape(0), layout.stored_dtype
        self._block = torch.zeros(shape, dtype=dtype, device=device) if device is not None else None

    def missing(self) -> list[int]:
        """No shard is missing."""
        return []

    def store(self, shard: int, rows: Tensor) -> None:
        """Never called, as no layer hands on."""
        raise NotImplementedError

    def load(self, shard: int, slot: Tensor) -> None:
        """Fill the slot with zeros."""
        slot.zero_()

    def free(self, shard: int) -> None:
        """Nothing is kept."""

    def drop(self) -> None:
        """Nothing is kept."""

    def resident(self, shard: int, device: torch.device) -> Tensor | None:
        """The zeros, if they lie on a device; else None."""
        return self._block[: self.layout.shard_shape(shard)[0]] if self._block is not None else None
