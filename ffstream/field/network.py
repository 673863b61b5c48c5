"""The network as a list of layer specifications, from which one layer is built at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ffstream.errors import ConfigError
from ffstream.field.goodness import GOODNESSES
from ffstream.field.layers import LAYER_KINDS, Activations, Layer, LayerShape
from ffstream.field.wiring import Part, RowLayout, find_carried, lay_row
from ffstream.settings.config import Config
from ffstream.settings.layer_list import LayerLine
from ffstream.settings.reads import Reads

_VALUES_AT_ONCE = 1 << 22  # activities of a pass through a convolution; it decides bits, as sizes of parts do


@dataclass(frozen=True)
class LayerSpec:
    """The shape of one layer, and its place in the network."""

    index: int
    hands_on: bool  # whether a further layer of its stack reads its output
    kind: str
    shape: LayerShape
    units: Activations
    handed_on: Activations  # what later layers read of it
    num_epochs: int  # of each of its tiles
    learning_rate: float  # at the start
    row: RowLayout  # the rows of its cache
    next_row: RowLayout  # those of the next layer's

    @property
    def place(self) -> int:
        """Position in its stack, from 0; the layer at position 0 reads images."""
        return self.shape.place

    @property
    def in_features(self) -> int:
        """Features that the layer reads; a row may have more, which are carried for later layers."""
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
    def number(self) -> int:
        """The number of the layer, from 1."""
        return self.index + 1

    def is_like(self, other: LayerSpec) -> bool:
        """Whether another layer differs from this one in nothing but its position and its learning rate."""
        is_alike = (self.kind, self.num_epochs) == (other.kind, other.num_epochs)
        has_like_rows = self.row.is_like(other.row) and self.next_row.is_like(other.next_row)
        return is_alike and has_like_rows and self.shape.is_like(other.shape)

    def describe(self) -> str:
        """The shape of what the layer reads and of its units, in words."""
        if self.units.plane is None:
            return f"{self.in_features} x {self.num_units}"
        return f"{self.shape.reads} to {self.units}"

    def limit_rows(self, most: int) -> int:
        """How many of at most `most` rows are in one product of a pass: fewer where a row of units has many places."""
        if self.units.num_places == 1:
            return most
        return max(1, min(most, _VALUES_AT_ONCE // max(self.row.num_features, self.num_units)))

    @property
    def stack_start(self) -> int:
        """Index of the first layer of its stack."""
        return self.index - self.place

    @property
    def num_image_features(self) -> int:
        """How many of the features that it reads are the image, an overlaid label included."""
        return sum(part.shape.num_features for part in self.row.parts if not part.source)


def read_lines(config: Config) -> list[LayerLine]:
    """The layers of a configuration, one by one."""
    if config.network.layers:
        return config.list_layers()
    kind, options = config.part("network.kind")
    return [LayerLine(kind, config.width, tuple(options.items()))] * config.layers


def compute_layer_specs(
    config: Config, num_features: int, image_shape: Sequence[int] | None = None, num_groups: int = 1
) -> list[LayerSpec]:
    """Shapes of all layers, for images of `num_features` features, and classes with units of their own, if any.

    Raises ConfigError for what does not compose.
    """
    num_in_stack, specs, lines = count_in_stack(config), list[LayerSpec](), read_lines(config)
    options_of = {line: LAYER_KINDS.make_settings(line.kind, line.kind_options) for line in dict.fromkeys(lines)}
    shapes = {0: Activations.of_image(num_features, image_shape)}
    for start in range(0, len(lines), num_in_stack):
        stack = lines[start : start + num_in_stack]
        reads = _list_reads(config, stack, start)
        carried = find_carried(reads, start + 1)
        for place, line in enumerate(stack):
            row = lay_row(reads[place], carried[place], shapes)
            kind, number, hands_on = LAYER_KINDS[line.kind], start + place + 1, place + 1 < len(stack)
            reads_below = reads[place].sources == (number - 1 if place else 0,)
            try:
                head_layers = config.labels.head_layers if kind.takes_head else 1
                options = options_of[line]
                shape = LayerShape(row.joined, line.width, place, reads_below, options, head_layers, num_groups)
                units, handed_on = kind.units_of(shape), kind.handed_on_by(shape)
            except ConfigError as error:
                is_named = config.network.layers or len(row.parts) > 1
                raise (ConfigError(f"{error} ({_tell(number, row)})") if is_named else error) from None
            shapes[number] = handed_on
            next_row = lay_row(reads[place + 1], carried[place + 1], shapes)
            num_epochs, rate = line.num_epochs or config.epochs, line.learning_rate or config.optimiser.learning_rate
            specs.append(
                LayerSpec(number - 1, hands_on, line.kind, shape, units, handed_on, num_epochs, rate, row, next_row)
            )
    return specs


def _list_reads(config: Config, stack: Sequence[LayerLine], start: int) -> list[Reads]:
    """What each layer of a stack reads, and what one on top of it would read; `start` is the first one's index."""
    if config.network.input_skip:
        return [Reads((start + place, 0) if place else (0,)) for place in range(len(stack) + 1)]
    if not config.network.layers:
        return [Reads((start + place if place else 0,)) for place in range(len(stack) + 1)]
    return [*(line.find_reads(number) for number, line in enumerate(stack, 1)), Reads((len(stack),))]


def _tell(number: int, row: RowLayout) -> str:
    """Which layer it is and, if it reads several things, what these are."""
    told = f"layer {number} reads {row}" if len(row.parts) > 1 else f"layer {number}"
    if row.is_sum or len(row.parts) == 1 or row.joined.plane is not None:
        return told
    return f"{told}; channels lie side by side only where all parts have the same places"


def keep_outputs(specs: Sequence[LayerSpec]) -> list[LayerSpec]:
    """The same layers with rows in which what the layer below has handed on can be found, even if no layer reads it."""
    found: list[LayerSpec] = []
    for spec in specs:
        row = found[-1].next_row if spec.place else spec.row
        next_row = spec.next_row.keep(Part(spec.number, spec.handed_on))
        found.append(dataclasses.replace(spec, row=row, next_row=next_row))
    return found


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
    if config.in_rounds:  # a tile trains to its end on top of those before it
        return f"layers are not cut into tiles with schedule.order={config.schedule.order}; leave tile_units out"
    for line in dict.fromkeys(read_lines(config)):
        kind = LAYER_KINDS[line.kind]
        if not kind.tileable:
            return f"layers of kind {line.kind!r} cannot be cut into tiles; leave tile_units out"
        if not kind.can_be_cut(LAYER_KINDS.make_settings(line.kind, line.kind_options)):
            own = ", ".join(f"{name}={value}" for name, value in line.kind_options.items())
            return f"layers of kind {line.kind!r} with {own} cannot be cut into tiles; leave tile_units out"
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
    """What the next layer reads: (n, row.num_features), (n, num_units) -> (n, next_row.num_features).

    This is what the layer hands on, joined to other parts that the next layer reads, and followed by what is carried
    from `rows`. If the layer has a workspace, `preactivations` is overwritten.
    """
    return spec.next_row.write(layer.hand_on(preactivations), spec.number, spec.row, rows)
