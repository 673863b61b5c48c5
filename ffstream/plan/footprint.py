"""How many bytes a layer needs on the device, including the slots that shards pass through. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ffstream.cache import CacheLayout
from ffstream.cache.transfer import NUM_SLOTS
from ffstream.device.caching_allocator import Event, replay, reserve_alike
from ffstream.device.ledger import Work
from ffstream.device.parts import PartSizes
from ffstream.errors import BudgetError
from ffstream.field.blueprint import Blueprint
from ffstream.field.network import LayerSpec, count_in_stack
from ffstream.field.wiring import RowLayout
from ffstream.settings.config import Config

_MOST_WEIGHTS = 10**16  # in one layer


@dataclass(frozen=True)
class Footprint:
    """Bytes of one layer, or its largest tile, on the device: by term while it trains, in all while it hands on."""

    weights: int  # parameters and buffers, float32
    optimiser: int  # the optimiser's state
    slots: int  # shards on their way between the cache and the device
    rows: int  # rows that a step multiplies by the weights, and their mask
    activities: int  # preactivations and activities of all candidates
    gradient: int  # gradients of some units at a time, some or all weights cast for products, buffers of the update
    others: int  # numbers by sample (order, candidates, goodness), kernels' own memory, and what other phases add
    # All bytes alive while the output is written, with weights (of two tiles) and slots to read and write; or while
    # statistics are taken for it, if these are more.
    handing_on: int

    @property
    def training(self) -> int:
        """Bytes alive while the layer trains."""
        return sum(value for name, value in dataclasses.asdict(self).items() if name != "handing_on")

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max(self.training, self.handing_on)


@dataclass(frozen=True)
class PaperLayer:
    """What the work of a layer, or of its largest tile, takes: its bytes, and the work of each kind of action."""

    footprint: Footprint
    step: Work
    sweep: Work  # for a chunk of the validation split
    measure: Work  # for a chunk of the training split, if later tiles build on it
    hand_on: Work  # for a chunk of each split, by all tiles
    handing_on: int  # bytes alive on the device meanwhile
    write: Work  # for a chunk of images, if they are written again after training has begun
    writing: int  # bytes alive on the device meanwhile
    settle: Work  # for a chunk of the training split, if the layer has to know statistics of it before it hands on
    settling: int  # bytes alive on the device meanwhile
    parts: PartSizes  # in which it is computed
    drawn: tuple[int, ...]  # bytes of each tensor that is drawn for a shard, and copied to the device
    # Of its tensors on an accelerator, for each way in which it may begin; `reading` and `writing` name phases.
    events: tuple[tuple[Event, ...], ...] = ()
    reserved: int = 0  # the most bytes that an accelerator's allocator reserves for it, with slots


@dataclass(frozen=True)
class KernelBytes:
    """Bytes that a layer's matrix products take on an accelerator beside their operands."""

    in_steps: int = 0
    in_passes: int = 0


@dataclass(frozen=True)
class Kernels:
    """What is known of the bytes that kernels take on the device beside tensors; by default, nothing."""

    of_layers: tuple[KernelBytes, ...] = ()  # on an accelerator: of each distinct layer
    by_operator: bool = False  # on a CPU: each operator is measured when it runs on paper, and counted while it runs


WRITTEN = "written"  # a phase: all slots for writing are free again
_READ_SLOTS, _WRITE_SLOTS = ("decoded", "read", "read too"), ("to code", "to write", "to write too")


def reading(split: str) -> str:
    """The phase in which a split's shards are read."""
    return f"reading {split}"


def writing(split: str) -> str:
    """The phase in which a split's shards are written for the next layer."""
    return f"writing {split}"


def writing_more(split: str) -> str:
    """The phase from which on a second slot for writing is used."""
    return f"writing more {split}"


def cache_layouts(blueprint: Blueprint, row: RowLayout) -> dict[str, CacheLayout]:
    """The layout of each split's cache of such rows."""
    method, dtype = blueprint.method, blueprint.config.cache.dtype
    num_rows = {"train": method.rows.num_training_rows, "validation": method.rows.num_validation_rows}
    num_views = {"train": blueprint.config.augmentation.views, "validation": 1}
    shard_samples = blueprint.sizes.shard_samples
    return {
        split: CacheLayout(
            num_samples, num_rows[split], row.num_features, dtype, shard_samples, num_views[split], row.carried_features
        )
        for split, num_samples in blueprint.num_cached.items()
    }


