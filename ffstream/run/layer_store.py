"""Where the layers of a run are between two windows of a round, with the state of their optimisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.storage.metrics import MetricsSeal
from ffstream.storage.rounds import REPAIR
from ffstream.storage.run_directory import RunDirectory
from ffstream.storage.windows import WindowsDone
from ffstream.training.epoch_figures import EpochFigures
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.window import Window

_LAYER_S, _ON = "layer_s", "seconds of "


@dataclass(frozen=True)
class Course:
    """How the training of a layer went in an epoch, or so far in one."""

    figures: EpochFigures
    elapsed_s: float
    seconds: dict[str, float]  # by what they were spent on

    def add(self, other: Course) -> Course:
        """The course of both, which are parts of one epoch."""
        names = [*other.seconds, *(name for name in self.seconds if name not in other.seconds)]
        seconds = {name: self.seconds.get(name, 0.0) + other.seconds.get(name, 0.0) for name in names}
        return Course(self.figures.add(other.figures), self.elapsed_s + other.elapsed_s, seconds)

    def to_mapping(self) -> dict[str, float]:
        """Plain values, for a manifest."""
        return asdict(self.figures) | {_LAYER_S: self.elapsed_s} | {f"{_ON}{k}": v for k, v in self.seconds.items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, float]) -> Course:
        """The inverse of `to_mapping`."""
        seconds = {name.removeprefix(_ON): float(value) for name, value in values.items() if name.startswith(_ON)}
        return cls(EpochFigures.from_mapping(values), float(values[_LAYER_S]), seconds)


class LayerStore:
    """Keeps every layer from one window to the next: in the host's memory or, where that has no room, on the disk."""

    def __init__(self, directory: RunDirectory, num_layers: int, *, in_memory: bool) -> None:
        self.directory = directory
        self._num_layers, self._in_memory = num_layers, in_memory
        self._states: dict[int, dict[str, Tensor]] = {}
        self._files: dict[int, tuple[str, str]] = {}  # name and digest, of those that are on the disk
        self._saved: set[str] = set()  # names of the files that the manifest names, or will
        self._courses: dict[int, Course] = {}  # of the round so far
        self.statistics: dict[int, Tensor] = {}  # that layers have of the last windows of the round

    def open(self, first: Window) -> Window:
        """Find what was saved of a round that begins with the window `first`. Returns the one that comes next.

        Layers of the round that are committed, but did not begin their last window from what was saved, are put aside.
        Raises CorruptFileError.
        """
        self.directory.keep_named()
        done = self.directory.read_windows()
        if done is None or done.num_done + 1 < done.num:
            names = [self.directory.layer_name(index) for index in self.directory.list_layers()]
            if names:  # the uppermost first, so that no layer is ever missing below another
                self.directory.put_aside(names[::-1])
        if done is None:
            return first
        if (done.num, len(done.courses)) != (first.num, self._num_layers):
            raise CorruptFileError(
                f"progress {self.directory.path / 'progress'}: was saved in a round of {done.num} windows and "
                f"{len(done.courses)} layers, this run has {first.num} and {self._num_layers}; {REPAIR}"
            )
        self._files = dict(enumerate(list(done.digests.items())[: self._num_layers]))
        self._saved = set(done.digests)
        self._courses = {index: Course.from_mapping(each) for index, each in enumerate(done.courses)}
        self.statistics = self.directory.load_statistics(done)
        return replace(first, number=done.num_done)

    def begin_round(self) -> None:
        """Forget what is only of the round before: what was saved within it, its course, and its statistics."""
        self._files, self._saved, self._courses, self.statistics = {}, set(), {}, {}

    def add_course(self, index: int, course: Course) -> Course:
        """The course of a layer in this round so far, with that of one more window."""
        self._courses[index] = course.add(self._courses[index]) if index in self._courses else course
        return self._courses[index]

    def fill(self, index: int, trainer: LayerTrainer) -> bool:
        """Fill a new trainer with what the layer was after the last window. Returns whether it is there.

        Raises CorruptFileError.
        """
        targets, state = _list_tensors(trainer)
        if index in self._states:
            for name, value in self._states[index].items():
                targets[name].copy_(value)
        elif index in self._files:
            self.directory.fill_window(*self._files[index], targets)
        else:
            return False
        trainer.optimiser.load_state(state)
        return True

    def put(self, index: int, window: Window, trainer: LayerTrainer) -> None:
        """Keep a layer as it is after a window. It may change once this returns.

        After the last one, it is committed with the round, in which the next round finds what is not in memory.
        """
        if window.num == 1:
            return
        tensors, _ = _list_tensors(trainer)
        if self._in_memory or window.is_last:
            self._files.pop(index, None)
        if self._in_memory:
            kept = self._states.setdefault(index, {})
            for name, value in tensors.items():
                if name not in kept:
                    kept[name] = torch.empty_like(value, device="cpu")
                kept[name].copy_(value)
        elif not window.is_last:
            self._stage(index, window.number + 1, tensors)

    def save(self, num_done: int, num_windows: int) -> Callable[[MetricsSeal], Callable[[], None]]:
        """A function that writes all layers after `num_done` windows, and returns another that commits them."""

        def write(seal: MetricsSeal) -> Callable[[], None]:
            for index, state in self._states.items():
                self._stage(index, num_done, state)
            digests = dict(self._files[index] for index in range(self._num_layers))
            if self.statistics:
                digests |= [self.directory.stage_statistics(num_done, self.statistics)]
            if self._in_memory:
                self._files = {}
            self._saved = set(digests)
            courses = [self._courses[index].to_mapping() for index in range(self._num_layers)]
            return self.directory.write_windows(WindowsDone(num_done, num_windows, digests, courses), seal)

        return write

    def _stage(self, index: int, num_done: int, tensors: dict[str, Tensor]) -> None:
        """Write a layer, and remove the file in which it was, unless that is saved."""
        on_host = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        before, _ = self._files.get(index, ("", ""))
        self._files[index] = self.directory.stage_window(index, num_done, on_host)
        if before and before not in self._saved:
            self.directory.remove_windows([before])


def _list_tensors(trainer: LayerTrainer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a layer and of its optimiser by name, and those of the optimiser under its own names."""
    state = trainer.optimiser.state()
    found = {f"layer.{name}": value for name, value in trainer.layer.state_dict().items()}
    return found | {f"optimiser.{name}": value for name, value in state.items()}, state
