"""How many bytes a layer needs on the device, with the slots that shards pass through. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ffstream.cache import CacheLayout
from ffstream.cache.transfer import NUM_SLOTS
from ffstream.device.ledger import Work
from ffstream.errors import ConfigError
from ffstream.field.labels import LabelMethod
from ffstream.field.network import LayerSpec, count_distinct, count_in_stack
from ffstream.settings.config import Config


@dataclass(frozen=True)
class DataShape:
    """What a plan must know of the data."""

    num_features: int
    num_classes: int
    num_samples: Mapping[str, int]  # by split: train, and validation if there is one
    image_shape: tuple[int, ...] | None = None  # where it is known
    brings_negatives: bool = False  # of its own, so that none are made of images

    @property
    def mixed_shape(self) -> tuple[int, ...] | None:
        """That of images which hybrids are made of, if any are and it is known."""
        return None if self.brings_negatives else self.image_shape

    @classmethod
    def of(cls, num_samples: int, num_features: int, num_classes: int, validation_fraction: float) -> DataShape:
        """Of `num_samples` training samples, of which a fraction is kept for validation. Raises ConfigError."""
        numbers = {
            "samples": (num_samples, 2, 10**12),
            "features": (num_features, 1, 10**9),
            "classes": (num_classes, 2, 10**5),
        }
        for noun, (number, least, most) in numbers.items():
            if not least <= number <= most:
                raise ConfigError(f"--{noun} {number}: allowed an integer >= {least} and <= {most}")
        held_out = round(num_samples * validation_fraction)
        counts = {"train": num_samples - held_out} | ({"validation": held_out} if held_out else {})
        return cls(num_features, num_classes, counts)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one layer, or of its largest tile, on the device while it trains, and the most while it hands on."""

    weights: int  # parameters and buffers, float32
    optimiser: int  # the optimiser's state
    slots: int  # shards on their way between the cache and the device
    rows: int  # what a step multiplies by the weights, and its mask
    activities: int  # preactivations and activities of all candidates
    gradient: int  # of some units at a time, and before it their weights, cast for a product; and what updates them
    others: int  # by sample (order, candidates, goodness), kernels' own, and what other moments than a step take more
    handing_on: int  # all that is alive while the output is written: the weights (of two tiles), and twice the slots

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
    """What the work of a layer, or of its largest tile, takes: bytes, and what is done at a time."""

    footprint: Footprint
    step: Work
    sweep: Work  # of a chunk of the validation split
    measure: Work  # of a chunk of the training split, where further tiles build on it
    hand_on: Work  # of a chunk of each split, by all tiles
    handing_on: int  # bytes alive on the device meanwhile
    write: Work  # of a chunk of images, where they are written while a run has trained already
    writing: int  # bytes alive on the device meanwhile


@dataclass(frozen=True)
class KernelBytes:
    """What the matrix products of a layer take on the device beside their operands; nothing where it is not known."""

    in_steps: int = 0
    in_passes: int = 0


def cache_layouts(config: Config, method: LabelMethod, data: DataShape, num_features: int) -> dict[str, CacheLayout]:
    """The layout of each split's cache of rows of `num_features` features."""
    num_rows = {"train": method.num_training_rows, "validation": method.num_validation_rows}
    num_views = {"train": config.augmentation.views, "validation": 1}
    dtype, num_in_shard = config.cache.dtype, config.cache.num_in_shard
    return {
        split: CacheLayout(num_samples, num_rows[split], num_features, dtype, num_in_shard, num_views[split])
        for split, num_samples in data.num_samples.items()
    }


def add_slots(
    layers: Sequence[PaperLayer],
    config: Config,
    specs: Sequence[LayerSpec],
    method: LabelMethod,
    data: DataShape,
    *,
    staged: bool,
) -> list[PaperLayer]:
    """The same layers with what shards pass through where the cache does not lie on the device, or is coded.

    `staged`: it does not lie there.
    """
    found: list[PaperLayer] = []
    read: list[CacheLayout] = []
    for spec, layer in zip(specs[: count_distinct(config)], layers, strict=True):
        read += cache_layouts(config, method, data, spec.in_features).values()  # slots are kept and only grow
        slots = max(layout.coding_bytes for layout in read)
        if staged:
            slots += _largest_shard(read) + _largest_shard(layout for layout in read if layout.num_shards > 1)
        write_slots = 0
        if spec.hands_on:
            written = cache_layouts(config, method, data, spec.out_features).values()
            write_slots = max(_bytes_to_write(layout, staged=staged) for layout in written)
        handing_on = layer.handing_on + slots + write_slots
        layouts = cache_layouts(config, method, data, data.num_features)
        of_images = {name: _bytes_to_write(layout, staged=staged) for name, layout in layouts.items()}
        if has_stacks(config):  # the slots for reading are released before
            handing_on = max(handing_on, layer.writing + max(of_images.values()))
        if config.augmentation.restream:
            were_read = spec.place > 0 or config.epochs * config.num_tiles > 1  # before the last input was written
            handing_on = max(handing_on, layer.writing + of_images["train"] + (slots if were_read else 0))
        footprint = dataclasses.replace(layer.footprint, slots=slots, handing_on=handing_on)
        found.append(dataclasses.replace(layer, footprint=footprint))
    return found


def has_stacks(config: Config) -> bool:
    """Whether images are read again by a later layer."""
    return count_in_stack(config) < config.layers


def goodness_bytes(method: LabelMethod, layouts: Mapping[str, CacheLayout], num_classes: int) -> dict[str, int]:
    """Bytes, for each split, of one number for each label of a sample stored, or for each of its rows."""
    return {
        name: 4 * layout.num_stored * (num_classes if method.shares_row else layout.num_rows)
        for name, layout in layouts.items()
    }


def _bytes_to_write(layout: CacheLayout, *, staged: bool) -> int:
    slots = layout.shard_bytes * min(layout.num_shards, NUM_SLOTS) if staged else 0
    return slots + layout.coding_bytes


def _largest_shard(layouts: Iterable[CacheLayout]) -> int:
    return max((layout.shard_bytes for layout in layouts), default=0)
