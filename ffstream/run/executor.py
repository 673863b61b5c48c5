"""Executes a schedule, with one layer on the device, its input in the cache and all finished layers on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ffstream.cache.transfer import Transfer
from ffstream.data import Split
from ffstream.data.facts import DataFacts
from ffstream.device.accelerator import find_accelerator
from ffstream.device.memory import peak_memory_bytes, unpinned_reason
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Layer
from ffstream.field.network import LayerSpec, count_in_stack
from ffstream.ground.interrupts import check_interrupts
from ffstream.plan.plan import Plan
from ffstream.run.cache_set import TRAIN, VALIDATION, CacheSet
from ffstream.run.commits import Commits
from ffstream.run.cycle import Cycle, find_cycle
from ffstream.run.frozen_layers import FrozenLayers, Goodness
from ffstream.run.held_out import HeldOut
from ffstream.run.input_writer import InputWriter
from ffstream.run.judgement import Judgement
from ffstream.run.layer_store import Course, LayerStore
from ffstream.run.outline import outline_run
from ffstream.run.progress_saver import ProgressSaver
from ffstream.run.run import read_layer_figures
from ffstream.run.schedule import Action, Pass, Step, remaining_steps
from ffstream.storage.epoch_part import EpochPart
from ffstream.storage.metrics import MetricsFile
from ffstream.storage.progress import BegunLayer
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.epoch_figures import EpochFigures
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.observer import LayerFigures, Observer
from ffstream.training.propagation import settle
from ffstream.training.rate_schedule import RateSchedule
from ffstream.training.silence import find_silent
from ffstream.training.window import Window

# Under which name the time of an action is counted that no lap within it counts. In training, that time goes to
# measuring goodness and making layers.
_NOUNS = {Action.WRITE_INPUT: "writing images", Action.TRAIN: "measuring", Action.PROPAGATE: "handing on"}

_LEAST_S = 1e-9  # lower limit of a measured time, should the clock show none


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A layer, or its last tile, after the epochs of a pass."""

    layer: Layer
    epochs: list[EpochFigures]  # that were taken here
    goodness: Tensor | None  # on the validation split at the end
    begun: BegunLayer | None  # what is written of it by now


