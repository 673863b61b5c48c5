"""The network as a list of layer specifications, from which one layer is built at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.field.goodness import GOODNESSES
from ffstream.field.layers import LAYER_KINDS, Layer
from ffstream.field.normalisation import length_normalise, length_normalise_
from ffstream.settings.config import Config


@dataclass(frozen=True)
class LayerSpec:
    """The shape of one layer."""

    index: int
    place: int  # position in its stack, from 0; the layer at position 0 reads images
    hands_on: bool  # whether a further layer of its stack reads its output
    in_features: int  # of a row that the layer reads
    num_units: int
    out_features: int  # of a row that the layer hands on
    num_skip_features: int  # trailing features of a row that hold the normalised image, unless the row is an image
    image_shape: tuple[int, ...] | None = None  # None if it is not known

    @property
    def stack_start(self) -> int:
        """Index of the first layer of its stack."""
        return self.index - self.place

    @property
    def num_image_features(self) -> int:
        """How many trailing features of the row are the image, an overlaid label included."""
        return self.num_skip_features if self.place else self.in_features


def compute_layer_specs(config: Config, num_features: int, image_shape: Sequence[int] | None = None) -> list[LayerSpec]:
    """Shapes of all layers, for images of `num_features` features."""
    shape = tuple(image_shape) if image_shape is not None else None
    num_skip = num_features if config.network.input_skip else 0
    out_features, num_in_stack = config.width + num_skip, count_in_stack(config)
    specs = []
    for index in range(config.layers):
        place = index % num_in_stack
        hands_on = index + 1 < config.layers and place + 1 < num_in_stack
        in_features = out_features if place else num_features
        specs.append(LayerSpec(index, place, hands_on, in_features, config.width, out_features, num_skip, shape))
    return specs


def count_in_stack(config: Config) -> int:
    """How many layers a stack has; the last stack may have fewer."""
    return config.network.stack_layers or config.layers


def count_distinct(config: Config) -> int:
    """How many layers of a stack differ in shape, or in what they find in memory.

    The last of them stands for all layers after it.
    """
    return min(config.layers, count_in_stack(config), LAYER_KINDS.of(config).num_distinct)


def find_untileable(config: Config) -> str | None:
    """What keeps layers of this configuration from being cut into tiles, and what to do; None if nothing does."""
    if not LAYER_KINDS.of(config).tileable:
        return f"layers of kind {config.network.kind!r} cannot be cut into tiles; leave tile_units out"
    if GOODNESSES.of(config).over_units is None:
        return (
            f"goodness {config.objective.goodness!r} does not say by over_units whether it is a sum or a mean over "
            "units; set that, or leave tile_units out"
        )
    return None


def hand_on(layer: Layer, spec: LayerSpec, rows: Tensor, preactivations: Tensor) -> Tensor:
    """What the next layer reads: (n, in_features), (n, num_units) -> (n, out_features).

    These are the normalised, label-free activities and, with an input skip, the normalised image at the end of `rows`.
    If the layer has a workspace, `preactivations` is overwritten.
    """
    if layer.workspace is None:
        activities = length_normalise(layer.activate(preactivations))
    else:
        activities = length_normalise_(layer.activate_(preactivations), layer.workspace)
    if spec.num_skip_features == 0:
        return activities
    return torch.cat([activities, rows[:, -spec.num_skip_features :].to(activities.dtype)], dim=1)
