"""The dense layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffstream.device.row_sums import sum_rows
from ffstream.device.workspace import BESIDE_ROWS, Buffer, Workspace
from ffstream.field.layers.base import cut_units
from ffstream.field.layers.casting import CastWeights
from ffstream.field.layers.normalised import CHANNELS, LENGTH, NORMALISATIONS, NormalisedLayer, check_normalisation
from ffstream.field.layers.plain import as_linear, call
from ffstream.field.layers.shape import Activations, LayerShape
from ffstream.settings.limits import setting

_MOST_FEATURE_PARTS = 4  # in which the input has its gradient

_CAST_ROWS = Buffer("cast rows", "rows")
_PREACTIVATIONS = Buffer("preactivations", "activities")
_WEIGHTS = Buffer("weights", "gradient")  # cast for products; later a product of the same size
_PRODUCT, _PART = Buffer("product", "gradient"), Buffer("part", "gradient")


@dataclass(frozen=True)
class LinearOptions:
    """The settings of a dense layer, for each layer."""

    normalise: str = setting(
        LENGTH,
        "What is handed on: each sample divided by its length (length), each sample with a mean of 0 and a spread of 1 "
        "(samples), each unit so over the training samples (channels), or the units of each class in each sample so "
        "(groups).",
        choices=NORMALISATIONS,
        later=True,
    )


class Linear(NormalisedLayer):
    """preactivations = x W^T + b, with W (num_units, in_features) ~ N(0, 1/in_features) and b zero.

    The two matrix products of a step run in `compute_dtype`; the gradient has the weights' type, float32 by default.
    """

    tileable = True

    def __init__(self, shape: LayerShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shape, compute_dtype)
        self.weight = nn.Parameter(torch.empty(self.num_units, self.in_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(self.num_units, dtype=torch.float32))
        self._casts = CastWeights()
        self.linear: nn.Module | None = None  # has the weights of a loaded layer

    @classmethod
    def handed_on_by(cls, shape: LayerShape) -> Activations:
        """Its units. Raises ConfigError for a normalisation that does not fit them."""
        return check_normalisation("linear", cls.name_normalisation(shape), shape, cls.units_of(shape))

    @classmethod
    def name_normalisation(cls, shape: LayerShape) -> str:
        """That of its options, which a kind derived from this one may not have."""
        return _options_of(shape.options).normalise

    @classmethod
    def can_be_cut(cls, options: Any) -> bool:
        """Whether rows can be put together from tiles: lengths are summed over them, and channels are independent."""
        return _options_of(options).normalise in (LENGTH, CHANNELS)

    def initialise(self, generator: torch.Generator) -> None:
        """W ~ N(0, 1/in_features), as in Hinton's program."""
        with torch.no_grad():
            self.weight.normal_(0.0, self.in_features**-0.5, generator=generator)

    def hide(self, hidden: Tensor) -> None:
        """Set these columns of W to zero; they get no gradient, as rows are zero there."""
        with torch.no_grad():
            self.weight[:, hidden] = 0.0

    def preactivations(self, rows: Tensor) -> Tensor:
        """(n, in_features) -> (n, num_units) in the weights' type."""
        if self.linear is not None:
            return call(self.linear, rows.to(self.bias.dtype), self.compute_dtype) + self.bias
        if self.workspace is None:
            products = F.linear(rows.to(self.compute_dtype), self.weight.to(self.compute_dtype))
            return products.to(self.weight.dtype).add_(self.bias)
        room, weight = self.workspace, self.weight.detach()
        left = self._cast(_CAST_ROWS, rows, room)
        result = room.take(_PREACTIVATIONS, (len(rows), self.num_units), weight.dtype)
        if self.compute_dtype == weight.dtype:
            torch.mm(left, weight.t(), out=result)
        else:
            for units in cut_units(self.num_units, room.parts.product_units):
                right = self._cast_weights(units, slice(None), room)
                shape = (len(rows), len(right))
                product = torch.mm(left, right.t(), out=room.take(_PRODUCT, shape, self.compute_dtype))
                result[:, units].copy_(product)
        return result.add_(self.bias)

    def make_plain(self) -> None:
        """`linear`, an `nn.Linear`, has W, but not in a kind derived from this one that does not call it."""
        if type(self).preactivations is Linear.preactivations:
            self.linear = as_linear(self.weight)
            del self.weight

    def gradients(
        self, rows: Tensor, gradient: Tensor, total: Tensor | None = None
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """dW = gradient^T x, the part of some units at a time, and db = sum(gradient)."""
        room = self.workspace or Workspace(gradient.device)
        right = self._cast(_CAST_ROWS, rows, room)
        for units, part in self._weight_gradients(gradient, right, room):
            yield "weight", units, part
        yield "bias", slice(None), sum_rows(gradient) if total is None else total

    def _weight_gradients(self, gradient: Tensor, right: Tensor, room: Workspace) -> Iterator[tuple[slice, Tensor]]:
        """gradient^T x, in the weights' type.

        A product in another type reuses the buffer of the cast weights, which are no longer needed. Other cores hold
        its cache lines, which slows the first write to it: a matrix product hides that cost, but a copy would take five
        times as long. So copies of the product go to another buffer.
        """
        dtype = self.weight.dtype
        if self.compute_dtype == dtype:
            for units in cut_units(self.num_units, room.parts.gradient_units):
                left = gradient[:, units].t()
                yield units, torch.mm(left, right, out=room.take(_PART, (len(left), self.in_features), dtype))
            return
        for units in cut_units(self.num_units, room.parts.product_units):
            left = self._cast(_PRODUCT, gradient[:, units], room).t()
            product = torch.mm(left, right, out=room.take(_WEIGHTS, (len(left), self.in_features), self.compute_dtype))
            for rows in cut_units(len(product), room.parts.gradient_units):
                part = room.take(_PART, tuple(product[rows].shape), dtype).copy_(product[rows])
                yield slice(units.start + rows.start, units.start + rows.stop), part

    def input_gradients(self, rows: Tensor, gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """gradient W in `compute_dtype`, for some features at a time, summed over groups of units."""
        room = self.workspace or Workspace(gradient.device)
        most = max(room.parts.gradient_features, -(-self.in_features // _MOST_FEATURE_PARTS))
        for features in cut_units(self.in_features, most):
            # The dropout mask that this buffer held is no longer needed.
            total = room.take(BESIDE_ROWS, (len(gradient), features.stop - features.start), self.compute_dtype)
            for units in cut_units(self.num_units, room.parts.product_units):
                left = self._cast(_PRODUCT, gradient[:, units], room)
                total.addmm_(left, self._cast_weights(units, features, room), beta=min(units.start, 1))
            yield features, total

    def _cast_weights(self, units: slice, features: slice, room: Workspace) -> Tensor:
        """Some of the weights, as the operand of a product.

        It is laid out in memory in the same way whether all weights are kept or not: the kernel of a product, and with
        it the last bit, may depend on that.
        """
        weight = self.weight.detach()
        if weight.dtype == self.compute_dtype:
            return weight[units, features]
        kept = self._casts.keep(self.weight, self.compute_dtype, room)
        part = (weight if kept is None else kept)[units, features]
        if kept is not None and part.is_contiguous():
            return part
        return self._casts.cast(_WEIGHTS, part, self.weight._version, self.compute_dtype, room)

    def _cast(self, buffer: Buffer, tensor: Tensor, room: Workspace) -> Tensor:
        tensor = tensor.detach()
        if tensor.dtype == self.compute_dtype:
            return tensor
        return room.take(buffer, tuple(tensor.shape), self.compute_dtype).copy_(tensor)


def _options_of(options: Any) -> LinearOptions:
    return options if isinstance(options, LinearOptions) else LinearOptions()