def add_slots(layers: Sequence[PaperLayer], blueprint: Blueprint, *, staged: bool) -> list[PaperLayer]:
    """The same layers with slots, the memory that shards pass through.

    Slots are needed if the cache is not on the device, which `staged` says, or if it is coded.
    """
    config = blueprint.config
    found: list[PaperLayer] = []
    read: list[CacheLayout] = []
    for spec, layer in zip(blueprint.distinct, layers, strict=True):
        read += cache_layouts(blueprint, spec.row).values()  # slots are kept and only grow
        coded_rows = layer.parts.coded_rows
        slots = max(layout.coding_bytes(coded_rows) for layout in read)
        if staged:
            slots += _largest_shard(read) + _largest_shard(layout for layout in read if layout.num_shards > 1)
        write_slots = 0
        if spec.hands_on:
            written = cache_layouts(blueprint, spec.next_row).values()
            write_slots = max(_bytes_to_write(layout, coded_rows, staged=staged) for layout in written)
        handing_on = max(layer.handing_on + slots + write_slots, layer.settling + slots)
        layouts = cache_layouts(blueprint, blueprint.image_row)
        of_images = {name: _bytes_to_write(layout, coded_rows, staged=staged) for name, layout in layouts.items()}
        if writes_again(config):  # the slots for reading are released first
            handing_on = max(handing_on, layer.writing + max(of_images.values()))
        if config.restreams:
            were_read = (
                spec.place > 0 or spec.num_epochs * len(blueprint.tiles_of(spec)) > 1
            )  # before the last input was written, so that slots for reading exist
            handing_on = max(handing_on, layer.writing + of_images["train"] + (slots if were_read else 0))
        footprint = dataclasses.replace(layer.footprint, slots=slots, handing_on=handing_on)
        reserved = _reserve(spec, layer, blueprint, staged=staged) if layer.events else 0
        found.append(dataclasses.replace(layer, footprint=footprint, reserved=reserved))
    return found


def _reserve(spec: LayerSpec, layer: PaperLayer, blueprint: Blueprint, *, staged: bool) -> int:
    """The most bytes that an accelerator's allocator reserves while this layer is worked on."""
    phases: dict[str, dict[str, int]] = {WRITTEN: dict.fromkeys(_WRITE_SLOTS, 0)}
    coded_rows = layer.parts.coded_rows
    for split, layout in cache_layouts(blueprint, spec.row).items():
        sizes = _size_slots(_READ_SLOTS, layout, coded_rows, staged=staged)
        phases[reading(split)] = {slot: size for slot, size in sizes.items() if size}  # one that is not used is kept
    for split, layout in cache_layouts(blueprint, spec.next_row).items() if spec.hands_on else ():
        phases[writing_more(split)] = _size_slots(_WRITE_SLOTS, layout, coded_rows, staged=staged)
        phases[writing(split)] = {slot: phases[writing_more(split)][slot] for slot in _WRITE_SLOTS[:2]}
    # A segment of small tensors more than on paper, as they come and go in another order than there.
    found = max(replay(events, phases) for events in layer.events) + reserve_alike(1, 1)
    if not writes_again(blueprint.config) and not blueprint.config.restreams:
        return found
    events: list[Event] = [(0, layer.writing)]  # images are written again, while slots for reading may exist
    for split, layout in cache_layouts(blueprint, blueprint.image_row).items():
        phases[split] = _size_slots(_WRITE_SLOTS, layout, coded_rows, staged=staged)
        if blueprint.config.restreams:  # else they are freed before
            events.append((reading(split), 0))
        events += [(split, 0), (WRITTEN, 0)]
    return max(found, replay(events, phases))


def _size_slots(names: Sequence[str], layout: CacheLayout, coded_rows: int, *, staged: bool) -> dict[str, int]:
    """Bytes of a shard in another form, if shards are coded, and of two slots, of which a single shard needs one."""
    slot = layout.shard_bytes if staged else 0
    sizes = layout.coding_bytes(coded_rows), slot, slot if layout.num_shards > 1 else 0
    return dict(zip(names, sizes, strict=True))


def writes_again(config: Config) -> bool:
    """Whether images are written again after training has begun: a later layer, or another round, reads them."""
    return count_in_stack(config) < config.layers or config.in_rounds


def goodness_bytes(blueprint: Blueprint, layouts: Mapping[str, CacheLayout]) -> dict[str, int]:
    """Bytes of each split's goodness: a float32 per label of a stored sample or, if candidates are rows, per row."""
    num_labels = blueprint.data.num_classes
    return {
        name: 4 * layout.num_stored * (num_labels if blueprint.method.candidates.shares_row else layout.num_rows)
        for name, layout in layouts.items()
    }


def _bytes_to_write(layout: CacheLayout, coded_rows: int, *, staged: bool) -> int:
    slots = layout.shard_bytes * min(layout.num_shards, NUM_SLOTS) if staged else 0
    return slots + layout.coding_bytes(coded_rows)


def _largest_shard(layouts: Iterable[CacheLayout]) -> int:
    return max((layout.shard_bytes for layout in layouts), default=0)


def check_countable(specs: Sequence[LayerSpec]) -> None:
    """Raise BudgetError for a layer whose bytes do not fit in 64 bits: torch has no shape for it."""
    for spec in specs:
        if spec.in_features * spec.width > _MOST_WEIGHTS:
            raise BudgetError(
                f"plan: layer {spec.index + 1} has {spec.in_features} x {spec.width} weights; allowed "
                f"{_MOST_WEIGHTS:.0e}, more cannot be counted in bytes; use a smaller --width"
            )
