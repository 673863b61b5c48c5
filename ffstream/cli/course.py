"""How far a run is, in words, and how long it still takes."""

from __future__ import annotations

import math
import time

from rich.table import Table

from ffstream.cli.tables import format_seconds, format_share, layer_table
from ffstream.ground.units import count, format_bytes
from ffstream.training.observer import LayerFigures, RunOutline


class Course:
    """Describes how far a run is, and estimates how long it still takes."""

    def __init__(self, outline: RunOutline) -> None:
        self.outline = outline
        self._start_s = time.perf_counter()
        self._first_epochs: int | None = None

    @property
    def noun(self) -> str:
        """What a validation error is called."""
        return "validation error" if self.outline.is_labelled else "validation error of hybrids"

    def tabulate(self, layers: list[LayerFigures]) -> Table:
        """The figures of the layers."""
        outline = self.outline
        return layer_table(
            layers,
            is_labelled=outline.is_labelled,
            num_in_stack=outline.num_in_stack,
            num_epochs=outline.num_epochs,
        )

    def describe(self) -> str:
        """What is left to do, and the memory that a layer takes."""
        outline = self.outline
        if outline.num_rounds:
            return self._describe_rounds()
        done = f"{outline.num_done} of {count(outline.num_layers, 'layer')} done, " if outline.num_done else ""
        layers = done or f"{count(outline.num_layers, 'layer')}, "
        if outline.num_epochs_saved:
            total = outline.num_epochs[outline.num_done] * outline.num_tiles
            layers += f"layer {outline.num_done + 1} goes on after epoch {outline.num_epochs_saved} of {total}, "
        tiles = f"each in {outline.num_tiles} tiles, " if outline.num_tiles > 1 else ""
        return (
            f"run {outline.path}: {layers}{tiles}{outline.num_samples:,} training samples; a layer's work is planned "
            f"to take {format_bytes(outline.planned_bytes)} of {format_bytes(outline.allowed_bytes)}"
        )

    def _describe_rounds(self) -> str:
        outline = self.outline
        if outline.is_stream:
            done = f", {count(outline.num_rounds_done, 'window')} learnt" if outline.num_rounds_done else ""
            return (
                f"run {outline.path}: {count(outline.num_layers, 'layer')}, a stream in windows of "
                f"{outline.num_samples:,} samples, each of which passes {count(outline.num_windows, 'time')}{done}; a "
                f"layer's work is planned to take {format_bytes(outline.planned_bytes)} of "
                f"{format_bytes(outline.allowed_bytes)}"
            )
        done = f", {outline.num_rounds_done} done" if outline.num_rounds_done else ""
        windows = f" of {outline.num_windows} windows" if outline.num_windows > 1 else ""
        windows += f", {count(outline.num_windows_done, 'window')} of the next done" if outline.num_windows_done else ""
        layers = count(outline.num_layers, "layer")
        within = f" ({outline.num_done} of {layers} in the next)" if outline.num_done else ""
        return (
            f"run {outline.path}: {layers} in {count(outline.num_rounds, 'round')}{windows}{done}{within}, "
            f"{outline.num_samples:,} training samples; a layer's work is planned to take "
            f"{format_bytes(outline.planned_bytes)} of {format_bytes(outline.allowed_bytes)}"
        )

    def name_epoch(self, layer: int, epochs_taken: float) -> str:
        """The epoch that is going on or has just ended, with its tile if there are several."""
        outline = self.outline
        epoch = max(math.ceil(epochs_taken), 1)
        num_epochs = outline.num_epochs[layer - 1]
        if outline.num_rounds:
            number, window = divmod(epoch - 1, outline.num_windows)
            of_window = f" window {window + 1}/{outline.num_windows}" if outline.num_windows > 1 else ""
            return f"round {number + 1}/{outline.num_rounds}{of_window}"
        tile, within = divmod(epoch - 1, num_epochs)
        cut = f"tile {tile + 1}/{outline.num_tiles} " if outline.num_tiles > 1 else ""
        return f"{cut}epoch {within + 1}/{num_epochs}"

    def describe_round(self, number: int, num_rounds: int, layers: list[LayerFigures]) -> str:
        """The figures of a round: the errors of some layers, and that of all."""
        depths = sorted({1, (len(layers) + 1) // 2, len(layers)})
        alone = ", ".join(f"{format_share(layers[depth - 1].validation_error)} at layer {depth}" for depth in depths)
        return (
            f"round {number}/{num_rounds} done: {self.noun} {alone}, "
            f"{format_share(layers[-1].validation_error_to_here)} with those below, "
            f"{sum(figures.elapsed_s for figures in layers):.1f} s, "
            f"{format_seconds(self.eta_s(len(layers), number * self.outline.num_windows))} left of the run"
        )

    def name_peak(self, figures: LayerFigures) -> str:
        """The peak on a GPU; on a CPU only the whole process can be seen, with the interpreter and all libraries."""
        noun = "process" if self.outline.device_type == "cpu" else "peak"
        return f"{noun} {format_bytes(figures.peak_memory_bytes)}"

    def eta_s(self, layer: int, epochs_taken: float) -> float | None:
        """Seconds left when layer `layer` (from 1) has taken so many epochs, of all tiles; None while unknown."""
        outline = self.outline
        if outline.num_rounds:
            return self._rounds_eta_s(layer, epochs_taken)
        before, here = outline.num_epochs[outline.num_done : layer - 1], outline.num_epochs[layer - 1 :]
        if self._first_epochs is None:  # a resumed layer does not start at its first epoch
            self._first_epochs = math.ceil(epochs_taken) - 1
        taken = sum(before) * outline.num_tiles + epochs_taken - self._first_epochs
        left = sum(here) * outline.num_tiles - epochs_taken
        return (time.perf_counter() - self._start_s) * left / taken if taken > 0 else None

    def _rounds_eta_s(self, layer: int, passes_taken: float) -> float | None:
        """The same in rounds, or in their windows: layers have taken one less than those below them."""
        outline = self.outline
        passes_done = outline.num_rounds_done * outline.num_windows + outline.num_windows_done
        first = passes_done * outline.num_layers + outline.num_done
        passes_of_layer = math.ceil(passes_taken) - 1
        taken = passes_of_layer * outline.num_layers + layer - 1 + (passes_taken - passes_of_layer) - first
        left = outline.num_rounds * outline.num_windows * outline.num_layers - first - taken
        return (time.perf_counter() - self._start_s) * max(left, 0) / taken if taken > 0 else None


def describe_early_end(layer: int, num_taken: int, num_epochs: int) -> str:
    """What it means that a layer, or for 0 all of them, took fewer epochs than it might have had."""
    if not layer:
        return f"{num_taken} of {num_epochs} rounds are taken, as the validation error has ceased to fall"
    return (
        f"layer {layer} is done early, after {num_taken} of {num_epochs} epochs, as its validation error has ceased to "
        "fall"
    )
