"""Executes a schedule, with one layer on the device, its input in the cache and all finished layers on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from ffstream.cache import ActivationCache
from ffstream.cache.transfer import Transfer
from ffstream.data import Split
from ffstream.data.augmentation import Augmentation
from ffstream.data.facts import DataFacts
from ffstream.device.accelerator import find_accelerator
from ffstream.device.ledger import PAPER
from ffstream.device.memory import peak_memory_bytes, unpinned_reason
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Layer
from ffstream.field.network import LayerSpec, count_in_stack
from ffstream.ground.interrupts import check_interrupts
from ffstream.infer.frozen import load_committed
from ffstream.plan.plan import Plan
from ffstream.run.cache_set import TRAIN, VALIDATION, CacheSet
from ffstream.run.commits import Commits
from ffstream.run.held_out import HeldOut
from ffstream.run.judgement import Judgement
from ffstream.run.progress_saver import ProgressSaver
from ffstream.run.run import read_layer_figures
from ffstream.run.schedule import Action, remaining_steps
from ffstream.storage.epoch_part import EpochPart
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.epoch_figures import EpochFigures
from ffstream.training.input_rows import InputRows
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.observer import LayerFigures, Observer, RunOutline
from ffstream.training.propagation import FrozenLayer, measure_goodness, propagate, settle, write_rows
from ffstream.training.silence import find_silent

# Under which name the time of an action is counted that no lap within it counts. In training, that time goes to
# measuring goodness and making layers.
_NOUNS = {Action.WRITE_INPUT: "writing images", Action.TRAIN: "measuring", Action.PROPAGATE: "handing on"}

_LEAST_S = 1e-9  # lower limit of a measured time, should the clock show none

_Goodness = dict[str, Tensor]  # by split: (samples, labels or candidates), on the host


class Runner:
    """Carries out the plan of one run, whose lock this process holds."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: Plan,
        facts: DataFacts,
        splits: dict[str, Split],
        device: torch.device,
        observer: Observer,
        judgement: Judgement | None,  # of a validation split of which labels are predicted
    ) -> None:
        self._directory, self._plan, self._observer, self._judgement = directory, plan, observer, judgement
        self._config = config = plan.config
        names = [name for name in (TRAIN, VALIDATION) if name in splits]
        self._splits = {name: splits[name] for name in names}  # until no more caches are written from them
        self._num_in_stack = count_in_stack(config)
        self._labels = {name: splits[name].labels for name in names}
        self._scaling, self._class_names = facts.scaling, facts.class_names
        self._device, self._accelerator = device, find_accelerator(device)
        num_samples = {name: len(labels) for name, labels in self._labels.items()}
        self._blueprint = blueprint = Blueprint.of(config, facts.shape(num_samples))
        self._method, self._goodness, self._specs = blueprint.method, blueprint.goodness, blueprint.specs
        self._metrics = directory.metrics
        self._caches = CacheSet(directory, blueprint, facts.digest, plan.tier, device)
        self._transfer = Transfer(device, plan.max_unsynced, lambda: observer.on_warning(unpinned_reason()))
        self._stopwatch = self._transfer.stopwatch
        # Shared by all layers, so that each reuses the buffers of the last.
        self._workspace = Workspace(device, keeps_cast=plan.keeps_cast)
        self._tiles_of = blueprint.tiles_of
        self._has_said_silent = False  # whether a silent layer was warned of, as those above it are silent too
        self._resident: FrozenLayer | None = None  # the layer that is kept on the device
        self._commits = Commits(self._metrics, self._transfer)
        self._saver = ProgressSaver(directory, blueprint, self._commits)
        no_labels = torch.zeros(0, dtype=torch.int64)
        targets = self._method.rows.targets(self._labels[VALIDATION]) if VALIDATION in names else no_labels
        self._held_out = HeldOut(targets, config.network.stack_layers)

    def run(self) -> None:
        """Execute the steps that are missing."""
        num_done = self._directory.count_layers()
        self._saver.rewind(num_done, self._metrics)
        if VALIDATION in self._labels:
            self._held_out.replay(self._directory, num_done)
        cached_inputs = self._caches.open_committed(num_done, num_done - num_done % self._num_in_stack)
        self._observer.on_start(self._describe(num_done))
        actions: dict[Action, Callable[[LayerSpec], None]] = {
            Action.WRITE_INPUT: self._write_input,
            Action.TRAIN: self._train,
            Action.PROPAGATE: self._propagate,
        }
        with (
            contextlib.closing(self._metrics),
            self._transfer,
        ):  # on leaving, even by an error, it commits what was handed to it
            steps = remaining_steps(len(self._specs), self._num_in_stack, num_done, cached_inputs)
            num_writes = sum(step.action is Action.WRITE_INPUT for step in steps)
            for step in steps:
                if step.action is Action.WRITE_INPUT:
                    num_writes -= 1
                elif not num_writes:
                    for name in self._caches.lasting:
                        self._splits.pop(name, None)
                self._observer.on_step(step.description)
                with self._stopwatch.lap(_NOUNS[step.action]):
                    actions[step.action](self._specs[step.layer])
        self._caches.drop_all()
        self._directory.drop_progress()
        self._observer.on_finish(read_layer_figures(self._directory))

    def _describe(self, num_done: int) -> RunOutline:
        needed = self._plan.device
        apart = sum(needed.terms.get(name, 0) for name in ("cache", "context"))
        return RunOutline(
            path=str(self._directory.path),
            num_layers=len(self._specs),
            num_done=num_done,
            num_epochs_saved=self._saver.count_epochs(num_done),
            num_in_stack=self._config.network.stack_layers,
            num_samples=len(self._labels[TRAIN]),
            num_tiles=max(len(self._tiles_of(spec)) for spec in self._blueprint.distinct),
            num_epochs=tuple(spec.num_epochs for spec in self._specs),
            is_labelled=self._config.labels.method != "none",
            device_type=self._device.type,
            planned_bytes=needed.num_bytes - apart - needed.terms.get("allocator", 0),
            allowed_bytes=needed.allowed_bytes - apart,
        )

    # --- the three actions

    def _write_input(self, spec: LayerSpec) -> None:
        """Write the input caches of a stack from the data set.

        Overlay, scale and views are decided here: later caches of these splits in the stack do not read the data set.
        The caches of the previous stack are removed first. Held-out rows are the same for every stack, because the
        goodness of all stacks is summed.
        """
        self._resident = None
        self._workspace.clear()
        caches, seed, augmentation = self._caches.current, self._config.seed, Augmentation(self._config.augmentation)
        for name in list(caches):
            self._transfer.commit(caches.pop(name).drop)
        self._transfer.finish()
        self._transfer.release()
        for name in self._caches.lasting:
            caches[name] = self._caches.make(spec.index, name)
            rows = self._make_rows(name, spec)
            for view in range(caches[name].layout.num_views):
                draws = augmentation.draw_view(len(self._labels[name]), view, seed, spec.index) if view else None
                write_rows(self._transfer, caches[name], rows.make(augmentation, draws), view)

    def _train(self, spec: LayerSpec) -> None:
        """Train, measure and commit a layer, tile by tile. Epochs of an earlier process come from its progress."""
        self._resident = None
        if self._accelerator is not None:  # what it has reserved for other layers would be in the way of this one
            self._workspace.clear()
            self._transfer.release()
            self._accelerator.release_unused(self._device)
        start_s = time.perf_counter()
        start_epoch = self._saver.take_epochs(spec.index)
        self._held_out.begin_layer(self._saver.validation_errors if start_epoch else [])
        num_finished = start_epoch // spec.num_epochs
        so_far: _Goodness = {}
        for number in range(num_finished):
            so_far = self._add_tile(spec, self._load_tile(spec, number), so_far, self._caches.lasting)
        num_samples, training_s, last = 0, 0.0, len(self._tiles_of(spec)) - 1
        for number in range(num_finished, last + 1):
            layer, epochs, goodness = self._train_tile(spec, number, start_epoch, so_far)
            start_epoch = (number + 1) * spec.num_epochs
            if layer.has_statistics:
                self._workspace.clear()  # frees the buffers of training steps, as for handing on
                settle(self._transfer, layer, spec, self._caches.current[TRAIN])
            num_samples += sum(figures.num_samples for figures in epochs)
            training_s += sum(figures.elapsed_s for figures in epochs)
            if number < last:
                self._commits.add(partial(self._directory.write_tile, spec.index, number, start_epoch, layer))
                so_far = self._add_tile(spec, layer, so_far, self._caches.lasting)
                del layer  # so that its memory is free before the next one is made
        samples_per_s = num_samples / max(training_s, _LEAST_S) / (last + 1)
        self._commit_layer(spec, layer, epochs[-1], goodness, samples_per_s, time.perf_counter() - start_s)
        if TRAIN not in self._caches.lasting:
            self._caches.current.pop(TRAIN).drop()

    def _commit_layer(
        self,
        spec: LayerSpec,
        layer: Layer,
        figures: EpochFigures,
        goodness: Tensor | None,
        samples_per_s: float,
        elapsed_s: float,
    ) -> None:
        """Commit a layer. `layer` is its last tile, or the whole layer if it has only one."""
        tiles = self._tiles_of(spec)
        error, error_to_here = self._held_out.add_layer(goodness) if goodness is not None else (None, None)
        summary = LayerFigures(
            layer=spec.index + 1,
            loss=figures.loss,
            goodness_positive=figures.goodness_positive,
            goodness_negative=figures.goodness_negative,
            separation=figures.separation,
            validation_error=error,
            validation_error_to_here=error_to_here,
            samples_per_s=samples_per_s,
            elapsed_s=elapsed_s,
            peak_memory_bytes=peak_memory_bytes(self._device),
            cache_tier=self._caches.tier,
        )
        self._metrics.append({"kind": "layer"} | summary.to_mapping() | {"seconds": self._stopwatch.take()})
        self._transfer.finish()  # what the layer depends on must be durable first
        self._commits.add(
            lambda seal: self._directory.write_layer(
                spec.index, layer, goodness, summary.to_mapping(), seal, len(tiles)
            )
        )
        if len(tiles) == 1:
            self._resident = FrozenLayer(spec, tiles, lambda _: layer)
        self._observer.on_layer(summary)
        silent = find_silent(summary)
        if silent is not None and not self._has_said_silent:
            self._has_said_silent = True
            self._observer.on_warning(silent)
        elif spec.index + 1 == len(self._specs) and not self._has_said_silent:
            self._judge()

    def _judge(self) -> None:
        """Warn of what the predictions of the finished network for validation images say of the data."""
        if self._judgement is not None:
            for found in self._judgement.judge(self._held_out.scores, self._class_names):
                self._observer.on_warning(found)

    def _train_tile(
        self, spec: LayerSpec, number: int, start_epoch: int, so_far: _Goodness
    ) -> tuple[Layer, list[EpochFigures], Tensor | None]:
        """Train a tile. Returns it, the figures of the epochs taken here, and the validation goodness at the end.

        The epochs of a layer are counted through its tiles.
        """
        trainer: LayerTrainer | None = None
        taken, fresh = [], TRAIN not in self._caches.lasting
        schedule = self._held_out.find_schedule(spec, self._config.optimiser)
        for epoch in range(start_epoch, (number + 1) * spec.num_epochs):
            if epoch - number * spec.num_epochs >= schedule.num_epochs:
                break
            beside = so_far
            if fresh:
                trainer = None  # frees the device for the layers below
                with self._stopwatch.lap("writing images"):
                    self._write_fresh_input(spec, epoch)
                beside = so_far | self._measure_tiles(spec, number)
            part: EpochPart | None = None
            if trainer is None:
                trainer = self._make_trainer(spec, number)
                part = self._saver.restore(trainer, spec, epoch, self._caches.current[TRAIN])
            trainer.schedule = schedule
            figures, goodness = self._take_epoch(spec, trainer, epoch, beside, part)
            schedule = self._held_out.find_schedule(spec, self._config.optimiser)
            taken.append(figures)
            del beside  # so that its memory is free before it is measured again
        assert trainer is not None, "a tile that has taken all its epochs is finished"
        return trainer.layer, taken, goodness

    def _make_trainer(self, spec: LayerSpec, number: int) -> LayerTrainer:
        """The trainer of a new tile."""
        units = self._tiles_of(spec)[number]
        layer = self._blueprint.build_layer(spec, units)
        layer.workspace = self._workspace
        return LayerTrainer(layer, spec.index, self._blueprint, self._device, units)

    def _write_fresh_input(self, spec: LayerSpec, epoch: int) -> None:
        """Replace what the layer read in the last epoch by freshly augmented images, put through the layers below.

        The epochs of a layer are counted through its tiles. The rows do not depend on those of the last epoch or of an
        earlier process: augmentation and wrong labels are functions of (seed, layer, epoch).
        """
        self._observer.on_step(f"writing augmented images for epoch {epoch + 1} of layer {spec.index + 1}")
        self._transfer.finish()  # so that the progress, from which the layer is loaded again, is durable
        if TRAIN in self._caches.current:
            self._caches.current.pop(TRAIN).drop()
        self._workspace.clear()
        seed, augmentation = self._config.seed, Augmentation(self._config.augmentation)
        self._caches.fresh = f"{spec.index} {epoch}"
        cache = self._caches.make(spec.stack_start, TRAIN)
        draws = augmentation.draw_fresh(len(self._labels[TRAIN]), seed, spec.index, epoch)
        write_rows(self._transfer, cache, self._make_rows(TRAIN, spec, epoch).make(augmentation, draws))
        for below in self._specs[spec.stack_start : spec.index]:
            cache = self._move(TRAIN, cache, self._take_layer(below))
        self._resident = None
        self._caches.current[TRAIN] = cache

    def _make_rows(self, name: str, spec: LayerSpec, epoch: int = 0) -> InputRows:
        """The rows of a split that the stack of a layer reads. Every stack reads the same rows of held-out images."""
        split, held_out = self._splits[name], name == VALIDATION
        start, layer = self._specs[spec.stack_start], 0 if held_out else spec.index
        hidden = None if held_out else self._blueprint.draw_hidden(start)
        seed = self._config.seed
        return InputRows(
            self._method.rows, split, self._scaling, seed, held_out=held_out, layer=layer, epoch=epoch, hidden=hidden
        )

    def _take_epoch(
        self, spec: LayerSpec, trainer: LayerTrainer, epoch: int, so_far: _Goodness, part: EpochPart | None
    ) -> tuple[EpochFigures, Tensor | None]:
        """Train for one epoch, or what is left of it behind `part`, measure, and save the progress."""
        number, num_epochs = spec.index + 1, trainer.schedule.num_epochs * len(self._tiles_of(spec))

        def on_tick(figures: EpochFigures) -> None:
            check_interrupts()
            self._observer.on_tick(number, epoch + 1, num_epochs, figures)

        def on_part(describe: Callable[[], EpochPart]) -> None:
            if self._saver.is_due():
                self._saver.save(spec, epoch, trainer, describe())

        cache, labels = self._caches.current[TRAIN], self._labels[TRAIN]
        with self._stopwatch.lap("training"):
            figures = trainer.train_epoch(
                self._transfer, cache, labels, epoch, on_tick, so_far.get(TRAIN), part, on_part
            )
        goodness = self._add_tile(spec, trainer.layer, so_far, [VALIDATION]).get(VALIDATION)
        error = self._held_out.add_epoch(goodness) if goodness is not None else None
        record = {"kind": "epoch", "layer": number, "epoch": epoch + 1, "validation_error": error}
        self._metrics.append(record | dataclasses.asdict(figures))
        schedule = self._held_out.find_schedule(spec, self._config.optimiser)
        is_last = (epoch + 1) % spec.num_epochs % schedule.num_epochs == 0  # the tile or the layer is committed next
        if is_last and schedule.num_epochs < spec.num_epochs:
            self._observer.on_early_end(number, schedule.num_epochs, spec.num_epochs)
        is_loaded_next = TRAIN not in self._caches.lasting  # as images are put through the layers below first
        if not is_last and (is_loaded_next or self._saver.is_due_after_epoch()):
            self._saver.save(spec, epoch + 1, trainer)
        self._observer.on_epoch(number, epoch + 1, num_epochs, figures, error)
        return figures, goodness

    def _propagate(self, spec: LayerSpec) -> None:
        """Move the caches through the layer: the input of the next layer replaces the input of this one."""
        layer = self._take_layer(spec)
        self._workspace.clear()  # frees the buffers of training steps, to make room for the slots of written shards
        for name, source in list(self._caches.current.items()):
            self._caches.current[name] = self._move(name, source, layer)

    # --- what they share

    def _move(self, name: str, source: ActivationCache, layer: FrozenLayer) -> ActivationCache:
        """Make the cache of what a layer hands on, which replaces the cache that it reads."""
        target = self._caches.make(layer.spec.index + 1, name)
        propagate(self._transfer, layer, source, target, move=True)
        self._transfer.commit(source.drop)
        return target

    def _take_layer(self, spec: LayerSpec) -> FrozenLayer:
        """The layer that is kept on the device if it is this one, else the committed one, loaded."""
        if self._resident is None or self._resident.spec != spec:
            self._resident = None
            self._transfer.finish()
            self._resident = load_committed(self._directory, self._blueprint, spec, self._device, self._workspace)
        return self._resident

    def _load_tile(self, spec: LayerSpec, number: int) -> Layer:
        """Load a finished tile of the layer being trained."""
        with PAPER:
            tile = self._blueprint.make_layer(spec, self._tiles_of(spec)[number])
        self._directory.load_tile(spec.index, number, tile)
        tile.to(self._device).workspace = self._workspace
        return tile

    def _measure_tiles(self, spec: LayerSpec, num_tiles: int) -> _Goodness:
        """The goodness of the first tiles on the training samples of this epoch."""
        found: _Goodness = {}
        for number in range(num_tiles):
            found = self._add_tile(spec, self._load_tile(spec, number), found, [TRAIN])
        return found

    def _add_tile(self, spec: LayerSpec, tile: Layer, so_far: _Goodness, names: Iterable[str]) -> _Goodness:
        """The goodness of the tiles so far and of one more, on those of the named splits that exist."""
        found: _Goodness = {}
        for name in self._labels.keys() & names:
            in_tile = self._tiles_of(spec)[0].stop * spec.units.num_places
            averaged = in_tile if name == TRAIN else spec.num_units  # as the trainer does
            cache = self._caches.current[name]
            found[name] = measure_goodness(
                self._transfer, tile, spec, cache, self._method.reading, self._goodness, averaged
            )
            if name in so_far:
                found[name] += so_far[name]
        return found
