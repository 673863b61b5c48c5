"""Prediction by goodness, streamed: the label whose summed goodness, plain or weighted, is largest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ffstream.cache import CacheLayout
from ffstream.data import Split
from ffstream.data.facts import DataFacts
from ffstream.data.image_access import Images, ReadAhead
from ffstream.errors import CorruptFileError
from ffstream.field.goodness import Goodness
from ffstream.field.labels import Reading
from ffstream.infer.chance import count_confusion
from ffstream.infer.combination import (
    Combination,
    ProbabilityFigures,
    fit_temperature,
    fit_weights,
    is_counted,
    measure_probabilities,
    plain_sum,
)
from ffstream.infer.committed import CommittedLayers
from ffstream.infer.frozen import Stage, stream_committed_layers
from ffstream.settings.config import Config
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.propagation import measure_goodness


@dataclass(frozen=True)
class Evaluation:
    """Errors of a run on one split, as shares in [0, 1], and how far its probabilities can be trusted."""

    method: str  # goodness, fitted or softmax
    split: str
    num_samples: int
    error: float
    first_depth: int  # of the first entry of errors_by_depth, from 1
    errors_by_depth: list[float]  # of the readout over the layers up to each depth
    layer_errors: list[float]  # of each layer's own goodness; empty for softmax
    class_names: list[str]
    confusion: list[list[int]]  # numbers of samples: true classes in rows, predicted classes in columns
    combination: Combination | None  # for calibrated probabilities; None without a validation split, or for softmax
    calibrated: ProbabilityFigures | None  # None in the same cases
    uncalibrated: ProbabilityFigures  # at the temperature of the training objective; for softmax, the readout's own
    warning: str | None = None  # such as that images seem to be in other units than the training images
    # (n, C), of which the largest is that of the predicted class; they are not among the plain values.
    scores: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        method: str,
        split_name: str,
        labels: Tensor,
        facts: DataFacts,
        *,
        first_depth: int,
        errors_by_depth: list[float],
        layer_errors: list[float],
        uncalibrated_logits: Tensor,
        combination: Combination | None = None,
        logits: Tensor | None = None,
        warning: str | None = None,
    ) -> Evaluation:
        """Make an evaluation of errors and logits (n, C); `logits` are those of the combination, if there is one."""
        decisive = uncalibrated_logits if logits is None else logits
        return cls(
            method=method,
            split=split_name,
            num_samples=len(labels),
            error=errors_by_depth[-1],
            first_depth=first_depth,
            errors_by_depth=errors_by_depth,
            layer_errors=layer_errors,
            class_names=list(facts.class_names),
            confusion=count_confusion(decisive.argmax(dim=1), labels, facts.num_classes),
            combination=combination,
            calibrated=None if logits is None else measure_probabilities(logits, labels),
            uncalibrated=measure_probabilities(uncalibrated_logits, labels),
            warning=warning,
            scores=decisive,
        )

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        found = asdict(replace(self, scores=None))
        del found["scores"]
        return found


class LabelSweep:
    """Sums goodness (n, C) over layers and counts errors. Layers below `first_layer` (from 1) of a stack are left out.

    Until there is a layer that counts, the newest one stands in for the sum.
    """

    def __init__(self, labels: Tensor, first_layer: int = 2, stack_layers: int = 0) -> None:
        self._labels = labels
        self._first_layer, self._stack_layers = first_layer, stack_layers
        self._depth = 0
        self._total: Tensor | None = None
        self.sum = torch.empty(0)  # (n, C), of which the error so far is: the sum, or what stands in for it

    def add(self, goodness: Tensor) -> tuple[float, float]:
        """Add the next layer's goodness. Returns (error of this layer alone, error of the sum so far)."""
        self._depth += 1
        if is_counted(self._depth - 1, self._first_layer, self._stack_layers):
            self._total = goodness if self._total is None else self._total + goodness
        self.sum = goodness if self._total is None else self._total
        return self._error(goodness), self._error(self.sum)

    def _error(self, goodness: Tensor) -> float:
        return error_rate(goodness, self._labels)


