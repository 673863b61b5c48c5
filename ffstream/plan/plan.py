"""The plan of a run: how much of each resource it takes, layer by layer, and about how long. `fitting` makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ffstream.data.shape import DataShape
from ffstream.device.ledger import Work
from ffstream.plan.footprint import Footprint
from ffstream.settings.config import Config
from ffstream.settings.sizes import Sizes

INTERPRETER_BYTES = 600 << 20  # of the process once torch and torchvision are imported
_MOST_RUNS = 2  # ranges of consecutive layers that a name lists


@dataclass(frozen=True)
class Rates:
    """How fast a machine is. `probe.measure_rates` measures this machine."""

    flops_per_s: float  # of matrix products, in the precision of the run
    moved_bytes_per_s: float  # bytes that all other operators read and write on the device
    operator_s: float  # seconds to start an operator
    loaded_bytes_per_s: Mapping[str, float]  # from a tier of the cache to the device: host, disk

    def seconds(self, work: Work) -> dict[str, float]:
        """Seconds that some work takes, by what they are spent on."""
        return {
            "products": work.flops / self.flops_per_s,
            "memory": work.moved_bytes / self.moved_bytes_per_s,
            "operators": work.num_operators * self.operator_s,
        }


@dataclass(frozen=True)
class Resources:
    """What a run may take, in bytes. `probe.survey_resources` finds it for this machine."""

    device_type: str  # cpu, or a kind of accelerator
    device_bytes: int
    host_bytes: int  # of the whole process
    host_used_bytes: int  # by the interpreter and its libraries
    disk_bytes: int
    # Of the accelerator, taken by this process before its first tensor: the driver's context and the workspaces of
    # libraries. The device's bytes include them.
    context_bytes: int = 0
    shares_host: bool = False  # an accelerator whose memory is the host's; a CPU's always is
    disk_is_memory: bool = False  # the run directory lies in a file system that is kept in memory
    rates: Rates | None = None  # None: no times are planned
    unpinned: str | None = None  # the warning, if the system refuses to pin host memory for the device
    # The same by what the machine has, whatever is in use now. Sizes that affect the trained bits are chosen by it.
    installed: Resources | None = None

    def is_within(self, other: Resources) -> bool:
        """Whether `other` allows at least as much of every resource."""
        return (
            self.device_bytes <= other.device_bytes
            and self.host_bytes - self.host_used_bytes <= other.host_bytes - other.host_used_bytes
            and self.disk_bytes <= other.disk_bytes
        )


@dataclass(frozen=True)
class LayerPlan:
    """The plan of layers that are alike."""

    numbers: list[int]  # from 1
    shape: str  # of what a layer reads, and of its units
    reads: str  # as it is written in a list of layers
    carried_features: int  # of a row: what only later layers read
    in_features: int
    num_units: int
    num_tiles: int
    num_epochs: int  # of each tile
    footprint: Footprint
    cache_bytes: int  # of the cache that one of these layers reads
    # For one of these layers or, if inputs are written anew for every epoch, their mean: the input of a deeper layer
    # takes more passes.
    read_bytes: int  # from caches, over the layer's training
    written_bytes: int  # to the next layer's cache, and to the caches of those passes
    seconds: dict[str, float] | None  # by what it is spent on; "loading" overlaps with the rest
    # The number of units from which on loading a row takes less time than its products: s F / 4 B, with s bytes per
    # element, F FLOP/s and B bytes/s. None if no rates are known or nothing is loaded.
    hiding_units: float | None
    # In rounds, the samples of a window whose work takes as long as reading and writing the layer with its optimiser's
    # state. None if no rates are known, and in other orders.
    hiding_samples: float | None = None

    @property
    def name(self) -> str:
        """Such as "layer 1", "layers 2-40" or "layers 2-5, 7-10, ..."."""
        return f"layer{'s' * (len(self.numbers) > 1)} {name_layers(self.numbers)}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters of one of these layers, with every tile counted as the largest."""
        return self.footprint.weights * self.num_tiles

    @property
    def total_s(self) -> float | None:
        """Seconds for one of these layers; None if no rates are known."""
        if self.seconds is None:
            return None
        rest = sum(seconds for name, seconds in self.seconds.items() if name != "loading")
        return max(rest, self.seconds["loading"])

    @property
    def bottleneck(self) -> str | None:
        """What takes the most time; loading only if it does not hide behind the rest."""
        if self.seconds is None:
            return None
        hidden = self.seconds["loading"] < (self.total_s or 0.0)
        return max((name for name in self.seconds if name != "loading" or not hidden), key=self.seconds.__getitem__)


