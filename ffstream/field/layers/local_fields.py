"""The square fields of a local layer: which places each unit reads, and the products with their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ffstream.data.plane import Plane
from ffstream.device.workspace import BESIDE_ROWS, Buffer, Workspace
from ffstream.errors import ConfigError
from ffstream.field.layers.base import cut_units
from ffstream.field.layers.shape import Activations

_PREACTIVATIONS = Buffer("preactivations of places", "activities")
_STRIP = Buffer("strip of the plane", "rows")
_SQUARES = Buffer("squares side by side", "rows")
_PRODUCT = Buffer("product of a row of places", "gradient")
_WEIGHTS = Buffer("weights of a row of places", "gradient")  # cast for products
_UPSTREAM = Buffer("upstream of a row of places", "gradient")  # the same of a gradient
_PART = Buffer("weight gradient of a row of places", "gradient")


@dataclass(frozen=True)
class LocalFields:
    """Squares of places of a plane, one around each place of a grid, and the products of units that read them.

    A unit reads all channels of its square, and zeros where that reaches beyond the plane. With a stride of 1 the grid
    has the size of the plane. Weights are (num_units, fan_in): the places of the grid row by row, with the units of a
    place side by side; the columns of a square one after the other, with the channels of a place side by side.

    One row of the grid is computed at a time. The strip of the plane that its squares cover is copied column by column,
    so that each square is a run of consecutive numbers in it. Thus one batched product serves the row, and no number is
    copied more than `field` times in all, where a copy of every square would hold it `field` squared times.
    """

    reads: Activations
    field: int  # side of a square
    stride: int
    width: int  # units at each place
    compute_dtype: torch.dtype

    def __post_init__(self) -> None:
        """Raises ConfigError for what has no places, and for a square that reads nothing more than a smaller one."""
        if self.reads.plane is None:
            found = self.reads.image_shape if self.reads.image_shape is not None else str(self.reads)
            raise ConfigError(
                f"config network: a local layer with field={self.field} reads {found}, allowed: what has places, such "
                "as images of (height, width) with up to 4 channels before or after, a convolution, or another local "
                "layer with a field; use kind linear"
            )
        most = 2 * max(self.reads.plane[1:3]) - 1
        if self.field > most:
            raise ConfigError(
                f"config network: a local layer with field={self.field} reads {self.reads}, allowed field={most} at "
                "most, which reads all of them from every place"
            )

    @property
    def fan_in(self) -> int:
        """Numbers that a unit reads."""
        return self.field * self.field * self.reads.num_channels

    @property
    def grid(self) -> tuple[int, int]:
        """Places of the grid along its height and its width."""
        _, height, width, _ = self._plane
        return -(-height // self.stride), -(-width // self.stride)

    @property
    def units(self) -> Activations:
        """The shape of the units: those of a place lie side by side."""
        return Activations.of_places(*self.grid, self.width)

    def multiply(self, rows: Tensor, weight: Tensor, room: Workspace | None) -> Tensor:
        """Rows (n, features) times the weights of the units that read them: (n, num_units), in float32.

        Without a workspace, nothing is written in place, so that gradients flow through it.
        """
        if room is None:
            found = [
                torch.bmm(self._read(rows, place, None), self._cast_weights(weight, units, None).transpose(1, 2))
                for place, units in enumerate(self._cut_units())
            ]
            return torch.stack(found).permute(2, 0, 1, 3).flatten(1).to(weight.dtype)
        result = room.take(_PREACTIVATIONS, (len(rows), self.units.num_features), torch.float32)
        by_place = result.unflatten(1, (*self.grid, self.width))
        for place, units in enumerate(self._cut_units()):
            squares, right = self._read(rows, place, room), self._cast_weights(weight, units, room).transpose(1, 2)
            product = room.take(_PRODUCT, (self.grid[1], len(rows), self.width), self.compute_dtype)
            for some, operand in self._take_operands(squares, room):
                torch.bmm(operand, right[some], out=product[some])
            by_place[:, place].copy_(product.transpose(0, 1))
        return result

    def weight_gradients(self, rows: Tensor, gradient: Tensor, room: Workspace) -> Iterator[tuple[slice, Tensor]]:
        """gradient^T rows for the units of one row of places at a time, in float32."""
        for place, units in enumerate(self._cut_units()):
            squares, left = self._read(rows, place, room), self._cast_upstream(gradient, place, room).permute(1, 2, 0)
            shape = (self.grid[1], self.width, self.fan_in)
            product = room.take(_PRODUCT, shape, self.compute_dtype)
            for some, operand in self._take_operands(squares, room):
                torch.bmm(left[some], operand, out=product[some])
            if product.dtype != gradient.dtype:
                product = room.take(_PART, shape, gradient.dtype).copy_(product)
            yield units, product.flatten(0, 1)

    def input_gradients(self, gradient: Tensor, weight: Tensor, room: Workspace) -> Tensor:
        """gradient times the weights, (n, features), summed over the squares that hold a feature."""
        num_rows, (_, num_columns) = len(gradient), self.grid
        total = room.take(BESIDE_ROWS, (num_rows, self.reads.num_features), self.compute_dtype).zero_()
        shape = (num_columns, num_rows, self.fan_in // self.field)
        for place, units in enumerate(self._cut_units()):
            left = self._cast_upstream(gradient, place, room).transpose(0, 1)
            right = self._cast_weights(weight, units, room).unflatten(2, (self.field, -1))
            strip = room.take(_STRIP, self._strip_shape(num_rows), self.compute_dtype).zero_()
            for column in range(self.field):  # squares that overlap have their columns in other places of the strip
                product = torch.bmm(left, right[:, :, column], out=room.take(_PRODUCT, shape, self.compute_dtype))
                its_columns = slice(column, column + (num_columns - 1) * self.stride + 1, self.stride)
                strip.flatten(2)[:, its_columns].add_(product.transpose(0, 1))
            self._cut(total, place).add_(self._cut_strip(strip, place))
        return total

    def hide_(self, weight: Tensor, hidden: Tensor) -> None:
        """Set the weights to zero that multiply the features which `hidden` (features,) marks."""
        for place, units in enumerate(self._cut_units()):
            marked = self._read(hidden.unsqueeze(0), place, None)[:, 0] > 0
            weight[units].unflatten(0, (-1, self.width)).masked_fill_(marked.unsqueeze(1), 0.0)

    def _read(self, rows: Tensor, place: int, room: Workspace | None) -> Tensor:
        """The squares of one row of the grid, (places, n, fan_in): a view of a strip, in which they overlap."""
        inside = self._cut(rows, place)
        if room is None:
            above_and_below, beside = self._margins(place)
            strip = F.pad(inside.to(self.compute_dtype), (0, 0, 0, 0, *above_and_below, *beside))
        else:
            strip = room.take(_STRIP, self._strip_shape(len(rows)), self.compute_dtype).zero_()
            self._cut_strip(strip, place).copy_(inside)
        squares: Tensor = strip.flatten(1).unfold(1, self.fan_in, self.stride * self.fan_in // self.field)
        return squares.transpose(0, 1)

    def _cut(self, rows: Tensor, place: int) -> Tensor:
        """What a row of the grid reads of the plane, (n, columns, height, channels before, channels after), a view."""
        (top, bottom), (left, right) = self._margins(place)
        first = place * self.stride - self._reach + top
        height, width = self.field - top - bottom, self._strip_columns - left - right
        planes: Tensor = rows.unflatten(1, self._plane)
        return planes[:, :, first : first + height, :width].permute(0, 3, 2, 1, 4)

    def _cut_strip(self, strip: Tensor, place: int) -> Tensor:
        """The part of a strip that lies inside the plane, a view."""
        (top, bottom), (left, right) = self._margins(place)
        return strip[:, left : self._strip_columns - right, top : self.field - bottom]

    def _margins(self, place: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Places of a strip that lie beyond the plane: above and below it, and to its left and right."""
        _, height, width, _ = self._plane
        top = self._reach - place * self.stride
        bottom = self.field - top - height
        return (max(top, 0), max(bottom, 0)), (self._reach, max(self._strip_columns - self._reach - width, 0))

    def _strip_shape(self, num_rows: int) -> tuple[int, ...]:
        before, _, _, after = self._plane
        return num_rows, self._strip_columns, self.field, before, after

    @property
    def _strip_columns(self) -> int:
        return (self.grid[1] - 1) * self.stride + self.field

    @property
    def _reach(self) -> int:
        """Places that a square reaches to the left of its own place, and above it."""
        return (self.field - 1) // 2

    @property
    def _plane(self) -> Plane:
        assert self.reads.plane is not None, "it was looked at when this was made"
        return self.reads.plane

    def _cut_units(self) -> list[slice]:
        """The units of each row of the grid."""
        return cut_units(self.units.num_features, self.grid[1] * self.width)

    def _take_operands(self, squares: Tensor, room: Workspace) -> Iterator[tuple[slice, Tensor]]:
        """Some places of a row of the grid at a time, and their squares as an operand, valid until the next."""
        most = room.parts.square_values
        if self.compute_dtype == torch.float32 or not most:
            yield slice(None), squares
            return
        for some in cut_units(len(squares), max(most // max(squares[0].numel(), 1), 1)):
            part = squares[some]
            yield some, room.take(_SQUARES, tuple(part.shape), part.dtype).copy_(part)

    def _cast_weights(self, weight: Tensor, units: slice, room: Workspace | None) -> Tensor:
        """The weights of a row of the grid as an operand, (places, units of a place, fan_in)."""
        return self._cast(weight[units].unflatten(0, (-1, self.width)), _WEIGHTS, room)

    def _cast_upstream(self, gradient: Tensor, place: int, room: Workspace) -> Tensor:
        """The gradient of a row of the grid as an operand, (n, places, units of a place)."""
        return self._cast(gradient.unflatten(1, (*self.grid, self.width))[:, place], _UPSTREAM, room)

    def _cast(self, part: Tensor, buffer: Buffer, room: Workspace | None) -> Tensor:
        if room is None or part.dtype == self.compute_dtype:
            return part.to(self.compute_dtype)
        return room.take(buffer, tuple(part.shape), self.compute_dtype).copy_(part)