class Runner:
    """Carries out the plan of one run, whose lock this process holds; in rounds, the rest of `cycle`."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: Plan,
        facts: DataFacts,
        splits: dict[str, Split],
        device: torch.device,
        observer: Observer,
        judgement: Judgement | None,  # of a validation split of which labels are predicted
        cycle: Cycle | None = None,
        metrics: MetricsFile | None = None,  # to which the runners of earlier windows of a stream have written
    ) -> None:
        self._directory, self._plan, self._observer, self._judgement = directory, plan, observer, judgement
        self._config = config = plan.config
        self._cycle, self._pass = cycle, Pass()
        names = [name for name in (TRAIN, VALIDATION) if name in splits]
        self._num_in_stack, self._class_names = count_in_stack(config), facts.class_names
        self._labels = {name: splits[name].labels for name in names}
        self._device, self._accelerator = device, find_accelerator(device)
        num_samples = {name: len(labels) for name, labels in self._labels.items()}
        self._blueprint = blueprint = Blueprint.of(config, facts.shape(num_samples))
        self._specs, self._tiles_of = blueprint.specs, blueprint.tiles_of
        self._metrics = metrics or directory.metrics
        self._caches = CacheSet(directory, blueprint, facts.digest, plan.tier, device)
        self._transfer = Transfer(device, plan.max_unsynced, lambda: observer.on_warning(unpinned_reason()))
        self._stopwatch = self._transfer.stopwatch
        # Shared by all layers, so that each reuses the buffers of the last.
        self._workspace = Workspace(device, keeps_cast=plan.keeps_cast)
        self._has_said_silent = False  # whether a silent layer was warned of, as those above it are silent too
        self._inputs = InputWriter(
            blueprint, {name: splits[name] for name in names}, facts.scaling, self._caches, self._transfer
        )
        self._frozen = FrozenLayers(directory, blueprint, self._caches, self._transfer, device, self._workspace)
        self._commits = Commits(self._metrics, self._transfer)
        num_windows, repeats = config.schedule.count_windows(num_samples[TRAIN]), config.schedule.is_stream
        self._first_window = Window(0, num_windows, repeats)
        self._store = LayerStore(directory, len(self._specs), in_memory=plan.layer_tier == "host")
        self._saver = ProgressSaver(directory, blueprint, self._commits, self._store)
        no_labels = torch.zeros(0, dtype=torch.int64)
        self._targets = blueprint.method.rows.targets(self._labels[VALIDATION]) if VALIDATION in names else no_labels
        self._held_out = HeldOut(self._targets, config.network.stack_layers)

    def run(self) -> None:
        """Execute the steps that are missing."""
        self._begin(Pass(self._directory.count_rounds() + 1 if self._config.in_rounds else 0, self._first_window))
        if self._first_window.num > 1:
            self._begin(Pass(self._pass.round, self._store.open(self._first_window)))
        num_done = self._directory.count_layers()
        self._saver.rewind(num_done, self._metrics)
        cached_inputs = self._caches.open_committed(num_done, num_done - num_done % self._num_in_stack)
        state = self._cycle, self._pass, num_done, self._saver.count_epochs(num_done)
        self._observer.on_start(outline_run(self._directory, self._plan, self._blueprint, self._device, *state))
        with contextlib.closing(self._metrics), self._transfer:  # on leaving, even by an error, it commits its actions
            self._directory.remove_rounds(num_done)
            if self._cycle is not None or not self._config.in_rounds:
                self._execute(remaining_steps(len(self._specs), self._num_in_stack, num_done, cached_inputs))
            while self._cycle is not None and self._end_pass(self._cycle):
                self._begin(self._pass.next)
                self._execute(remaining_steps(len(self._specs), self._num_in_stack, 0, ()))
        self._caches.drop_all()
        self._directory.drop_progress()
        self._observer.on_finish(read_layer_figures(self._directory.newest()))

    def _begin(self, next_pass: Pass) -> None:
        """Prepare for a pass through all layers, of which an earlier process may have finished some."""
        self._pass = next_pass
        if next_pass.round:
            of_round = self._cycle.to_mapping() if self._cycle is not None else None
            directory = self._directory.at_round(next_pass.round, of_round)
            self._directory = self._frozen.directory = self._saver.directory = directory
        self._store.directory = self._directory
        self._caches.begin(next_pass)
        labels, selected = self._labels[TRAIN], next_pass.select(len(self._labels[TRAIN]), self._config.seed)
        self._passing_labels = labels if selected is None else labels[selected]
        self._held_out = HeldOut(self._targets, self._config.network.stack_layers)
        if VALIDATION in self._labels and next_pass.is_last:
            self._held_out.replay(self._directory, self._directory.count_layers())

    def _execute(self, steps: Sequence[Step]) -> None:
        actions: dict[Action, Callable[[LayerSpec], None]] = {
            Action.WRITE_INPUT: self._write_input,
            Action.TRAIN: self._train,
            Action.PROPAGATE: self._propagate,
        }
        num_writes = sum(step.action is Action.WRITE_INPUT for step in steps)
        for step in steps:
            if step.action is Action.WRITE_INPUT:
                num_writes -= 1
            elif not num_writes and not self._pass.round:  # every round writes from them
                self._inputs.forget(self._caches.lasting)
            self._observer.on_step(f"{step.description}{self._pass.description}")
            with self._stopwatch.lap(_NOUNS[step.action]):
                actions[step.action](self._specs[step.layer])

    def _end_pass(self, cycle: Cycle) -> bool:
        """Commit the round, or save the layers after a window of it. Returns whether another pass follows."""
        if self._pass.is_last:
            return self._end_round(cycle)
        self._saver.save_windows(self._pass.window.number + 1, self._pass.window.num)
        return True

    def _end_round(self, cycle: Cycle) -> bool:
        """Commit the round. Returns whether another one follows."""
        settings, number = self._config.optimiser, self._pass.round
        before = cycle.find_schedule(settings)
        cycle = cycle.add_error(self._held_out.error_to_here)
        schedule = cycle.find_schedule(settings)
        self._cycle = following = self._find_following(cycle)
        self._commits.add(lambda seal: self._directory.write_round(cycle.to_mapping(), seal))
        self._transfer.commit(self._directory.drop_progress)
        self._transfer.commit(partial(self._directory.at_round(number + 1).remove_rounds, 0))
        self._transfer.finish()
        self._store.begin_round()
        if schedule != before:
            self._observer.on_early_end(0, cycle.start + schedule.num_epochs, cycle.stop)
        num_rounds = number
        if following is not None:
            num_rounds = following.start + following.find_schedule(settings).num_epochs
        self._observer.on_round(number, num_rounds, read_layer_figures(self._directory))
        return following is not None

    def _find_following(self, cycle: Cycle) -> Cycle | None:
        """The cycle of the round after this one, which `cycle` ends with; a stream brings other samples for that."""
        num_asked = 0 if self._config.schedule.is_stream else self._config.epochs
        return find_cycle(cycle, self._pass.round, num_asked, self._config.optimiser)

    # --- the three actions

    def _write_input(self, spec: LayerSpec) -> None:
        """Write the input caches of a stack from the data set."""
        self._frozen.forget()
        self._workspace.clear()
        self._inputs.write(spec, self._pass)

    def _train(self, spec: LayerSpec) -> None:
        """Train, measure and commit a layer, tile by tile. Epochs of an earlier process come from its progress."""
        self._frozen.forget()
        if self._accelerator is not None:  # what it has reserved for other layers would be in the way of this one
            self._workspace.clear()
            self._transfer.release()
            self._accelerator.release_unused(self._device)
        start_s = time.perf_counter()
        start_epoch = self._saver.take_epochs(spec.index)
        self._held_out.begin_layer(self._saver.validation_errors if start_epoch else [])
        num_finished = start_epoch // spec.num_epochs
        so_far: Goodness = {}
        for number in range(num_finished):
            tile = self._frozen.load_tile(spec, number)
            so_far = self._frozen.add_tile(spec, tile, so_far, self._caches.lasting)
        num_samples, training_s, last = 0, 0.0, len(self._tiles_of(spec)) - 1
        for number in range(num_finished, last + 1):
            trained = self._train_tile(spec, number, start_epoch, so_far)
            start_epoch = (number + 1) * spec.num_epochs
            if trained.layer.has_statistics:
                self._workspace.clear()  # frees the buffers of training steps, as for handing on
                cache, before = self._caches.current[TRAIN], self._store.statistics.get(spec.index)
                statistics = settle(self._transfer, trained.layer, spec, cache, before)
                if not self._pass.is_last:
                    self._store.statistics[spec.index] = statistics
            num_samples += sum(figures.num_samples for figures in trained.epochs)
            training_s += sum(figures.elapsed_s for figures in trained.epochs)
            if number < last:
                tile = trained.layer
                self._commits.add(partial(self._directory.write_tile, spec.index, number, start_epoch, tile))
                so_far = self._frozen.add_tile(spec, tile, so_far, self._caches.lasting)
                del tile, trained  # so that its memory is free before the next one is made
        samples_per_s = num_samples / max(training_s, _LEAST_S) / (last + 1)
        course = Course(trained.epochs[-1], time.perf_counter() - start_s, self._stopwatch.take())
        course = self._store.add_course(spec.index, course)
        if self._pass.is_last:
            self._commit_layer(spec, trained, samples_per_s, course)
        if last == 0:
            self._frozen.keep(spec, trained.layer)
        if TRAIN not in self._caches.lasting:
            self._caches.current.pop(TRAIN).drop()

    def _commit_layer(self, spec: LayerSpec, trained: _Trained, samples_per_s: float, course: Course) -> None:
        """Commit a layer, or what it is after a round. If it has several tiles, the last one was trained last."""
        tiles, figures, goodness = self._tiles_of(spec), course.figures, trained.goodness
        error, error_to_here = self._held_out.add_layer(goodness) if goodness is not None else (None, None)
        summary = LayerFigures(
            layer=spec.index + 1,
            **figures.means,
            validation_error=error,
            validation_error_to_here=error_to_here,
            samples_per_s=samples_per_s,
            elapsed_s=course.elapsed_s,
            peak_memory_bytes=peak_memory_bytes(self._device),
            cache_tier=self._caches.tier,
        )
        record: dict[str, Any] = {"kind": "layer"} | summary.to_mapping()
        if self._pass.round:  # in which a layer takes one epoch
            record = {"kind": "epoch", "layer": spec.index + 1, "epoch": self._pass.round, "validation_error": error}
            record |= {"validation_error_to_here": error_to_here} | dataclasses.asdict(figures)
            if self._cycle is not None and self._config.schedule.is_stream:
                record |= {"error_before": self._cycle.errors[0] if self._cycle.errors else None}
        self._metrics.append(record | {"seconds": course.seconds})
        self._transfer.finish()  # what the layer depends on must be durable first
        self._commits.add(
            lambda seal: self._directory.write_layer(
                *(spec.index, trained.layer, goodness, summary.to_mapping(), seal, len(tiles), trained.begun)
            )
        )
        if self._pass.round:
            self._transfer.commit(partial(self._directory.remove_rounds, spec.index + 1))
        if not self._pass.round:
            self._observer.on_layer(summary)
        silent = find_silent(summary)
        if silent is not None and not self._has_said_silent:
            self._has_said_silent = True
            self._observer.on_warning(silent)
        elif spec.index + 1 == len(self._specs) and not self._has_said_silent and self._is_last_pass():
            self._judge()

    def _is_last_pass(self) -> bool:
        return self._cycle is None or self._find_following(self._cycle.add_error(self._held_out.error_to_here)) is None

    def _judge(self) -> None:
        """Warn of what the predictions of the finished network for validation images say of the data."""
        if self._judgement is not None:
            for found in self._judgement.judge(self._held_out.scores, self._class_names):
                self._observer.on_warning(found)

    def _train_tile(self, spec: LayerSpec, number: int, start_epoch: int, so_far: Goodness) -> _Trained:
        """Train a tile for the epochs of this pass. The epochs of a layer are counted through its tiles."""
        trainer: LayerTrainer | None = None
        taken, fresh = [], TRAIN not in self._caches.lasting
        schedule = self._find_schedule(spec)
        for epoch in self._pass.list_epochs(spec.num_epochs, number):
            if epoch < start_epoch:
                continue
            if epoch - number * spec.num_epochs >= schedule.start + schedule.num_epochs:
                break
            beside = so_far
            if fresh:
                trainer = None  # frees the device for the layers below
                with self._stopwatch.lap("writing images"):
                    self._write_fresh_input(spec, epoch)
                beside = so_far | self._frozen.measure_tiles(spec, number)
            part: EpochPart | None = None
            if trainer is None:
                trainer = self._make_trainer(spec, number)
                part = self._saver.restore(trainer, spec, epoch, self._caches.current[TRAIN])
            trainer.schedule = schedule
            figures, goodness = self._take_epoch(spec, trainer, epoch, beside, part)
            schedule = self._find_schedule(spec)
            taken.append(figures)
            del beside  # so that its memory is free before it is measured again
        assert trainer is not None, "a tile that has taken all its epochs is finished"
        begun = None
        if self._pass.round:  # before the optimiser is freed
            self._commits.await_last()
            with self._stopwatch.lap("saving"):
                self._store.put(spec.index, self._pass.window, trainer)
                if self._pass.is_last:
                    begun = self._directory.write_optimiser(spec.index, trainer.optimiser)
        return _Trained(trainer.layer, taken, goodness, begun)

    def _find_schedule(self, spec: LayerSpec) -> RateSchedule:
        """The learning rate of the layer in training: in rounds, that of all layers."""
        settings = self._config.optimiser
        if self._cycle is not None:
            return self._cycle.find_schedule(settings)
        return self._held_out.find_schedule(spec, settings)

    def _make_trainer(self, spec: LayerSpec, number: int) -> LayerTrainer:
        """The trainer of a new tile."""
        units = self._tiles_of(spec)[number]
        layer = self._blueprint.build_layer(spec, units)
        layer.workspace = self._workspace
        return LayerTrainer(layer, spec.index, self._blueprint, self._device, units)

    def _write_fresh_input(self, spec: LayerSpec, epoch: int) -> None:
        """Replace what the layer read in the last epoch by freshly augmented images, put through the layers below."""
        self._observer.on_step(f"writing augmented images for epoch {epoch + 1} of layer {spec.index + 1}")
        self._transfer.finish()  # so that the progress, from which the layer is loaded again, is durable
        self._workspace.clear()
        self._inputs.write_fresh(spec, epoch, partial(self._frozen.move, TRAIN))
        self._frozen.forget()

    def _take_epoch(
        self, spec: LayerSpec, trainer: LayerTrainer, epoch: int, so_far: Goodness, part: EpochPart | None
    ) -> tuple[EpochFigures, Tensor | None]:
        """Train for one epoch, or what is left of it behind `part`, measure, and save the progress."""
        number, schedule = spec.index + 1, trainer.schedule
        num_epochs = schedule.start + schedule.num_epochs * len(self._tiles_of(spec))
        visit, num_visits = self._pass.window.count_before(epoch) + 1, num_epochs * self._pass.window.num

        def on_tick(figures: EpochFigures) -> None:
            check_interrupts()
            self._observer.on_tick(number, visit, num_visits, figures)

        def on_part(describe: Callable[[], EpochPart]) -> None:
            if self._saver.is_due():
                self._saver.save(spec, epoch, trainer, describe())

        cache, labels = self._caches.current[TRAIN], self._passing_labels
        with self._stopwatch.lap("training"):
            figures = trainer.train_epoch(
                *(self._transfer, cache, labels, epoch, on_tick, so_far.get(TRAIN), part),
                *(on_part if self._pass.window.num == 1 else None, self._pass.window),
            )
        held_out = self._caches.current.keys() & {VALIDATION}
        goodness = self._frozen.add_tile(spec, trainer.layer, so_far, held_out).get(VALIDATION)
        error = self._held_out.add_epoch(goodness) if goodness is not None else None
        if not self._pass.round:  # else the layer is committed next, with the figures of the epoch
            self._end_epoch(spec, trainer, epoch, figures, error)
        self._observer.on_epoch(number, visit, num_visits, figures, error)
        return figures, goodness

    def _end_epoch(
        self, spec: LayerSpec, trainer: LayerTrainer, epoch: int, figures: EpochFigures, error: float | None
    ) -> None:
        """Record an epoch of a sequential run, and save the progress."""
        number = spec.index + 1
        record = {"kind": "epoch", "layer": number, "epoch": epoch + 1, "validation_error": error}
        self._metrics.append(record | dataclasses.asdict(figures))
        schedule = self._find_schedule(spec)
        is_last = (epoch + 1) % spec.num_epochs % schedule.num_epochs == 0  # the tile or the layer is committed next
        if is_last and schedule.num_epochs < spec.num_epochs:
            self._observer.on_early_end(number, schedule.num_epochs, spec.num_epochs)
        is_loaded_next = TRAIN not in self._caches.lasting  # as images are put through the layers below first
        if not is_last and (is_loaded_next or self._saver.is_due_after_epoch()):
            self._saver.save(spec, epoch + 1, trainer)

    def _propagate(self, spec: LayerSpec) -> None:
        """Move the caches through the layer: the input of the next layer replaces the input of this one."""
        self._frozen.take(spec)
        self._workspace.clear()  # frees the buffers of training steps, to make room for the slots of written shards
        for name, source in list(self._caches.current.items()):
            self._caches.current[name] = self._frozen.move(name, source, spec)