def name_layers(numbers: Sequence[int]) -> str:
    """The numbers of layers, in ascending order, such as "1", "2-40" or "2-5, 7-10, ..."."""
    found = set(numbers)
    starts = [number for number in numbers if number - 1 not in found]
    stops = [number for number in numbers if number + 1 not in found]
    runs = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True)]
    return ", ".join(runs[:_MOST_RUNS] + ["..."] * (len(runs) > _MOST_RUNS))


@dataclass(frozen=True)
class Need:
    """The most bytes of one resource at once, the terms that add up to them, and the bytes that may be taken."""

    noun: str
    num_bytes: int
    allowed_bytes: int
    terms: dict[str, int]

    @property
    def excess_bytes(self) -> int:
        """By how many bytes the need exceeds what may be taken."""
        return max(self.num_bytes - self.allowed_bytes, 0)


@dataclass(frozen=True)
class Plan:
    """How a run is carried out, and what it takes."""

    config: Config  # with the sizes of shards and tiles filled in
    sizes: Sizes  # those of the configuration
    data: DataShape
    tier: str  # of the cache: device, host, disk
    max_unsynced: int | None  # shards that may wait to be durable; None: any number
    layers: list[LayerPlan]
    device: Need
    host: Need
    disk: Need
    # All weights of a layer are kept in the type of its products: an accelerator has room for them, and casts fewer so.
    keeps_cast: bool = False
    layer_tier: str = "host"  # where layers are between the windows of a round: host or disk
    warning: str | None = None  # why the run would not go as well as it could
    note: str | None = None  # which layers start from another run's, if any do
    # Sizes that were chosen by what is free now and differ from those by what is installed, as text; None if none do.
    sizes_by_free: str | None = None

    @property
    def excess_bytes(self) -> int:
        """By how many bytes the plan exceeds what may be taken, of all resources."""
        return sum(need.excess_bytes for need in (self.device, self.host, self.disk))

    @property
    def room_bytes(self) -> int:
        """The bytes that are left of the resource of which least are; negative if it does not fit."""
        return min(need.allowed_bytes - need.num_bytes for need in (self.device, self.host, self.disk))

    @property
    def is_hopeless(self) -> bool:
        """Whether no other shards or micro-batches help: the weights and the optimiser's state do not fit."""
        of_state = max(layer.footprint.weights + layer.footprint.optimiser for layer in self.layers)
        return of_state > self.device.allowed_bytes

    @property
    def fits(self) -> bool:
        """Whether the run takes no more of any resource than it may."""
        return not any(need.excess_bytes for need in (self.device, self.host, self.disk))

    @property
    def total_s(self) -> float | None:
        """Seconds for all layers, finished ones too; None where no rates are known."""
        known = [(len(layer.numbers), layer.total_s) for layer in self.layers]
        return sum(count * (each or 0.0) for count, each in known) if known[0][1] is not None else None

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        layers = [
            dataclasses.asdict(layer)
            | {"footprint": dataclasses.asdict(layer.footprint) | {"peak": layer.footprint.peak}}
            | {"total_s": layer.total_s, "bottleneck": layer.bottleneck}
            for layer in self.layers
        ]
        needs = {name: dataclasses.asdict(getattr(self, name)) for name in ("device", "host", "disk")}
        return {
            "data": dataclasses.asdict(self.data),
            "tier": self.tier,
            "total_s": self.total_s,
            "batch": self.sizes.batch,
            "micro_batch": self.sizes.num_in_micro_batch,
            "shard_samples": self.sizes.shard_samples,
            "tile_units": self.sizes.tile_units,
            "keeps_cast": self.keeps_cast,
            "layers": layers,
            "peaks": needs,
            "warning": self.warning,
            "note": self.note,
        }
