"""The validation split while a run trains: errors of the network so far, and of the layer in training by epoch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ffstream.field.network import LayerSpec
from ffstream.infer.evaluation import LabelSweep
from ffstream.settings.sections import OptimiserConfig
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.rate_schedule import RateSchedule


class HeldOut:
    """Keeps the summed goodness of finished layers, and the errors by which a layer may be done early."""

    def __init__(self, targets: Tensor, stack_layers: int) -> None:
        """`targets` (n,) are what goodness should be highest for."""
        self._targets, self._stack_layers = targets, stack_layers
        self._sweep = self._make_sweep()
        self._errors: list[float] = []  # after each epoch of the layer in training
        self.error_to_here: float | None = None  # of the network so far

    @property
    def scores(self) -> Tensor:
        """The goodness of every label, summed over the finished layers: (n, C)."""
        return self._sweep.sum

    def replay(self, directory: RunDirectory, num_done: int) -> None:
        """Sum the goodness of the committed layers."""
        for index in range(num_done):
            goodness = directory.load_validation_goodness(index)
            assert goodness is not None, "a validation split is part of a run's identity"
            self.add_layer(goodness)

    def add_layer(self, goodness: Tensor) -> tuple[float, float]:
        """Add a finished layer: its own error, and that of the network with it."""
        error, self.error_to_here = self._sweep.add(goodness)
        return error, self.error_to_here

    def begin_layer(self, errors: Sequence[float]) -> None:
        """Begin a layer, of whose epochs an earlier process has taken some, with these errors."""
        self._errors = list(errors)

    def add_epoch(self, goodness: Tensor) -> float:
        """The error of the layer in training after one more epoch."""
        error = self._make_sweep().add(goodness)[0]
        self._errors.append(error)
        return error

    def find_schedule(self, spec: LayerSpec, settings: OptimiserConfig) -> RateSchedule:
        """The learning rate of the layer in training, by the errors of the epochs that it has taken."""
        return RateSchedule(spec.num_epochs, settings.decay_start).shorten(self._errors, settings.patience)

    def _make_sweep(self) -> LabelSweep:
        return LabelSweep(self._targets, stack_layers=self._stack_layers)
