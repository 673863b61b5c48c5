"""The network as a list of layer specifications, of which one is built at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.device.workspace import Workspace
from ffstream.errors import ConfigError
from ffstream.field.goodness import GOODNESSES
from ffstream.field.labels import LABEL_METHODS
from ffstream.field.layers import LAYER_KINDS, Layer, cut_units
from ffstream.field.normalisation import length_normalise, length_normalise_
from ffstream.ground import seeding
from ffstream.settings.config import Config


@dataclass(frozen=True)
class LayerSpec:
    """The shape of one layer."""

    index: int
    place: int  # in its stack, from 0; a layer of place 0 reads images
    hands_on: bool  # to a layer of its stack
    in_features: int  # of a row that the layer reads
    num_units: int
    out_features: int  # of a row that the layer hands on
    num_skip_features: int  # trailing features, of every row that is not an image itself, that are the normalised image
    image_shape: tuple[int, ...] | None = None  # where it is known

    @property
    def stack_start(self) -> int:
        """Index of the first layer of its stack."""
        return self.index - self.place

    @property
    def num_image_features(self) -> int:
        """Trailing features of the row that are the image, label and all."""
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
    """Layers of a stack; of the last one, at most."""
    return config.network.stack_layers or config.layers


def compute_tiles(config: Config) -> list[slice]:
    """The units of a layer by tiles, in the order in which they are trained. Raises ConfigError for what has none."""
    tiles = cut_units(config.width, config.num_in_tile)
    problem = find_untileable(config) if len(tiles) > 1 else None
    if problem is not None:
        raise ConfigError(f"config network.tile_units: found {config.network.tile_units}, but {problem}")
    return tiles


def count_distinct(config: Config) -> int:
    """Of the layers of a stack: how many of them differ in shape, or in what they find in memory; the last one stands
    for all after it.
    """
    return min(config.layers, count_in_stack(config), LAYER_KINDS[config.network.kind].num_distinct)


def find_untileable(config: Config) -> str | None:
    """What keeps layers of this configuration from being cut into tiles, and what to do; None if nothing does."""
    if not LAYER_KINDS[config.network.kind].tileable:
        return f"layers of kind {config.network.kind!r} cannot be cut into tiles; leave tile_units out"
    if GOODNESSES[config.objective.goodness].over_units is None:
        return (
            f"goodness {config.objective.goodness!r} does not say by over_units whether it is a sum or a mean over "
            "units; set that, or leave tile_units out"
        )
    return None


def make_layer(config: Config, spec: LayerSpec, num_classes: int, units: slice) -> Layer:
    """Some units of a layer, or all, of undefined content; on paper, where content is assigned later."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    num_units = units.stop - units.start
    layer = LAYER_KINDS[config.network.kind](spec.in_features, num_units, dtype)
    layer.first_unit = units.start
    layer.place(spec.place, spec.image_shape, spec.num_skip_features)
    if LABEL_METHODS[config.labels.method].uses_embedding:
        layer.label_embedding = torch.nn.Parameter(torch.empty(num_classes, num_units))
    return layer


def build_layer(config: Config, spec: LayerSpec, num_classes: int, units: slice | None = None) -> Layer:
    """Some units of a layer, or all, as before training, on the CPU: a function of (config, seed, layer, units)."""
    units = units or slice(0, spec.num_units)
    layer = make_layer(config, spec, num_classes, units)
    generator = seeding.generator(config.seed, spec.index, units.start, "initialise")
    layer.initialise(generator)
    hidden = draw_hidden(config, spec, num_classes) if spec.num_image_features else None
    if hidden is not None:
        layer.hide(torch.cat([hidden.new_zeros(spec.in_features - len(hidden)), hidden]))
    if layer.label_embedding is not None:
        layer.draw_label_embedding(config.labels.embedding_std, generator)
    return layer


def draw_hidden(config: Config, spec: LayerSpec, num_classes: int) -> Tensor | None:
    """Which features of an image no layer of a stack reads: (num_image_features,) bool, of a layer that reads images.

    None for the first stack, which reads all. What stacks know of an image then differs, so that they err less alike:
    the random subspaces of Ho (1998, section 2). A label that is laid over an image is never hidden.
    """
    if not spec.stack_start or config.network.stack_features == 1:
        return None
    num_shown = num_classes if LABEL_METHODS[config.labels.method].overlays else 0
    num_drawn = max(spec.num_image_features - num_shown, 0)
    generator = seeding.generator(config.seed, spec.stack_start, 0, "hidden features")
    drawn = torch.randperm(num_drawn, generator=generator, device="cpu")
    num_read = max(round(config.network.stack_features * num_drawn), 1)
    hidden = torch.zeros(spec.num_image_features, dtype=torch.bool, device="cpu")
    hidden[num_shown + drawn[num_read:]] = True
    return hidden


def hand_on(spec: LayerSpec, rows: Tensor, preactivations: Tensor, workspace: Workspace | None = None) -> Tensor:
    """What the next layer reads: (n, in_features), (n, num_units) -> (n, out_features).

    The normalised, label-free activities and, with an input skip, the normalised image that `rows` ends in. With a
    `workspace`, `preactivations` is overwritten.
    """
    if workspace is None:
        activities = length_normalise(torch.relu(preactivations))
    else:
        activities = length_normalise_(preactivations.relu_(), workspace)
    if spec.num_skip_features == 0:
        return activities
    return torch.cat([activities, rows[:, -spec.num_skip_features :].to(activities.dtype)], dim=1)
