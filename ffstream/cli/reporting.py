"""How a run is shown while it trains: bars on a terminal, plain lines elsewhere, and a closing table by layer."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ffstream.cli.tables import format_seconds, format_share, layer_table
from ffstream.errors import printable
from ffstream.ground.units import format_bytes
from ffstream.training.layer_trainer import EpochFigures
from ffstream.training.observer import LayerFigures, Observer

_PLAIN_INTERVAL_S = 10.0


def make_observer(console: Console) -> Observer:
    """Bars when `console` is a terminal, else plain lines."""
    return BarObserver(console) if console.is_terminal else PlainObserver(console)


def print_line(console: Console, line: str) -> None:
    """Show one line as it is, whatever names stand in it."""
    console.print(printable(line), highlight=False, soft_wrap=True, markup=False, emoji=False)


class _Clock:
    """Estimates the time left from the epochs that this process has finished."""

    def __init__(self, num_layers: int, num_done: int) -> None:
        self._start_s = time.perf_counter()
        self._num_layers, self._first_layer = num_layers, num_done
        self._first_epochs: int | None = None

    def eta_s(self, layer: int, epochs_taken: float, num_epochs: int) -> float | None:
        """Seconds left when layer `layer` (from 1) has taken `epochs_taken` of its epochs; None while unknown."""
        if self._first_epochs is None:  # a resumed layer does not start at its first epoch
            self._first_epochs = math.ceil(epochs_taken) - 1
        taken = (layer - 1 - self._first_layer) * num_epochs + epochs_taken - self._first_epochs
        left = (self._num_layers - layer + 1) * num_epochs - epochs_taken
        return (time.perf_counter() - self._start_s) * left / taken if taken > 0 else None


class PlainObserver(Observer):
    """One line a layer, and one every ten seconds within it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_s = time.perf_counter()

    def on_start(self, run_dir: str, num_layers: int, num_done: int, num_samples: int, num_tiles: int) -> None:
        """Where the run is and what is left to do."""
        self._num_layers, self._clock = num_layers, _Clock(num_layers, num_done)
        self._print(f"run {run_dir}: {_describe_work(num_layers, num_done, num_samples, num_tiles)}")

    def on_warning(self, text: str) -> None:
        """A line."""
        self._print(f"warning: {text}")

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        """A line, unless there was one in the last ten seconds."""
        eta_s = self._clock.eta_s(layer, epoch, num_epochs)
        if time.perf_counter() - self._last_s >= _PLAIN_INTERVAL_S:
            self._print(
                f"layer {layer}/{self._num_layers} epoch {epoch}/{num_epochs}: {_describe_epoch(figures)}, "
                f"validation error {format_share(validation_error)}, {_samples_per_s(figures)} samples/s, "
                f"ETA {format_seconds(eta_s)}"
            )

    def on_layer(self, figures: LayerFigures) -> None:
        """A line a layer."""
        self._print(
            f"layer {figures.layer}/{self._num_layers} done: loss {figures.loss:.4f}, goodness "
            f"{figures.goodness_positive:.3g}/{figures.goodness_negative:.3g}, separation {figures.separation:.4f}, "
            f"validation error {format_share(figures.validation_error)} alone, "
            f"{format_share(figures.validation_error_to_here)} with those below, "
            f"{figures.samples_per_s:,.0f} samples/s, peak {format_bytes(figures.peak_memory_bytes)}, "
            f"{figures.elapsed_s:.1f} s"
        )

    def on_finish(self, layers: list[LayerFigures]) -> None:
        """The closing table."""
        self._console.print(layer_table(layers))

    def _print(self, line: str) -> None:
        self._last_s = time.perf_counter()
        print_line(self._console, line)


class BarObserver(Observer):
    """One bar for the layers, one for the epochs of the layer at hand, and its figures live."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<7}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._layers = self._progress.add_task("layers", total=None, note="")
        self._epochs = self._progress.add_task("epochs", total=None, note="")
        self._last_error: float | None = None

    def on_start(self, run_dir: str, num_layers: int, num_done: int, num_samples: int, num_tiles: int) -> None:
        """Where the run is, what is left to do, and the bars."""
        line = f"run {run_dir}: {_describe_work(num_layers, num_done, num_samples, num_tiles)}"
        print_line(self._console, line)
        self._clock, self._num_samples = _Clock(num_layers, num_done), num_samples
        self._progress.update(self._layers, total=num_layers, completed=num_done)
        self._progress.start()

    def on_step(self, description: str) -> None:
        """What is going on."""
        self._progress.update(self._epochs, note=printable(description))

    def on_warning(self, text: str) -> None:
        """A line above the bars."""
        print_line(self._console, f"warning: {text}")

    def on_tick(self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures) -> None:
        """Live figures of the epoch."""
        self._show(layer, epoch - 1 + figures.num_samples / self._num_samples, num_epochs, figures)

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        """Figures of the whole epoch."""
        self._last_error = validation_error
        self._show(layer, epoch, num_epochs, figures)

    def on_layer(self, figures: LayerFigures) -> None:
        """One more layer, and its errors beside the bar."""
        note = f"error {format_share(figures.validation_error_to_here)}  peak {format_bytes(figures.peak_memory_bytes)}"
        self._progress.update(self._layers, completed=figures.layer, note=note)

    def on_finish(self, layers: list[LayerFigures]) -> None:
        """The closing table."""
        self.on_stop()
        self._console.print(layer_table(layers))

    def on_stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()

    def _show(self, layer: int, epochs_taken: float, num_epochs: int, figures: EpochFigures) -> None:
        eta_s = self._clock.eta_s(layer, epochs_taken, num_epochs)
        note = (
            f"{_describe_epoch(figures)}  val {format_share(self._last_error)}  {_samples_per_s(figures)}/s  "
            f"ETA {format_seconds(eta_s)}"
        )
        self._progress.update(self._epochs, total=num_epochs, completed=epochs_taken, note=note)


def _describe_work(num_layers: int, num_done: int, num_samples: int, num_tiles: int) -> str:
    done = f"{num_done} of {num_layers} layers are done, " if num_done else f"{num_layers} layers, "
    tiles = f"each in {num_tiles} tiles, " if num_tiles > 1 else ""
    return f"{done}{tiles}{num_samples:,} training samples"


def _describe_epoch(figures: EpochFigures) -> str:
    return f"g {figures.goodness_positive:.3g}/{figures.goodness_negative:.3g}  separation {figures.separation:.4f}"


def _samples_per_s(figures: EpochFigures) -> str:
    return f"{figures.num_samples / max(figures.elapsed_s, 1e-9):,.0f}"
