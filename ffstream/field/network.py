"""The network as a list of layer specifications, from which one layer is built at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.errors import ConfigError
from ffstream.field.goodness import GOODNESSES
from ffstream.field.layers import LAYER_KINDS, Activations, Layer, LayerShape
from ffstream.settings.config import Config
from ffstream.settings.layer_list import LayerLine

_VALUES_AT_ONCE = 1 << 22  # activities of a pass through a convolution; it decides bits, as sizes of parts do


@dataclass(frozen=True)
class LayerSpec:
    """The shape of one layer, and its place in the network."""

    index: int
    hands_on: bool  # whether a further layer of its stack reads its output
    kind: str
    shape: LayerShape
    units: Activations
    handed_on: Activations  # what the next layer reads of it, without the image of an input skip
    num_epochs: int  # of each of its tiles
    learning_rate: float  # at the start

    @property
    def place(self) -> int:
        """Position in its stack, from 0; the layer at position 0 reads images."""
        return self.shape.place

    @property
    def in_features(self) -> int:
        """Features of a row that the layer reads."""
        return self.shape.in_features

    @property
    def num_units(self) -> int:
        """Units of the layer, at all places."""
        return self.units.num_features

    @property
    def width(self) -> int:
        """Units of a dense layer, channels of a convolution: what tiles are cut along."""
        return self.shape.width

    @property
    def num_skip_features(self) -> int:
        """Trailing features of a row that hold the normalised image, unless the row is an image."""
        return self.shape.num_skip_features

    @property
    def out_features(self) -> int:
        """Features of a row that the layer hands on."""
        return self.handed_on.num_features + self.num_skip_features

    def is_like(self, other: LayerSpec) -> bool:
        """Whether another layer differs from this one in nothing but its position and its learning rate."""
        is_alike = (self.kind, self.num_epochs) == (other.kind, other.num_epochs)
        return is_alike and self.shape.is_like(other.shape)

    def describe(self) -> str:
        """The shape of what the layer reads and of its units, in words."""
        if self.units.plane is None:
            return f"{self.in_features} x {self.num_units}"
        return f"{self.shape.reads} to {self.units}"

    def limit_rows(self, most: int) -> int:
        """How many of at most `most` rows are in one product of a pass: fewer where a row of units has many places."""
        if self.units.num_places == 1:
            return most
        return max(1, min(most, _VALUES_AT_ONCE // max(self.in_features, self.num_units)))

    @property
    def stack_start(self) -> int:
        """Index of the first layer of its stack."""
        return self.index - self.place

    @property
    def num_image_features(self) -> int:
        """How many trailing features of the row are the image, an overlaid label included."""
        return self.num_skip_features if self.place else self.in_features


def read_lines(config: Config) -> list[LayerLine]:
    """The layers of a configuration, one by one."""
    if config.network.layers:
        return config.list_layers()
    kind, options = config.part("network.kind")
    return [LayerLine(kind, config.width, tuple(options.items()))] * config.layers


def compute_layer_specs(
    config: Config, num_features: int, image_shape: Sequence[int] | None = None, num_groups: int = 1
) -> list[LayerSpec]:
    """Shapes of all layers, for images of `num_features` features, and classes with units of their own, if any."""
    images = Activations.of_image(num_features, image_shape)
    num_skip = num_features if config.network.input_skip else 0
    num_in_stack, specs, lines = count_in_stack(config), list[LayerSpec](), read_lines(config)
    options_of = {line: LAYER_KINDS.make_settings(line.kind, line.kind_options) for line in dict.fromkeys(lines)}
    for index, line in enumerate(lines):
        place = index % num_in_stack
        hands_on = index + 1 < config.layers and place + 1 < num_in_stack
        reads = specs[-1].handed_on if place else images
        kind = LAYER_KINDS[line.kind]
        head_layers = config.labels.head_layers if kind.takes_head else 1
        options = options_of[line]
        shape = LayerShape(reads, line.width, place, num_skip, options, head_layers, num_groups)
        try:
            units, handed_on = kind.units_of(shape), kind.handed_on_by(shape)
        except ConfigError as error:
            raise (ConfigError(f"{error} (layer {index + 1})") if config.network.layers else error) from None
        num_epochs, rate = line.num_epochs or config.epochs, line.learning_rate or config.optimiser.learning_rate
        specs.append(LayerSpec(index, hands_on, line.kind, shape, units, handed_on, num_epochs, rate))
    return specs


def find_representatives(specs: Sequence[LayerSpec], num_in_stack: int) -> list[int]:
    """For each layer the index of the first one that differs from it neither in shape nor in what it finds in memory.

    A layer of a later stack is like that of the first stack in the same position. Within a stack, a layer is like the
    one below it if two layers below have its shape, and its kind says that no earlier layer differs.
    """
    found: list[int] = []
    for spec in specs:
        if spec.index >= num_in_stack:
            found.append(found[spec.place])
            continue
        below = specs[max(spec.index - 2, 0) : spec.index]
        is_alike = spec.index >= LAYER_KINDS[spec.kind].num_distinct and all(spec.is_like(other) for other in below)
        found.append(found[-1] if is_alike else spec.index)
    return found


def count_in_stack(config: Config) -> int:
    """How many layers a stack has; the last stack may have fewer."""
    return config.network.stack_layers or config.layers


def find_untileable(config: Config) -> str | None:
    """What keeps layers of this configuration from being cut into tiles, and what to do; None if nothing does."""
    for line in dict.fromkeys(read_lines(config)):
        kind, options = LAYER_KINDS[line.kind], LAYER_KINDS.make_settings(line.kind, line.kind_options)
        if not kind.tileable:
            return f"layers of kind {line.kind!r} cannot be cut into tiles; leave tile_units out"
        if not kind.can_be_cut(options):
            return f"layers of kind {line.kind!r} with {options} cannot be cut into tiles; leave tile_units out"
        if kind.takes_head and config.labels.head_layers > 1:
            return (
                f"the hidden layers of a local classifier read all channels of a layer of kind {line.kind!r}; set "
                "labels.head_layers to 1, or leave tile_units out"
            )
        if kind.has_places and config.labels.method == "groups":
            return (
                f"labels.method=groups gives all channels of a layer of kind {line.kind!r} to the classes in turn; use "
                "another label method, or leave tile_units out"
            )
    if GOODNESSES.of(config).over_units is None:
        return (
            f"goodness {config.objective.goodness!r} does not say by over_units whether it is a sum or a mean over "
            "units; set that, or leave tile_units out"
        )
    return None


def hand_on(layer: Layer, spec: LayerSpec, rows: Tensor, preactivations: Tensor) -> Tensor:
    """What the next layer reads: (n, in_features), (n, num_units) -> (n, out_features).

    This is what the layer hands on and, with an input skip, the normalised image at the end of `rows`. If the layer has
    a workspace, `preactivations` is overwritten.
    """
    activities = layer.hand_on(preactivations)
    if spec.num_skip_features == 0:
        return activities
    return torch.cat([activities, rows[:, -spec.num_skip_features :].to(activities.dtype)], dim=1)
