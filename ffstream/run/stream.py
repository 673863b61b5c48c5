"""Learning from a stream: window after window, each of which is durable before anything is learnt from it."""

from __future__ import annotations

import numbers
import time
from collections.abc import Iterator

import torch

from ffstream.data import Dataset, Split, load_dataset
from ffstream.data.facts import DataFacts
from ffstream.data.stream_source import Place, StreamSource, StreamWindow, cut_windows, open_source
from ffstream.errors import ConfigError, DataError
from ffstream.ground.interrupts import check_interrupts, waiting
from ffstream.infer.committed import CommittedLayers
from ffstream.infer.evaluation import evaluate_goodness
from ffstream.plan.plan import Plan
from ffstream.run.cycle import Cycle
from ffstream.run.executor import Runner
from ffstream.run.run import read_layer_figures
from ffstream.settings.config import Config
from ffstream.storage.run_directory import RunDirectory
from ffstream.storage.stream_store import TakenWindow
from ffstream.training.observer import Observer, WindowFigures


class Stream:
    """Takes windows of a source for the rounds of one run, each of which learns from one."""

    def __init__(self, directory: RunDirectory, source: StreamSource, config: Config, num_classes: int | None) -> None:
        self.name = config.data
        self._directory, self._source = directory, source
        self._num_samples, self._num_windows = int(config.schedule.window_samples), config.epochs
        self._facts = directory.read_data() if directory.exists() else None
        known = source.class_names if self._facts is None else self._facts.class_names
        self._class_names = _name_classes(self.name, known, num_classes)
        self._least = 2 if config.labels.method == "none" else 1  # samples of a window; a hybrid is made of two
        if self._num_samples < self._least:
            raise ConfigError(
                f"config schedule.window_samples: found {self._num_samples}, allowed {self._least} or more, as a "
                "hybrid is made of two images"
            )
        self._number = directory.count_rounds() + 1 if self._facts is not None else 1
        self._window: StreamWindow | None = None  # of the round of this number, once it is taken
        self._is_kept = False
        self._has_rest = False  # whether something lies beyond the window that was kept last
        before = self.name if self._facts is None else directory.read_config().data
        of_name = f"stream {self.name}: is gone on with in place of {before}"
        self._said = [] if before == self.name else [of_name]  # warnings, before anything is learnt
        self._windows = self._go_on(directory.stream.read() if self._facts is not None else None)

    def _go_on(self, last: TakenWindow | None) -> Iterator[StreamWindow]:
        """The windows that are left to learn from; the first of them may be durable already.

        After a repair, rounds may be missing that are before the window that was taken last. What cannot be read again
        is then learnt in the place of what is lost.
        """
        window, number = (None, 0) if last is None else (last.window, last.number)
        self._has_rest = window is not None and window.beyond is not None
        is_next = number == self._number or (number > self._number and not self._source.can_seek)
        if window is not None and is_next:
            self._window, self._is_kept = window, number == self._number
        if window is not None and (is_next or number == self._number - 1):
            return cut_windows(self._source, self._num_samples, window.end, window.beyond, window.cursor)
        if last is not None and not self._source.can_seek:
            self._said.append(
                f"stream {self.name}: window {number} was damaged and put aside, and cannot be read again; the run "
                "goes on with what comes next"
            )
        return cut_windows(self._source, self._num_samples, self._find_place())

    def _find_place(self) -> Place:
        """Where the next round begins to read, by the last one."""
        newest = self._directory.newest()
        found = Cycle.from_mapping(newest.read_round()["cycle"]).place if self._number > 1 else None
        return found or Place()

    @property
    def warning(self) -> str | None:
        """What is to be said before anything is learnt, in one line; None if there is nothing."""
        return "; ".join(self._said) or None

    @classmethod
    def open(
        cls,
        directory: RunDirectory,
        config: Config,
        source: StreamSource | None,
        num_classes: int | None,
        *,
        download: bool = False,
    ) -> Stream:
        """The stream of a run, from the source that its configuration names unless one is given. Raises DataError."""

        def load() -> Dataset:
            skips_bad = config.bad_images == "skip"
            return load_dataset(config.data, config.data_root, skips_bad=skips_bad, download=download)

        if source is None:
            source = open_source(config.data, follows=config.schedule.follow, load=load, seed=config.seed)
        return cls(directory, source, config, num_classes)

    def take(self) -> StreamWindow | None:
        """The window from which the next round learns; None at the end, of the stream or of what was asked for.

        Raises DataError for samples that are unlike those that the run was started with.
        """
        if self._window is None and self._number <= self._num_windows:
            with waiting():
                found = next(self._windows, None)
            if found is not None:
                self._check(found)
            self._window, self._is_kept = found, False
        if self._window is not None and len(self._window.samples) < self._least:
            return None  # it comes again with what comes later, where the source can be read again
        return self._window

    def keep(self) -> None:
        """Make the window that was taken durable."""
        if self._window is not None and not self._is_kept:
            self._directory.stream.write(self._number, self._window)
            self._is_kept, self._has_rest = True, self._window.beyond is not None

    def tidy(self) -> None:
        """Remove the window that was kept, which is learnt, unless something lies beyond it."""
        if not self._has_rest:
            self._directory.stream.remove()

    def move_on(self) -> None:
        """The round that learnt from the window is committed."""
        self._number, self._window = self._number + 1, None

    def describe(self) -> Dataset:
        """The window that comes next, as a data set with all classes. Raises DataError if a stream holds nothing.

        At the end of a stream that was learnt, it is a data set of the same shape, from which nothing is learnt.
        """
        window, facts = self.take(), self._facts
        if facts is not None:
            no_samples = Split(torch.zeros(1, *facts.image_shape), torch.zeros(1, dtype=torch.int64))
            return Dataset(self.name, no_samples if window is None else window.samples, None, facts.class_names)
        if window is None:
            found = "no samples" if self._least == 1 else f"fewer than {self._least} samples"
            raise DataError(f"stream {self.name}: holds {found}, allowed {self._least} or more; see to its source")
        highest = int(window.samples.labels.max())
        if self._class_names is None and highest >= len(window.samples):
            raise DataError(
                f"stream {self.name}: found label {highest} in a first window of {len(window.samples)} samples, "
                "allowed 0 to C - 1 for C classes; say how many by --classes"
            )
        names = self._class_names or tuple(map(str, range(highest + 1)))
        if len(names) < 2:
            raise DataError(f"stream {self.name}: {len(names)} class, allowed 2 or more; say how many by --classes")
        return Dataset(self.name, window.samples, None, names)

    def _check(self, window: StreamWindow) -> None:
        noun = f"stream {self.name}"
        names = self._class_names
        samples, num_before = window.samples, window.start.num_before
        worst = int(samples.labels.max())
        if names is not None and worst >= len(names):
            place = num_before + int((samples.labels == worst).nonzero()[0])
            raise DataError(
                f"{noun}: sample {place} has label {worst}, allowed 0 to {len(names) - 1}; all classes that may ever "
                "come are set when a run is started, by --classes"
            )
        found = tuple(samples.images.shape[1:])
        if self._facts is not None and found != self._facts.image_shape:
            raise DataError(
                f"{noun}: images from sample {num_before} on have shape {found}, allowed {self._facts.image_shape}, as "
                "the run was started with; bring them to that"
            )

    def begin(self, facts: DataFacts) -> None:
        """Hold all further windows to what the run was started with."""
        self._facts, self._class_names = facts, facts.class_names


