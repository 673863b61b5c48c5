"""Prediction by goodness, streamed: the label whose summed goodness is largest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ffstream.cache import CacheLayout
from ffstream.checkpoint import RunDirectory
from ffstream.config import Config
from ffstream.data import Split, scale_images
from ffstream.errors import RunError
from ffstream.frozen import Stage, stream_committed_layers
from ffstream.goodness import GOODNESSES, Goodness
from ffstream.labels import LabelMethod, make_label_method
from ffstream.network import compute_layer_specs
from ffstream.propagation import measure_goodness


@dataclass(frozen=True)
class Evaluation:
    """Errors of a run on one split, as shares in [0, 1]."""

    method: str  # goodness or softmax
    split: str
    num_samples: int
    error: float
    first_depth: int  # of errors_by_depth, from 1
    errors_by_depth: list[float]  # of the readout over the layers up to each depth
    layer_errors: list[float]  # of each layer's own goodness; empty for softmax

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class LabelSweep:
    """Sums goodness (n, C) over layers and counts errors. Layers below `first_layer` (from 1) are left out.

    Hinton 2022, section 3.3, leaves out the first. While no counted layer is there, the newest one stands in.
    """

    def __init__(self, labels: Tensor, first_layer: int = 2) -> None:
        self._labels = labels
        self._first_layer = first_layer
        self._depth = 0
        self._total: Tensor | None = None

    def add(self, goodness: Tensor) -> tuple[float, float]:
        """Add the next layer's goodness. Returns (error of this layer alone, error of the sum so far)."""
        self._depth += 1
        if self._depth >= self._first_layer:
            self._total = goodness if self._total is None else self._total + goodness
        return self._error(goodness), self._error(goodness if self._total is None else self._total)

    def _error(self, goodness: Tensor) -> float:
        return error_rate(goodness, self._labels)


def error_rate(scores: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest score (n, C) is not that of their label (n,)."""
    return float((scores.argmax(dim=1) != labels).double().mean())


def evaluate_goodness(
    directory: RunDirectory,
    config: Config,
    split_name: str,
    split: Split,
    data: dict[str, Any],
    device: torch.device,
    first_layer: int = 2,
    on_layer: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Label sweep over `split` with the committed layers. Raises RunError when there are none.

    `on_layer` is called after each layer.
    """
    num_layers = directory.count_layers()
    if num_layers == 0:
        raise RunError(f"run {directory.path}: no layer is finished yet; resume it first")
    if first_layer > num_layers and num_layers > 1:
        raise RunError(f"run {directory.path}: has {num_layers} layers, allowed first layer 1 to {num_layers}")
    num_features, num_classes = data["num_features"], data["num_classes"]
    method = make_label_method(config, num_classes, num_features)
    specs = compute_layer_specs(config, num_features)[:num_layers]
    layout = CacheLayout(len(split), method.num_sweep_rows, num_features, config.cache.dtype, config.cache.num_in_shard)
    sweep = LabelSweep(split.labels, first_layer)
    goodness = GOODNESSES[config.objective.goodness]
    errors = []
    for stage in stream_committed_layers(
        directory,
        config,
        specs,
        num_classes,
        [(layout, lambda part: method.sweep_rows(scale_images(split.images[part], data["scale"])))],
        device,
        outputs=False,
    ):
        errors.append(sweep.add(_sum_tiles(stage, method, goodness)))
        on_layer()
    errors_by_depth = [to_here for _, to_here in errors]
    return Evaluation(
        "goodness", split_name, len(split), errors_by_depth[-1], 1, errors_by_depth, [alone for alone, _ in errors]
    )


def _sum_tiles(stage: Stage, method: LabelMethod, goodness: Goodness) -> Tensor:
    """Goodness of all labels of a layer, (num_samples, num_classes), a tile at a time."""
    total: Tensor | None = None
    for _, tile in stage.layer:
        num_units = stage.layer.spec.num_units
        found = measure_goodness(stage.transfer, tile, stage.caches[0], method, goodness, num_units)
        total = found if total is None else total.add_(found)
    assert total is not None, "a layer has a tile"
    return total
