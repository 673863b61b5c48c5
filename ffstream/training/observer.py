"""What a run tells while it goes on. `cli.reporting` shows it; a library user gets silence by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ffstream.storage.manifest import NUMBER
from ffstream.training.layer_trainer import EpochFigures


@dataclass(frozen=True)
class LayerFigures:
    """What is known of a finished layer. Errors are shares in [0, 1], on the validation split; None without one.

    Without labels they are those of telling an image from a hybrid: how often the hybrid has more goodness.
    """

    layer: int  # from 1
    loss: float
    goodness_positive: float
    goodness_negative: float
    separation: float
    validation_error: float | None  # of this layer's goodness alone
    validation_error_to_here: float | None  # of the goodness summed over the layers so far, the first one left out
    samples_per_s: float
    elapsed_s: float
    peak_memory_bytes: int
    cache_tier: str

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for metrics and manifests."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> LayerFigures:
        """The inverse of `to_mapping`. Raises TypeError for other names, ValueError for what is no number."""
        for item in fields(cls):
            value = values.get(item.name)
            is_right = isinstance(value, str) if item.type == "str" else NUMBER.holds(value)
            if not is_right and not (value is None and "None" in str(item.type)):
                raise ValueError(f"{item.name} is {value!r}")
        return cls(**values)


@dataclass(frozen=True)
class RunOutline:
    """What is known of a run when it starts or goes on."""

    path: str
    num_layers: int
    num_done: int  # layers that are committed
    num_samples: int  # for training
    num_tiles: int  # of a layer
    num_epochs: int  # of a tile, or of a layer that is not cut
    is_labelled: bool  # else validation errors are of telling an image from a hybrid, and not of classes
    device_type: str  # cpu, cuda
    planned_bytes: int  # of memory that the work of a layer takes on the device, at most
    allowed_bytes: int  # of memory that it may take there


class Observer:
    """Told of a run's course. Every method does nothing; override those of interest."""

    def on_start(self, outline: RunOutline) -> None:
        """A run starts, or goes on."""

    def on_step(self, description: str) -> None:
        """A step of the schedule begins."""

    def on_warning(self, text: str) -> None:
        """The run goes on, but not as well as it could."""

    def on_tick(self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures) -> None:
        """An epoch goes on. Layers and epochs count from 1, epochs through the tiles of a layer."""

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        """An epoch is over; its progress is on its way to the disk, behind the next epoch's first steps."""

    def on_layer(self, figures: LayerFigures) -> None:
        """A layer is finished and on its way to the disk."""

    def on_finish(self, layers: list[LayerFigures]) -> None:
        """All layers are committed."""

    def on_stop(self) -> None:
        """The run ends early, by an error or by the user."""
