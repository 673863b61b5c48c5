"""What a run reports while it trains. `cli.reporting` shows it; for a library user, a run is silent by default."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ffstream.storage.manifest import NUMBER
from ffstream.training.epoch_figures import EpochFigures


@dataclass(frozen=True)
class LayerFigures:
    """The figures of a finished layer. Errors are shares in [0, 1] of the validation split, or None if there is none.

    Without labels, an error is a hybrid that has more goodness than the image with which it is compared.
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
        """The inverse of `to_mapping`. Raises TypeError for an unknown name, ValueError for a wrong type."""
        for item in fields(cls):
            value = values.get(item.name)
            is_right = isinstance(value, str) if item.type == "str" else NUMBER.holds(value)
            if not is_right and not (value is None and "None" in str(item.type)):
                raise ValueError(f"{item.name} is {value!r}")
        return cls(**values)


@dataclass(frozen=True)
class RunOutline:
    """What is known of a run when it starts or resumes."""

    path: str
    num_layers: int
    num_done: int  # layers that are committed
    num_samples: int  # for training
    num_tiles: int  # per layer
    num_epochs: tuple[int, ...]  # of each layer; if it is cut, of each of its tiles
    is_labelled: bool  # if not, validation errors count hybrids taken for images, not wrong classes
    device_type: str  # cpu, or a kind of accelerator
    planned_bytes: int  # most memory that the work of a layer takes on the device
    allowed_bytes: int  # memory that it may take there
    num_in_stack: int = 0  # layers, after which the next one reads the images again; 0: all make one stack
    num_rounds: int = 0  # in which all layers take an epoch in turn; 0: each layer is trained to its end in turn
    num_rounds_done: int = 0
    num_windows: int = 1  # of a round, each of which passes through all layers before the next one does
    num_windows_done: int = 0  # of the round that is under way
    is_stream: bool = False  # each round then has samples of its own, which pass through all layers `num_windows` times
    num_epochs_saved: int = 0  # that an earlier process took of the first layer that is not done, in all tiles


@dataclass(frozen=True)
class WindowFigures:
    """How a window of a stream went."""

    number: int  # from 1
    num_samples: int
    error: float | None  # share of its samples for which the network was wrong before it learnt them; None at first
    learning_s: float
    waiting_s: float  # for its samples, and for that error
    separation: float  # of the last layer


class Observer:
    """Receives the events of a run. Every method does nothing; override those of interest."""

    def on_start(self, outline: RunOutline) -> None:
        """A run starts or resumes; in a stream, for each of its windows."""

    def on_step(self, description: str) -> None:
        """A step of the schedule begins."""

    def on_warning(self, text: str) -> None:
        """The run goes on, but not as well as it could."""

    def on_note(self, text: str) -> None:
        """Something about the run that is worth knowing, and no reason to worry."""

    def on_tick(self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures) -> None:
        """An epoch is under way. Layers and epochs count from 1; epochs count on through the tiles of a layer.

        In rounds with windows, `epoch` counts the windows that the layer has seen, through all rounds.
        """

    def on_early_end(self, layer: int, num_taken: int, num_epochs: int) -> None:
        """A layer is done after fewer epochs than it might have had, as its validation error has ceased to fall.

        In rounds, all layers are done after fewer rounds, and `layer` is 0.
        """

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        """An epoch, or a window of it, is over; its progress is written to disk while the next one begins."""

    def on_layer(self, figures: LayerFigures) -> None:
        """A layer is finished and is being written to disk; not in rounds, which finish all layers at once."""

    def on_round(self, number: int, num_rounds: int, layers: list[LayerFigures]) -> None:
        """A round, in which every layer took an epoch, is being committed. Rounds count from 1."""

    def on_window(self, figures: WindowFigures) -> None:
        """A window of a stream is learnt, and the network with it is committed."""

    def on_finish(self, layers: list[LayerFigures]) -> None:
        """All layers are committed; in a stream, after each of its windows."""

    def on_stop(self) -> None:
        """The run ends early, because of an error or of the user."""


class WarningObserver(Observer):
    """What a run without an observer has: warnings are those of Python, and nothing else is told."""

    def on_warning(self, text: str) -> None:
        """Warn as Python does."""
        warnings.warn(text, UserWarning, stacklevel=2)
