"""The shapes of a layer: of what it reads, of its units, and of what it hands on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ffstream.data.plane import Plane, find_plane


@dataclass(frozen=True)
class Activations:
    """The shape of one sample's activations, which lie in a row of `num_features` numbers.

    `plane` is (channels before, height, width, channels after), in the order in which the numbers lie; it is None
    where they have no places. `image_shape` is that of the data, if these are images and their shape is known.
    """

    num_features: int
    plane: Plane | None = None
    image_shape: tuple[int, ...] | None = None

    @classmethod
    def of_image(cls, num_features: int, image_shape: Sequence[int] | None) -> Activations:
        """Those of the images of a data set; `image_shape` is None if it is not known."""
        if image_shape is None:
            return cls(num_features)
        return cls(num_features, find_plane(image_shape), tuple(image_shape))

    @classmethod
    def of_places(cls, height: int, width: int, num_channels: int) -> Activations:
        """Those of channels at every place of a plane; all channels of a place lie side by side."""
        return cls(height * width * num_channels, (1, height, width, num_channels))

    @property
    def places(self) -> tuple[int, int] | None:
        """Height and width of the plane, if there is one."""
        return self.plane[1:3] if self.plane is not None else None

    @property
    def num_places(self) -> int:
        """Places of the plane; 1 where there is none."""
        return self.plane[1] * self.plane[2] if self.plane is not None else 1

    @property
    def num_channels(self) -> int:
        """Numbers at each place."""
        return self.num_features // self.num_places

    def to_places(self, rows: Tensor) -> Tensor:
        """Rows (n, num_features) as (n, places, channels): a view, except of channels that lie before their plane."""
        assert self.plane is not None, "it has places"
        planes: Tensor = rows.unflatten(1, self.plane)
        if self.plane[0] == 1:
            return planes.flatten(1, 3)
        return planes.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)

    def from_places(self, values: Tensor) -> Tensor:
        """The inverse: (n, places, channels) to (n, num_features)."""
        assert self.plane is not None, "it has places"
        before, height, width, after = self.plane
        if before == 1:
            return values.flatten(1)
        planes: Tensor = values.unflatten(2, (before, after)).unflatten(1, (height, width))
        return planes.permute(0, 3, 1, 2, 4).flatten(1)

    def __str__(self) -> str:
        if self.plane is None:
            return f"{self.num_features} features"
        return f"{self.num_channels} x {self.plane[1]} x {self.plane[2]}"  # as torch writes it: channels first


@dataclass(frozen=True)
class UnitAxis:
    """The axis of a parameter along which units, or channels, lie: all of them once or, in `num_runs`, several times.

    A classifier that reads parts of a plane has a weight for each channel in each part: as many runs as parts.
    """

    index: int
    num_runs: int = 1

    def divides(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape has the axis, and whole runs along it."""
        return len(shape) > self.index and shape[self.index] % self.num_runs == 0

    def count_units(self, shape: Sequence[int]) -> int:
        """Units of a tensor of this shape."""
        return shape[self.index] // self.num_runs

    def resize(self, shape: Sequence[int], num_units: int) -> tuple[int, ...]:
        """The shape with another number of units."""
        return (*shape[: self.index], self.num_runs * num_units, *shape[self.index + 1 :])

    def fold(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Numbers of runs of units in the whole tensor, of units in a run, and of values of a unit in a run."""
        num_outer = math.prod(shape[: self.index]) * self.num_runs
        return num_outer, self.count_units(shape), math.prod(shape[self.index + 1 :])


@dataclass(frozen=True)
class LayerShape:
    """All that decides the shapes of a layer, or of a tile of it."""

    reads: Activations  # the image, or what the layer below hands on, or several of these joined
    width: int  # units of a dense layer, at each place of a local layer with a field; channels of a convolution
    place: int = 0  # position in its stack, from 0; the layer at position 0 reads images
    reads_below: bool = True  # the layer below and nothing else or, as the first of its stack, images
    options: Any = None  # the kind's own settings
    head_layers: int = 1  # layers of a local classifier, the linear one included
    num_groups: int = 1  # classes that have units of their own, which lie in turn; 1 where they have none
    first_unit: int = 0  # number of a tile's first unit, or channel, in the whole layer

    @property
    def in_features(self) -> int:
        """Features of a row that the layer reads."""
        return self.reads.num_features

    def is_like(self, other: LayerShape) -> bool:
        """Whether the shapes differ in nothing but the position."""
        mine, its = (dataclasses.replace(each, place=0) for each in (self, other))
        return mine == its

    def cut(self, units: slice) -> LayerShape:
        """The shape of a tile that has only these units, or channels."""
        return dataclasses.replace(self, width=units.stop - units.start, first_unit=units.start)
