"""How a run is shown while it trains: bars on a terminal, plain lines elsewhere, and a closing table by layer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ffstream.cli.course import Course, describe_early_end
from ffstream.cli.tables import format_seconds, format_share
from ffstream.errors import printable
from ffstream.ground.units import count
from ffstream.training.epoch_figures import EpochFigures
from ffstream.training.observer import LayerFigures, Observer, RunOutline, WindowFigures

_PLAIN_INTERVAL_S = 10.0
NUM_WINDOWS = 10  # of a stream, whose mean error is shown
_LEAST_WRAPPED = 16  # columns for text that may be wrapped
_MOST_BAR, _LEAST_BAR = 28, 8  # columns of a bar
_BESIDE_BAR = 30  # columns of the name, the counts and the time beside a bar


def make_observer(console: Console, *, is_stream: bool = False) -> Observer:
    """Bars when `console` is a terminal, else plain lines; for a stream, a line for each window."""
    if is_stream:
        return WindowObserver(console)
    return BarObserver(console) if console.is_terminal else PlainObserver(console)


def print_line(console: Console, line: str) -> None:
    """Show one line as it is, without markup, and with whatever a terminal would obey escaped.

    A terminal that is narrower shows several, which end between words.
    """
    console.print(printable(line), highlight=False, soft_wrap=not console.is_terminal, markup=False, emoji=False)


def print_table(console: Console, table: Table) -> None:
    """Show a table, with less space between columns if it needs that to fit.

    If it is wider than the terminal all the same, show each row as lines of a heading and a cell.
    """
    least = _find_least_width(table)
    if least > console.width:
        table.padding = 0
        least -= len(table.columns)
    if least <= console.width:
        console.print(table, highlight=False, markup=False, emoji=False)
        return
    print_line(console, str(table.title or ""))
    headings = [" ".join(str(column.header).replace("-\n", "").split()) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        for heading, cell in zip(headings, cells, strict=True):
            for line in _to_text(cell).split("\n"):
                print_line(console, f"  {heading}: {line}" if heading else f"{line}")
        print_line(console, "")


def _find_least_width(table: Table) -> int:
    """The least width that a table needs; rich's own measure assumes that every column can be wrapped."""
    widths = []
    for column in table.columns:
        texts = [_to_text(column.header), *map(_to_text, column.cells)]
        lines = [line for text in texts for line in (text.split("\n") if column.no_wrap else text.split())]
        widths.append(max([cell_len(line) for line in lines] + [0 if column.no_wrap else _LEAST_WRAPPED]))
    return sum(widths) + 2 * len(widths) - 1  # one of padding for each, one between two