def error_rate(scores: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest score (n, C) is not that of their label (n,)."""
    return float((scores.argmax(dim=1) != labels).double().mean())


def evaluate_goodness(
    layers: CommittedLayers,
    split_name: str,
    split: Split,
    first_layer: int = 2,
    on_layer: Callable[[], None] = lambda: None,
    validation_labels: Tensor | None = None,
) -> Evaluation:
    """Label sweep over `split` with the committed layers. Raises RunError when there are none.

    `on_layer` is called after each layer. Probabilities are calibrated where `validation_labels` are given.
    """
    num_layers, config = layers.count_usable(first_layer), layers.config
    sweep = LabelSweep(split.labels, first_layer, config.network.stack_layers)
    errors = []
    for goodness in stream_goodness(layers, num_layers, split.images):
        errors.append(sweep.add(goodness))
        on_layer()
    calibrated = None
    if validation_labels is not None:
        calibrated = calibrate(layers, num_layers, validation_labels, first_layer)
    total = sweep.sum.double()
    layer_errors, errors_by_depth = ([error[part] for error in errors] for part in (0, 1))
    return Evaluation.of(
        "goodness",
        split_name,
        split.labels,
        layers.facts,
        first_depth=1,
        errors_by_depth=errors_by_depth,
        layer_errors=layer_errors,
        uncalibrated_logits=total / objective_temperature(config),
        combination=calibrated,
        logits=None if calibrated is None else total / calibrated.temperature,
    )


def evaluate_fitted(
    layers: CommittedLayers, split_name: str, split: Split, validation_labels: Tensor, first_layer: int = 2
) -> Evaluation:
    """The same with layer weights that are fitted to the validation goodness, anew for the layers to each depth.

    The strength of the ridge is chosen once, with all layers.
    """
    num_layers, config = layers.count_usable(first_layer), layers.config
    held_out = list(read_validation_goodness(layers.directory, num_layers))
    num_in_stack = config.network.stack_layers
    combination = fit_weights(held_out, validation_labels, first_layer, None, num_in_stack)
    goodness = list(stream_goodness(layers, num_layers, split.images))
    errors_by_depth = []
    for depth in range(1, num_layers + 1):
        fitted = combination
        if depth < num_layers:
            fitted = fit_weights(held_out[:depth], validation_labels, first_layer, combination.ridge, num_in_stack)
        logits = fitted.logits(goodness[:depth])
        errors_by_depth.append(error_rate(logits, split.labels))
    plain = plain_sum(num_layers, first_layer, objective_temperature(config), config.network.stack_layers)
    return Evaluation.of(
        "fitted",
        split_name,
        split.labels,
        layers.facts,
        first_depth=1,
        errors_by_depth=errors_by_depth,
        layer_errors=[error_rate(layer, split.labels) for layer in goodness],
        uncalibrated_logits=plain.logits(goodness),
        combination=combination,
        logits=logits,
    )


def objective_temperature(config: Config) -> float:
    """The temperature at which goodness was trained, for probabilities that nothing calibrates."""
    return 1.0 / config.objective.scale


def read_validation_goodness(directory: RunDirectory, num_layers: int) -> Iterator[Tensor]:
    """The validation goodness that is committed with each layer, (n, C). Raises CorruptFileError if it is missing."""
    shape: tuple[int, ...] | None = None
    for index in range(num_layers):
        goodness = directory.load_validation_goodness(index)
        if goodness is None or (shape is not None and goodness.shape != shape):
            found = "no validation goodness" if goodness is None else f"goodness of shape {tuple(goodness.shape)}"
            raise CorruptFileError(
                f"run {directory.path}: layer {index + 1} has {found}, allowed that of all validation samples; restore "
                f"{directory.layer_folder(index)} from a copy"
            )
        shape = goodness.shape
        yield goodness


def calibrate(layers: CommittedLayers, num_layers: int, labels: Tensor, first_layer: int = 2) -> Combination:
    """The plain sum with the temperature that fits the committed validation goodness, whose labels are `labels`."""
    temperature, num_in_stack = objective_temperature(layers.config), layers.config.network.stack_layers
    plain = plain_sum(num_layers, first_layer, temperature, num_in_stack)
    return fit_temperature(plain, read_validation_goodness(layers.directory, num_layers), labels)


def stream_goodness(layers: CommittedLayers, num_layers: int, images: Images) -> Iterator[Tensor]:
    """Goodness of all labels in each of the first layers, (n, C) on the host, one layer on the device at a time."""
    blueprint, scaling = layers.blueprint(num_layers), layers.facts.scaling
    rows, dtype = blueprint.method.rows, blueprint.config.cache.dtype
    num_features, num_in_shard = blueprint.data.num_features, blueprint.sizes.shard_samples
    layout = CacheLayout(len(images), rows.num_sweep_rows, num_features, dtype, num_in_shard)
    ahead = ReadAhead(images)
    source = (layout, lambda part: rows.sweep_rows(scaling.apply(ahead.read(part.start, part.stop))))
    for stage in stream_committed_layers(layers.directory, blueprint, [source], layers.device, outputs=False):
        yield _sum_tiles(stage, blueprint.method.reading, blueprint.goodness)


def _sum_tiles(stage: Stage, reading: Reading, goodness: Goodness) -> Tensor:
    """A layer's goodness of all labels, (num_samples, num_classes), summed over its tiles, one at a time."""
    total: Tensor | None = None
    for _, tile in stage.layer:
        spec = stage.layer.spec
        found = measure_goodness(stage.transfer, tile, spec, stage.caches[0], reading, goodness, spec.num_units)
        total = found if total is None else total.add_(found)
    assert total is not None, "a layer has a tile"
    return total
