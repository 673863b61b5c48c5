"""Executes a schedule: one layer on the device, its input in the cache, everything finished on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ffstream import seeding
from ffstream.cache_set import TRAIN, VALIDATION, CacheSet
from ffstream.checkpoint import RunDirectory
from ffstream.config import Config
from ffstream.data import Dataset, Split, scale_images
from ffstream.errors import CorruptFileError
from ffstream.evaluate import LabelSweep
from ffstream.goodness import GOODNESSES
from ffstream.labels import make_label_method
from ffstream.layer_trainer import EpochFigures, LayerTrainer
from ffstream.layers import Layer
from ffstream.memory import peak_memory_bytes
from ffstream.metrics import MetricsFile
from ffstream.network import LayerSpec, build_layer, compute_layer_specs
from ffstream.observer import LayerFigures, Observer
from ffstream.propagation import measure_goodness, propagate, write_rows
from ffstream.run import read_layer_figures
from ffstream.schedule import Action, Step, remaining_steps
from ffstream.transfer import BlockStream


class Runner:
    """One process's work on one run, whose lock it holds and whose configuration is resolved."""

    def __init__(
        self,
        directory: RunDirectory,
        config: Config,
        dataset: Dataset,
        splits: dict[str, Split],
        device: torch.device,
        observer: Observer,
    ) -> None:
        self._directory = directory
        self._config = config
        self._splits = {name: splits[name] for name in (TRAIN, VALIDATION) if name in splits}
        self._scale = dataset.scale()
        self._num_classes = dataset.num_classes
        self._device = device
        self._observer = observer
        self._method = make_label_method(config, dataset.num_classes, dataset.num_features)
        self._specs = compute_layer_specs(config, dataset.num_features)
        self._goodness = GOODNESSES[config.objective.goodness]
        self._metrics = MetricsFile(directory.path / "metrics.jsonl")
        num_samples = {name: len(split) for name, split in self._splits.items()}
        self._caches = CacheSet(directory, config, self._specs, self._method, num_samples, dataset.num_classes, device)
        self._resident: tuple[int, Layer] | None = None  # at most one layer
        self._sweep = LabelSweep(torch.empty(0))

    def run(self) -> None:
        """Execute the steps that are missing."""
        num_done = self._directory.count_layers()
        self._rewind(num_done)
        self._replay_sweep(num_done)
        cached_inputs = self._caches.open_committed(num_done)
        self._observer.on_start(str(self._directory.path), len(self._specs), num_done, len(self._splits[TRAIN]))
        actions: dict[Action, Callable[[LayerSpec], None]] = {
            Action.WRITE_INPUT: self._write_input,
            Action.TRAIN: self._train,
            Action.PROPAGATE: self._propagate,
        }
        try:
            for step in remaining_steps(len(self._specs), num_done, cached_inputs):
                self._observer.on_step(_describe(step))
                actions[step.action](self._specs[step.layer])
        finally:
            self._caches.close()
        self._caches.drop_all()
        self._observer.on_finish(read_layer_figures(self._directory))

    # --- the three actions

    def _write_input(self, spec: LayerSpec) -> None:
        """Order, overlay and scale are decided here, once; no later cache reads the data set."""
        generator = seeding.generator(self._config.seed, 0, 0, "cached negatives")
        train = self._splits[TRAIN]

        def training_rows(part: slice) -> Tensor:
            return self._method.training_rows(
                scale_images(train.images[part], self._scale), train.labels[part], generator
            )

        def sweep_rows(part: slice) -> Tensor:
            return self._method.sweep_rows(scale_images(self._splits[VALIDATION].images[part], self._scale))

        rows_of = {TRAIN: training_rows, VALIDATION: sweep_rows}
        made = {name: self._caches.make(spec.index, name) for name in self._splits}
        for name, cache in made.items():
            with contextlib.closing(cache):  # ends its writing thread; what is written stays
                write_rows(cache, rows_of[name], self._device)
        self._caches.replace(made)

    def _train(self, spec: LayerSpec) -> None:
        """Train, measure, commit. An earlier process's epochs are taken from its progress."""
        self._resident = None
        start_s = time.perf_counter()
        layer = build_layer(self._config, spec, self._num_classes)
        trainer = LayerTrainer(layer, spec.index, self._config, self._method, self._device)
        progress = self._directory.read_progress()
        if progress is not None:
            self._directory.load_progress(layer, trainer.optimiser)
        figures, goodness, samples_per_s = self._take_epochs(spec, trainer, progress[1] if progress else 0)
        error, error_to_here = self._sweep.add(goodness) if goodness is not None else (None, None)
        summary = LayerFigures(
            layer=spec.index + 1,
            loss=figures.loss,
            goodness_positive=figures.goodness_positive,
            goodness_negative=figures.goodness_negative,
            separation=figures.separation,
            validation_error=error,
            validation_error_to_here=error_to_here,
            samples_per_s=samples_per_s,
            elapsed_s=time.perf_counter() - start_s,
            peak_memory_bytes=peak_memory_bytes(self._device),
            cache_tier=self._caches.tier,
        )
        self._metrics.append({"kind": "layer"} | summary.to_mapping())
        self._directory.commit_layer(spec.index, layer, goodness, summary.to_mapping())
        self._directory.drop_progress()
        layer.zero_grad(set_to_none=True)
        self._resident = (spec.index, layer)
        self._observer.on_layer(summary)

    def _take_epochs(
        self, spec: LayerSpec, trainer: LayerTrainer, start_epoch: int
    ) -> tuple[EpochFigures, Tensor | None, float]:
        """The last epoch's figures, the validation goodness after it, and samples a second over all taken here."""
        cache, labels = self._caches.current[TRAIN], self._splits[TRAIN].labels
        number, num_epochs = spec.index + 1, self._config.epochs
        num_samples, training_s = 0, 0.0
        with BlockStream(cache, self._device) as stream:
            for epoch in range(start_epoch, num_epochs):

                def on_tick(figures: EpochFigures, epoch: int = epoch) -> None:
                    self._observer.on_tick(number, epoch + 1, num_epochs, figures)

                figures = trainer.train_epoch(stream, cache, labels, epoch, on_tick)
                num_samples, training_s = num_samples + figures.num_samples, training_s + figures.elapsed_s
                goodness, error = self._validate(trainer.layer)
                record = {"kind": "epoch", "layer": number, "epoch": epoch + 1, "validation_error": error}
                self._metrics.append(record | dataclasses.asdict(figures))
                if epoch + 1 < num_epochs:  # after the last one the layer itself is committed
                    self._directory.commit_progress(spec.index, epoch + 1, trainer.layer, trainer.optimiser)
                self._observer.on_epoch(number, epoch + 1, num_epochs, figures, error)
        return figures, goodness, num_samples / training_s

    def _propagate(self, spec: LayerSpec) -> None:
        """Write the next layer's input. The one of this layer is dropped only when that and the layer are committed."""
        layer = self._take_layer(spec)
        following = {name: self._caches.make(spec.index + 1, name) for name in self._splits}
        for name, cache in following.items():
            with contextlib.closing(cache):  # ends its writing thread; what is written stays
                propagate(layer, spec, self._caches.current[name], cache, self._device)
        self._caches.replace(following)

    # --- what they share

    def _take_layer(self, spec: LayerSpec) -> Layer:
        """The layer on the device if it is this one, else the committed one."""
        if self._resident is None or self._resident[0] != spec.index:
            self._resident = None
            layer = build_layer(self._config, spec, self._num_classes)
            self._directory.load_layer(spec.index, layer)
            self._resident = (spec.index, layer.to(self._device))
        return self._resident[1]

    def _validate(self, layer: Layer) -> tuple[Tensor | None, float | None]:
        """Goodness of all labels on the validation split and the layer's own error there."""
        if VALIDATION not in self._splits:
            return None, None
        cache = self._caches.current[VALIDATION]
        goodness = measure_goodness(layer, cache, self._method, self._goodness, self._device)
        return goodness, LabelSweep(self._splits[VALIDATION].labels).add(goodness)[0]

    def _replay_sweep(self, num_done: int) -> None:
        """Sum the goodness of the committed layers."""
        if VALIDATION not in self._splits:
            return
        self._sweep = LabelSweep(self._splits[VALIDATION].labels)
        for index in range(num_done):
            goodness = self._directory.load_validation_goodness(index)
            assert goodness is not None, "a validation split is part of a run's identity"
            self._sweep.add(goodness)

    def _rewind(self, num_done: int) -> None:
        """Bring progress and metrics in line with what is committed."""
        progress = self._directory.read_progress()
        if progress is not None and progress[0] > num_done:
            raise CorruptFileError(
                f"run {self._directory.path}: progress is of layer {progress[0] + 1}, but only {num_done} layers "
                f"are committed; restore them from a copy, or delete {self._directory.path / 'progress'}"
            )
        if progress is not None and progress[0] < num_done:  # killed between the layer's commit and its clean-up
            self._directory.drop_progress()
            progress = None
        self._metrics.rewind(num_done, progress[1] if progress else 0)


def _describe(step: Step) -> str:
    if step.action is Action.WRITE_INPUT:
        return "writing the input cache"
    return f"{'training' if step.action is Action.TRAIN else 'propagating through'} layer {step.layer + 1}"
