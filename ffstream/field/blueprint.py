"""What is trained, described once: the configuration, the parts that it names, and the shapes of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ffstream.data.shape import DataShape
from ffstream.device.accelerator import operand_dtype
from ffstream.errors import ConfigError
from ffstream.field.goodness import GOODNESSES, Goodness
from ffstream.field.labels import LabelMethod, make_label_method
from ffstream.field.layers import LAYER_KINDS, Layer, cut_units
from ffstream.field.layers.contract import check_made
from ffstream.field.network import (
    LayerSpec,
    compute_layer_specs,
    count_in_stack,
    find_representatives,
    find_untileable,
)
from ffstream.field.objectives import OBJECTIVES, Objective
from ffstream.field.optimisers import OPTIMISERS, Optimiser
from ffstream.field.similarity import SIMILARITIES, Similarity
from ffstream.field.wiring import RowLayout
from ffstream.ground import seeding
from ffstream.settings.config import Config
from ffstream.settings.sizes import Sizes


@dataclass(frozen=True)
class Blueprint:
    """Everything that decides what a network is and how its layers learn; its sizes are numbers, never auto."""

    config: Config
    sizes: Sizes
    data: DataShape
    method: LabelMethod
    goodness: Goodness
    objective: Objective
    similarity: Similarity | None
    optimiser: Optimiser
    specs: tuple[LayerSpec, ...]

    @classmethod
    def of(cls, config: Config, data: DataShape, method: LabelMethod | None = None) -> Blueprint:
        """The blueprint of a configuration whose batch and shard sizes are decided.

        `method` is the label method of another blueprint that differs only in sizes. Raises ConfigError for an unknown
        part, and ConfigError or DataError for a part that does not fit the data.
        """
        similarity, method = config.objective.similarity, method or make_label_method(config, data)
        specs = compute_layer_specs(config, data.num_features, data.image_shape, method.reading.num_groups)
        _check_perturbation(config, specs)
        return cls(
            config=config,
            sizes=Sizes.of(config),
            data=data,
            method=method,
            goodness=GOODNESSES.of(config),
            objective=OBJECTIVES.of(config),
            similarity=None if similarity == "none" else SIMILARITIES.of(config),
            optimiser=OPTIMISERS.of(config),
            specs=tuple(specs),
        )

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the operands of matrix products."""
        return operand_dtype(self.config.precision)

    @property
    def num_cached(self) -> dict[str, int]:
        """For each split, the most samples that a cache holds: of the training samples, those of a window."""
        schedule, found = self.config.schedule, dict(self.data.num_samples)
        if "train" in found and not schedule.is_stream:
            found["train"] = -(-found["train"] // schedule.count_windows(found["train"]))
        return found

    @property
    def image_row(self) -> RowLayout:
        """The rows that are made of images, which the first layer of a stack reads."""
        return self.specs[0].row

    @cached_property
    def representatives(self) -> list[int]:
        """For each layer the index of the layer that stands for it in a plan."""
        return find_representatives(self.specs, count_in_stack(self.config))

    @property
    def distinct(self) -> list[LayerSpec]:
        """The layers that stand for all."""
        return [self.specs[index] for index in sorted(set(self.representatives))]

    def tiles_of(self, spec: LayerSpec) -> list[slice]:
        """The units, or channels, of each tile of a layer, in the order of training.

        Raises ConfigError if the layer cannot be cut.
        """
        tiles = cut_units(spec.width, self.sizes.tile_units)
        problem = find_untileable(self.config) if len(tiles) > 1 else None
        if problem is not None:
            raise ConfigError(f"config network.tile_units: found {self.sizes.tile_units}, but {problem}")
        return tiles

    def make_layer(self, spec: LayerSpec, units: slice | None = None) -> Layer:
        """A layer, or some of its units, whose parameters are undefined until they are assigned."""
        shape = spec.shape.cut(units) if units is not None else spec.shape
        layer = LAYER_KINDS[spec.kind](shape, self.compute_dtype)
        layer.is_summarised = self.method.reading.reads_summary
        layer.origin = self.config.seed, spec.index
        if self.method.reading.uses_embedding:
            num_values = self.method.reading.count_embedded(layer)
            embedding = torch.empty(self.data.num_classes, num_values, dtype=torch.float32)
            layer.label_embedding = torch.nn.Parameter(embedding)
        return layer

    def build_layer(self, spec: LayerSpec, units: slice | None = None) -> Layer:
        """A layer, or some of its units, as before training, on the CPU: a function of (config, seed, layer, units)."""
        layer = self.make_layer(spec, units)
        generator = seeding.generator(self.config.seed, spec.index, layer.first_unit, "initialise")
        before = layer.state_dict().keys()
        layer.initialise(generator)
        made = sorted(layer.state_dict().keys() - before)
        if made:  # a finished layer is read from disk, and not initialised
            raise ConfigError(
                f"layer kind {spec.kind!r}: initialise made {', '.join(made)}, allowed to fill what is there; make "
                "parameters in __init__"
            )
        check_made(layer)
        self.hide(layer, spec)
        if layer.label_embedding is not None:
            layer.draw_label_embedding(self.config.labels.embedding_std, generator)
        return layer

    def hide(self, layer: Layer, spec: LayerSpec) -> None:
        """Have a layer, or a tile of it, ignore the features of an image that its stack does not read, if any."""
        hidden = self.draw_hidden(spec) if spec.num_image_features else None
        if hidden is not None:
            sizes = {part.source: part.shape.num_features for part in spec.row.parts}
            masks = [hidden.new_zeros(1, size) if source else hidden.unsqueeze(0) for source, size in sizes.items()]
            layer.hide(spec.row.join(masks)[0].to(next(layer.parameters()).device))

    def draw_hidden(self, spec: LayerSpec) -> Tensor | None:
        """Which features of an image no layer of the stack reads: (num_image_features,) bool.

        `spec` is that of a layer that reads images. None if the stack reads all features, as the first one does. Stacks
        that see different parts of an image make less similar errors: these are the random subspaces of Ho (1998,
        section 2). A label that is written over an image is never hidden.
        """
        if not spec.stack_start or self.config.network.stack_features == 1:
            return None
        num_shown = self.data.num_classes if self.method.rows.overlays else 0
        num_drawn = max(spec.num_image_features - num_shown, 0)
        generator = seeding.generator(self.config.seed, spec.stack_start, 0, "hidden features")
        drawn = torch.randperm(num_drawn, generator=generator, device="cpu")
        num_read = max(round(self.config.network.stack_features * num_drawn), 1)
        hidden = torch.zeros(spec.num_image_features, dtype=torch.bool, device="cpu")
        hidden[num_shown + drawn[num_read:]] = True
        return hidden


def _check_perturbation(config: Config, specs: Sequence[LayerSpec]) -> None:
    """Raise ConfigError where rows would be moved by a gradient that a layer does not have."""
    if not config.objective.perturbation:
        return
    for spec in specs:
        kind = LAYER_KINDS[spec.kind]
        if not (kind.has_gradients and kind.has_input_gradient):
            raise ConfigError(
                f"config objective.perturbation: found {config.objective.perturbation:g}, allowed 0 with layers of "
                f"kind {spec.kind!r} (layer {spec.index + 1}), which have no gradient by their input; set it to 0"
            )