def _to_text(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


class PlainObserver(Observer):
    """Prints one line per layer, and at most one every ten seconds within a layer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_s = time.perf_counter()

    def on_start(self, outline: RunOutline) -> None:
        """Print where the run is and what is left to do."""
        self._course = Course(outline)
        self._print(self._course.describe())

    def on_warning(self, text: str) -> None:
        """Print the warning as a line."""
        self._print(f"warning: {text}")

    def on_note(self, text: str) -> None:
        """Print the note as a line."""
        self._print(text)

    def on_early_end(self, layer: int, num_taken: int, num_epochs: int) -> None:
        """Print how many epochs the layer took."""
        self._print(describe_early_end(layer, num_taken, num_epochs))

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        """Print a line, unless there was one in the last ten seconds."""
        course = self._course
        eta_s = course.eta_s(layer, epoch)
        if time.perf_counter() - self._last_s >= _PLAIN_INTERVAL_S:
            self._print(
                f"layer {layer}/{course.outline.num_layers} {course.name_epoch(layer, epoch)}: "
                f"{course.noun} {format_share(validation_error)}; {format_seconds(eta_s)} left of the run; separation "
                f"{figures.separation:.3f}, {_samples_per_s(figures)} samples/s"
            )

    def on_layer(self, figures: LayerFigures) -> None:
        """Print a line per layer."""
        course, num_layers = self._course, self._course.outline.num_layers
        self._print(
            f"layer {figures.layer}/{num_layers} done: {course.noun} {format_share(figures.validation_error)} alone, "
            f"{format_share(figures.validation_error_to_here)} to here; "
            f"{format_seconds(course.eta_s(figures.layer + 1, 0))} left of the run; loss {figures.loss:.4f}, "
            f"{course.name_peak(figures)}"
        )

    def on_round(self, number: int, num_rounds: int, layers: list[LayerFigures]) -> None:
        """Print a line per round."""
        self._print(self._course.describe_round(number, num_rounds, layers))

    def on_finish(self, layers: list[LayerFigures]) -> None:
        """The closing table."""
        print_table(self._console, self._course.tabulate(layers))

    def _print(self, line: str) -> None:
        self._last_s = time.perf_counter()
        print_line(self._console, line)


class WindowObserver(PlainObserver):
    """Prints one line per window of a stream."""

    _errors: tuple[float, ...] = ()  # of the last windows, before they were learnt

    def on_start(self, outline: RunOutline) -> None:
        """Print where the run is, once."""
        if not hasattr(self, "_course"):
            super().on_start(outline)

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        """Nothing: a window is short."""

    def on_round(self, number: int, num_rounds: int, layers: list[LayerFigures]) -> None:
        """Nothing: the line of the window follows."""

    def on_window(self, figures: WindowFigures) -> None:
        """Print how often the network was wrong in the window before it learnt it, and in the last ones."""
        before = ""
        if figures.error is not None:
            self._errors = (*self._errors, figures.error)[-NUM_WINDOWS:]
            before = f", {format_share(figures.error)} wrong before learning"
            if len(self._errors) > 1:
                mean = sum(self._errors) / len(self._errors)
                before += f" ({format_share(mean)} in the last {len(self._errors)})"
        self._print(
            f"window {figures.number}: {count(figures.num_samples, 'sample')}{before}, {figures.learning_s:.1f} s"
        )

    def on_finish(self, layers: list[LayerFigures]) -> None:
        """Nothing: more windows may follow."""


class BarObserver(Observer):
    """Shows one bar for the layers, one for the epochs of the current layer, and live figures of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        bar = min(max((console.width - _BESIDE_BAR) // 2, _LEAST_BAR), _MOST_BAR)
        self._note_columns = console.width - _BESIDE_BAR - bar
        self._progress = Progress(
            TextColumn("{task.description:<6}"),
            BarColumn(bar_width=bar),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._layers = self._progress.add_task("layers", total=None, note="")
        self._epochs = self._progress.add_task("epochs", total=None, note="")
        self._last_error: float | None = None
        self._layer_notes: list[str] = []  # of the layer that was finished last

    def on_start(self, outline: RunOutline) -> None:
        """Print where the run is and what is left to do, and start the bars."""
        self._course = Course(outline)
        print_line(self._console, self._course.describe())
        done, total = outline.num_done, outline.num_layers
        if outline.num_rounds:
            done, total = outline.num_rounds_done, outline.num_rounds
        self._progress.update(self._layers, description="rounds" if outline.num_rounds else "layers")
        self._progress.update(self._layers, total=total, completed=done)
        self._progress.start()

    def on_step(self, description: str) -> None:
        """Show what is going on beside a bar."""
        self._progress.update(self._epochs, note=self._fit([printable(description)]))

    def on_warning(self, text: str) -> None:
        """Print the warning as a line above the bars."""
        print_line(self._console, f"warning: {text}")

    def on_note(self, text: str) -> None:
        """Print the note as a line above the bars."""
        print_line(self._console, text)

    def on_early_end(self, layer: int, num_taken: int, num_epochs: int) -> None:
        """Print how many epochs the layer took, above the bars."""
        print_line(self._console, describe_early_end(layer, num_taken, num_epochs))

    def on_tick(self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures) -> None:
        """Show live figures of the epoch."""
        outline = self._course.outline
        taken = epoch - 1 + figures.num_samples * outline.num_windows / outline.num_samples
        self._show(layer, min(taken, epoch), num_epochs, figures)

    def on_epoch(
        self, layer: int, epoch: int, num_epochs: int, figures: EpochFigures, validation_error: float | None
    ) -> None:
        """Show the figures of the whole epoch."""
        if validation_error is not None:  # it is measured once a round, whatever windows this has
            self._last_error = validation_error
        self._show(layer, epoch, num_epochs, figures)

    def on_layer(self, figures: LayerFigures) -> None:
        """Move the bar on by a layer, and show the time that the run still takes and the layer's error and memory."""
        noun = "error" if self._course.outline.is_labelled else "hybrids"
        self._layer_notes = [
            f"{noun} {format_share(figures.validation_error_to_here)}",
            self._course.name_peak(figures),
        ]
        self._progress.update(self._layers, completed=figures.layer)
        self._show_eta(figures.layer + 1, 0)

    def on_round(self, number: int, num_rounds: int, layers: list[LayerFigures]) -> None:
        """Print a line per round above the bars, and move the bar of the rounds on."""
        print_line(self._console, self._course.describe_round(number, num_rounds, layers))
        self._progress.update(self._layers, total=num_rounds, completed=number)

    def on_finish(self, layers: list[LayerFigures]) -> None:
        """The closing table."""
        self.on_stop()
        print_table(self._console, self._course.tabulate(layers))

    def on_stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()

    def _show(self, layer: int, epochs_taken: float, num_epochs: int, figures: EpochFigures) -> None:
        course = self._course
        outline = course.outline
        noun = "error" if outline.is_labelled else "hybrids"
        notes = [course.name_epoch(layer, epochs_taken)] if outline.num_tiles > 1 else []
        notes += [
            f"{noun} {format_share(self._last_error)}",
            f"{_samples_per_s(figures)}/s",
            f"separation {figures.separation:.3f}",
            f"goodness {figures.goodness_positive:.3g}/{figures.goodness_negative:.3g}",
        ]
        if outline.num_rounds:  # this bar is that of the layers, each of which takes an epoch
            within = layer - 1 + epochs_taken - math.ceil(epochs_taken) + 1
            self._progress.update(self._epochs, description="layers", total=outline.num_layers, completed=within)
            self._progress.update(self._epochs, note=self._fit(notes))
        else:
            self._progress.update(self._epochs, total=num_epochs, completed=epochs_taken, note=self._fit(notes))
        self._show_eta(layer, epochs_taken)

    def _show_eta(self, layer: int, epochs_taken: float) -> None:
        """Show the time that is left beside the bar of the layers, as it is that of all of them."""
        left = f"{format_seconds(self._course.eta_s(layer, epochs_taken))} left"
        self._progress.update(self._layers, note=self._fit([left, *self._layer_notes]))

    def _fit(self, notes: Sequence[str]) -> str:
        """As many of the first notes as there is room for beside a bar."""
        line = ""
        for note in notes:
            longer = f"{line}  {note}" if line else note
            if len(longer) > self._note_columns:
                break
            line = longer
        return line


def _samples_per_s(figures: EpochFigures) -> str:
    return f"{figures.num_samples / max(figures.elapsed_s, 1e-9):,.0f}"
