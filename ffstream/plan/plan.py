"""The plan of a run: what it takes of which resource, layer by layer, and about how long. Made by `fitting`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ffstream.device.ledger import Work
from ffstream.plan.footprint import Footprint
from ffstream.settings.config import Config
from ffstream.settings.sizes import Sizes

INTERPRETER_BYTES = 600 << 20  # torch and torchvision, as they lie in memory
_MOST_RUNS = 2  # of consecutive layers, that a name lists


@dataclass(frozen=True)
class Rates:
    """How fast a machine is. `probe.measure_rates` finds it for this one."""

    flops_per_s: float  # of matrix products, in the precision of the run
    moved_bytes_per_s: float  # that other operators read and write on the device
    operator_s: float  # of starting an operator
    loaded_bytes_per_s: Mapping[str, float]  # from a tier of the cache to the device: host, disk

    def seconds(self, work: Work) -> dict[str, float]:
        """What work takes, by what it is spent on."""
        return {
            "products": work.flops / self.flops_per_s,
            "memory": work.moved_bytes / self.moved_bytes_per_s,
            "operators": work.num_operators * self.operator_s,
        }


@dataclass(frozen=True)
class Resources:
    """What a run may take, in bytes. `memory.survey_resources` finds it for this machine."""

    device_type: str  # cpu, cuda
    device_bytes: int
    host_bytes: int  # of the whole process
    host_used_bytes: int  # by the interpreter and its libraries
    disk_bytes: int
    disk_is_memory: bool = False  # the run directory lies in a file system that is kept in memory
    rates: Rates | None = None  # no times are planned without
    unpinned: str | None = None  # what to say where the system refuses to pin host memory for the device
    # What a run may take of what the machine has, whatever is taken of it now: sizes that decide bits follow from it.
    installed: Resources | None = None

    def is_within(self, other: Resources) -> bool:
        """Whether nothing may be taken of which `other` allows less."""
        return (
            self.device_bytes <= other.device_bytes
            and self.host_bytes - self.host_used_bytes <= other.host_bytes - other.host_used_bytes
            and self.disk_bytes <= other.disk_bytes
        )


@dataclass(frozen=True)
class LayerPlan:
    """Layers that are alike."""

    numbers: list[int]  # from 1
    in_features: int
    num_units: int
    num_tiles: int
    footprint: Footprint
    cache_bytes: int  # of what one of them reads
    # Of one of them, or their mean where inputs are written anew for every epoch, by passes of which deeper ones take
    # more.
    read_bytes: int  # from caches, over its training
    written_bytes: int  # to the next one's cache, and to those of such passes
    seconds: dict[str, float] | None  # by what it is spent on; "loading" goes on beside the rest
    # From so many units on, loading a row takes less time than its products: s F / 4 B, with s bytes an element, F
    # FLOP/s and B bytes/s. None where no rates are known, or nothing is loaded.
    hiding_units: float | None

    @property
    def name(self) -> str:
        """Such as "layer 1", "layers 2-40" or "layers 2-5, 7-10, ..."."""
        numbers = set(self.numbers)
        starts = [number for number in self.numbers if number - 1 not in numbers]
        stops = [number for number in self.numbers if number + 1 not in numbers]
        runs = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True)]
        shown = runs[:_MOST_RUNS] + ["..."] * (len(runs) > _MOST_RUNS)
        return f"layer{'s' * (len(self.numbers) > 1)} {', '.join(shown)}"

    @property
    def weight_bytes(self) -> int:
        """Of the parameters of one of them, all tiles counted as the largest."""
        return self.footprint.weights * self.num_tiles

    @property
    def total_s(self) -> float | None:
        """Seconds for one of them; None where no rates are known."""
        if self.seconds is None:
            return None
        rest = sum(seconds for name, seconds in self.seconds.items() if name != "loading")
        return max(rest, self.seconds["loading"])

    @property
    def bottleneck(self) -> str | None:
        """What takes the most time: loading where it does not hide behind the rest."""
        if self.seconds is None:
            return None
        hidden = self.seconds["loading"] < (self.total_s or 0.0)
        return max((name for name in self.seconds if name != "loading" or not hidden), key=self.seconds.__getitem__)


@dataclass(frozen=True)
class Need:
    """The most bytes of one resource at once, what they are made of, and how many may be taken."""

    noun: str
    num_bytes: int
    allowed_bytes: int
    terms: dict[str, int]

    @property
    def excess_bytes(self) -> int:
        """By how much it is more than may be taken."""
        return max(self.num_bytes - self.allowed_bytes, 0)


@dataclass(frozen=True)
class Plan:
    """How a run goes, and what it takes."""

    config: Config  # shards and tiles resolved
    sizes: Sizes  # those of the configuration
    tier: str  # of the cache: device, host, disk
    max_unsynced: int | None  # shards that may wait to be durable; None: any number
    layers: list[LayerPlan]
    device: Need
    host: Need
    disk: Need
    warning: str | None = None  # the run would not go as well as it could
    # Settings of these sizes were chosen by what is free now: by what is installed they would be, or there is none.
    sizes_by_free: str | None = None

    @property
    def fits(self) -> bool:
        """Whether all that it takes may be taken."""
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
            "tier": self.tier,
            "total_s": self.total_s,
            "batch": self.sizes.batch,
            "micro_batch": self.sizes.num_in_micro_batch,
            "shard_samples": self.sizes.shard_samples,
            "tile_units": self.sizes.tile_units,
            "layers": layers,
            "peaks": needs,
            "warning": self.warning,
        }