def _name_classes(name: str, known: tuple[str, ...] | None, num_asked: int | None) -> tuple[str, ...] | None:
    """The names of all classes; None where the first window has to tell. Raises DataError."""
    if num_asked is None:
        return known
    if isinstance(num_asked, bool) or not isinstance(num_asked, numbers.Integral) or num_asked < 2:
        raise DataError(f"stream {name}: found --classes {num_asked!r}, allowed an integer >= 2")
    if known is not None and len(known) != num_asked:
        raise DataError(
            f"stream {name}: found --classes {num_asked}, allowed {len(known)}, all that it has; leave it out, or "
            "start a new run"
        )
    return known or tuple(map(str, range(int(num_asked))))


def learn(stream: Stream, directory: RunDirectory, plan: Plan, device: torch.device, observer: Observer) -> None:
    """Learn window after window, until the stream ends or as many are learnt as the run is asked for."""
    config, facts, has_said = plan.config, directory.read_data(), False
    metrics = directory.metrics
    stream.begin(facts)
    if stream.take() is None:  # tidy up, as a process that was killed may not have
        nothing = stream.describe().train
        Runner(directory, plan, facts, {"train": nothing}, device, observer, None, None).run()
    while True:
        start_s, number = time.perf_counter(), directory.count_rounds() + 1
        window = stream.take()
        if window is None:
            break
        stream.keep()
        samples = window.samples
        oddity = facts.find_other_units(samples.images, f"window {number}: images", samples.labels)
        if oddity is not None and not has_said:
            has_said = True
            observer.on_warning(oddity)
        cycle = _find_cycle(directory, config, facts, device, window, number)
        taken_s = time.perf_counter()
        Runner(directory, plan, facts, {"train": samples}, device, observer, None, cycle, metrics).run()
        stream.move_on()
        now_s = time.perf_counter()
        error = cycle.errors[0] if cycle.errors else None
        separation = read_layer_figures(directory.newest())[-1].separation
        observer.on_window(WindowFigures(number, len(samples), error, now_s - taken_s, taken_s - start_s, separation))
        check_interrupts()
    stream.tidy()


def _find_cycle(
    directory: RunDirectory, config: Config, facts: DataFacts, device: torch.device, window: StreamWindow, number: int
) -> Cycle:
    """The cycle of one round at the whole learning rate, with the network's error on the window before it is learnt.

    Raises RunError.
    """
    begun = directory.read_begun_cycle()
    if begun is not None:
        return Cycle.from_mapping(begun)
    errors: tuple[float, ...] = ()
    if number > 1 and config.labels.method != "none":
        in_memory = config.override({"cache.tier": "host"})
        layers = CommittedLayers(directory.newest(), in_memory, facts, device)
        errors = (evaluate_goodness(layers, "window", window.samples).error,)
    return Cycle(number - 1, number, errors, window.end)
