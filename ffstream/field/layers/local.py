"""The layer of local receptive fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor, nn

from ffstream.data.plane import Plane
from ffstream.device.row_sums import sum_rows
from ffstream.device.workspace import Workspace
from ffstream.errors import ConfigError
from ffstream.field.layers.base import cut_units
from ffstream.field.layers.casting import CastWeights
from ffstream.field.layers.local_fields import LocalFields
from ffstream.field.layers.normalised import CHANNELS, LENGTH, NORMALISATIONS, NormalisedLayer, check_normalisation
from ffstream.field.layers.plain import as_linear, call
from ffstream.field.layers.shape import Activations, LayerShape
from ffstream.settings.limits import setting

AUTO = "auto"

_WIDEST_GRID = 4  # cells per axis in the first layer; each further layer has one fewer, down to one
_FIELD = 10 / 28  # share of the height and of the width of an image that a cell of the first layer reads
_WIDTHS = 144  # a multiple of it gives equally many units to all cells of any grid


@dataclass(frozen=True)
class LocalOptions:
    """The settings of a local layer, for each layer."""

    field: int = setting(
        0,
        "Side of the square of places that a unit reads, with as many units at each place as the layer is wide; 0: the "
        "units share a grid of 4 x 4 cells on the image, and smaller grids above it.",
        at_least=0,
        at_most=99,
        later=True,
    )
    stride: int = setting(1, "Places from one square to the next.", at_least=1, at_most=99, later=True)
    normalise: str = setting(
        AUTO,
        "What is handed on: each sample divided by its length (length), each sample with a mean of 0 and a spread of 1 "
        "(samples), each unit so over the training samples (channels), or the units of each class in each sample so "
        "(groups). auto: channels with a field, else length.",
        choices=(AUTO, *NORMALISATIONS),
        later=True,
    )


class Local(NormalisedLayer):
    """Units that read a part of the plane each, without shared weights (Hinton 2022, sections 3.2 and 3.4).

    With a field, a layer has `shape.width` units at each place, which read the square around it: `LocalFields` says
    how. Units at different places have nothing in common, so that a label is told to each unit, and a local classifier
    reads each of them. A further layer with a field, or a convolution, reads them by place.

    Without a field, units lie in a grid of cells, each of which reads its own window. The first layer has 4 x 4 cells,
    the next 3 x 3, then 2 x 2, then one cell that reads everything. A cell of the first layer reads a window of the
    image in all channels; the windows overlap and cover the image. A cell of a further layer reads all units of the
    2 x 2 cells below it. Unit u belongs to cell u // (num_units / num_cells), where cells are counted row by row.

    `weight` is (num_units, fan_in) ~ N(0, 1/fan_in), `bias` zero. Products run in `compute_dtype`.
    """

    num_distinct = _WIDEST_GRID  # from this layer on, the only cell reads all units
    windows: Tensor  # (cells, fan_in) int64: which features a cell reads

    def __init__(self, shape: LayerShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shape, compute_dtype)
        self.fields = _find_fields(shape, compute_dtype)
        if self.fields is not None:
            fan_in, self.width = self.fields.fan_in, self.num_units  # no two units have numbers in common
            self.register_buffer("mean_activity", torch.full((self.num_units,), 0.5, dtype=torch.float32))
        else:
            found = _windows_below(shape.place, self.in_features) if shape.place else _windows_of(shape.reads)
            self.register_buffer("windows", torch.tensor(found), persistent=False)
            fan_in = len(found[0])
        self.weight = nn.Parameter(torch.empty(self.num_units, fan_in, dtype=torch.float32))
        self._casts = CastWeights()
        self.bias = nn.Parameter(torch.zeros(self.num_units, dtype=torch.float32))
        self.cells = nn.ModuleList()  # they have the weights of a loaded layer

    @classmethod
    def units_of(cls, shape: LayerShape) -> Activations:
        """Raises ConfigError for data, a width, or a field, that do not fit each other."""
        fields = _find_fields(shape)
        if fields is None and shape.width % _WIDTHS:
            nearest = max(round(shape.width / _WIDTHS), 1) * _WIDTHS
            raise ConfigError(
                f"config width: found {shape.width}, allowed a multiple of {_WIDTHS} with network.kind=local, such "
                f"as {nearest}: the units of a layer are shared by the 16, 9 or 4 cells of its grid"
            )
        if fields is not None:
            return fields.units
        if not shape.reads_below:
            raise ConfigError(
                "config network: a local layer without a field reads the cells of the layer below it and nothing else, "
                "found reads=... or network.input_skip=true; give it a field, such as field=5, or leave that out"
            )
        if not shape.place:
            _check_plane(shape.reads)
        return super().units_of(shape)

    @classmethod
    def handed_on_by(cls, shape: LayerShape) -> Activations:
        """Its units. Raises ConfigError for a normalisation that does not fit them."""
        return check_normalisation("local", cls.name_normalisation(shape), shape, cls.units_of(shape))

    @classmethod
    def name_normalisation(cls, shape: LayerShape) -> str:
        """That of its options; with a field, each unit is standardised unless they say otherwise."""
        options = _options_of(shape)
        if options.normalise == AUTO:
            return CHANNELS if options.field else LENGTH
        return options.normalise

    def initialise(self, generator: torch.Generator) -> None:
        """W ~ N(0, 1/fan_in), as Hinton's program does for dense layers."""
        with torch.no_grad():
            self.weight.normal_(0.0, self.weight.shape[1] ** -0.5, generator=generator)

    def hide(self, hidden: Tensor) -> None:
        """Set the weights of these features to zero, in every square or window that contains them."""
        with torch.no_grad():
            if self.fields is not None:
                self.fields.hide_(self.weight, hidden)
                return
            for units, window in self._places():
                self.weight[units, hidden[window]] = 0.0

    def preactivations(self, rows: Tensor) -> Tensor:
        """(n, in_features) -> (n, num_units) in the weights' type."""
        if self.fields is not None:
            return self.fields.multiply(rows, self._find_operand(), self.workspace).add_(self.bias)
        if self.cells:
            rows = rows.to(self.bias.dtype)
            seen = [rows.index_select(1, window) for window in self.windows]
            made = [call(cell, each, self.compute_dtype) for cell, each in zip(self.cells, seen, strict=True)]
            return torch.cat(made, dim=1) + self.bias
        rows, weight = rows.to(self.compute_dtype), self._find_operand()
        found = [
            torch.mm(rows.index_select(1, window), weight[units].to(self.compute_dtype).t())
            for units, window in self._places()
        ]
        return torch.cat(found, dim=1).to(self.weight.dtype).add_(self.bias)

    def make_plain(self) -> None:
        """`cells` has an `nn.Linear` for each cell, but not in a kind derived from this one that does not call them.

        With a field, there are as many cells as places; all of their weights stay in one parameter.
        """
        if self.fields is None and type(self).preactivations is Local.preactivations:
            self.cells.extend(as_linear(self.weight[units]) for units, _ in self._places())
            del self.weight

    def gradients(
        self, rows: Tensor, gradient: Tensor, total: Tensor | None = None
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """dW = gradient^T x, cell by cell, or row of places by row of places, and db = sum(gradient)."""
        if self.fields is not None:
            room = self.workspace or Workspace(gradient.device)
            for units, part in self.fields.weight_gradients(rows, gradient, room):
                yield "weight", units, part
        else:
            rows = rows.to(self.compute_dtype)
            for units, window in self._places():
                left = gradient[:, units].to(self.compute_dtype)
                yield "weight", units, torch.mm(left.t(), rows.index_select(1, window)).to(self.weight.dtype)
        yield "bias", slice(None), sum_rows(gradient) if total is None else total

    def input_gradients(self, rows: Tensor, gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """gradient W in `compute_dtype`, for all features at once, summed over the units that read a feature."""
        if self.fields is not None:
            room = self.workspace or Workspace(gradient.device)
            yield slice(None), self.fields.input_gradients(gradient, self._find_operand().detach(), room)
            return
        total = torch.zeros(len(rows), self.in_features, dtype=self.compute_dtype, device=rows.device)
        weight = self._find_operand().detach()
        for units, window in self._places():
            left, right = gradient[:, units].to(self.compute_dtype), weight[units].to(self.compute_dtype)
            # The features of a window are distinct, so that the sum is the same on every device.
            total.index_add_(1, window, torch.mm(left, right))
        yield slice(None), total

    def _find_operand(self) -> Tensor:
        """The weights as products read them: cast, where all of them are kept so, else as they are."""
        kept = self._casts.keep(self.weight, self.compute_dtype, self.workspace)
        return self.weight if kept is None else kept

    def _places(self) -> Iterator[tuple[slice, Tensor]]:
        """The units of each cell, and the features that they read."""
        return zip(cut_units(self.num_units, self.num_units // len(self.windows)), self.windows, strict=True)


def _options_of(shape: LayerShape) -> LocalOptions:
    return shape.options if shape.options is not None else LocalOptions()


def _find_fields(shape: LayerShape, compute_dtype: torch.dtype = torch.float32) -> LocalFields | None:
    """The squares that the units of a layer read; None where they share a grid of cells. Raises ConfigError."""
    options = _options_of(shape)
    if options.field:
        return LocalFields(shape.reads, options.field, options.stride, shape.width, compute_dtype)
    if options.stride != 1:
        raise ConfigError(
            f"config network: a local layer has stride={options.stride} and no field, allowed stride=1 without one; "
            "give it a field, such as field=5"
        )
    return None


def _num_in_row(index: int) -> int:
    return max(_WIDEST_GRID - index, 1)


def _check_plane(images: Activations) -> Plane:
    """The plane of images. Raises ConfigError if they have none, or one that is too small."""
    plane = images.plane
    if plane is None or min(plane[1:3]) < _WIDEST_GRID:
        found = "unknown" if images.image_shape is None else images.image_shape
        raise ConfigError(
            f"config network.kind: found local, for data of shape {found}; allowed for images of (height, width), "
            f"{_WIDEST_GRID} pixels or more each, with up to 4 channels before or after; use network.kind=linear"
        )
    return plane


def _windows_of(images: Activations) -> list[list[int]]:
    """The features of an image that each cell of the first layer reads."""
    plane = _check_plane(images)
    _, height, width, _ = plane
    features = torch.arange(prod(plane), device="cpu").view(plane)
    rows, columns = _cuts(height), _cuts(width)
    return [features[:, row, column].flatten().tolist() for row in rows for column in columns]


def _cuts(num_pixels: int) -> list[slice]:
    """The windows of a row of cells along one axis: evenly spaced, from the start of the axis to its end."""
    size, most = max(ceil(_FIELD * num_pixels), -(-num_pixels // _WIDEST_GRID)), _WIDEST_GRID - 1
    starts = [round(number * (num_pixels - size) / most) for number in range(_WIDEST_GRID)]
    return [slice(start, start + size) for start in starts]


def _windows_below(index: int, in_features: int) -> list[list[int]]:
    """The units of the layer below that each cell reads: those of 2 x 2 cells, or of the only cell."""
    num_below, num_here = _num_in_row(index - 1), _num_in_row(index)
    units = torch.arange(in_features, device="cpu").view(num_below, num_below, -1)
    size = num_below - num_here + 1
    cuts = [slice(start, start + size) for start in range(num_here)]
    return [units[row, column].flatten().tolist() for row in cuts for column in cuts]
