"""The hidden layers of a convolution's local classifier: what lies between its activities and the linear classifier.

A linear classifier on a layer's activities asks the layer for features that tell the classes apart at once. One that
has layers of its own lets it learn features that later layers can build on (Belilovsky et al. 2019, section 4). These
layers are dropped once the layer is trained, but for its own goodness.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffstream.field.layers.plain import call

_MOST_SIDE, _LEAST_SIDE = 8, 4  # places of the planes that the hidden layers see, along an axis
_SUMMARY_SIDE = 2  # the linear classifier reads averages over 2 x 2 parts of the last plane
_LEAST_VARIANCE = 1e-6  # added to what is divided by


class LocalHead(nn.Module):
    """3 x 3 convolutions of a layer's width on averaged activities, each normalised and rectified; then averages.

    x_0 is the average of the activities over squares, so that at most 8 x 8 places are left: on CIFAR-10 this learnt
    better than all 32 x 32 places, in a quarter of the time. Then x_i = relu(scale_i * n(w(W_i) * x_{i-1}) + shift_i),
    where n gives each sample a mean of 0 and a spread of 1, w does the same for the weights of each channel (weight
    standardisation, Qiao et al. 2019, eq. 7), and scale and shift are by channel. Together they do what a batch norm
    does: activities are never negative, and weights that sum to 0 are blind to what all of them have in common. Unlike
    a batch norm, they compute each sample by itself, so that parts of a batch give the update of the whole. Products
    run in `compute_dtype`. The gradients are written out, so that nothing is kept that they do not need.
    """

    def __init__(self, sides: tuple[int, int], width: int, num_hidden: int, compute_dtype: torch.dtype) -> None:
        """Parameters are undefined until `initialise`; `sides` are the height and width of the layer's plane."""
        super().__init__()
        self._sides, self._width, self._compute_dtype = sides, width, compute_dtype
        self._squares = tuple(side // _count_places(side) for side in sides)
        self.num_hidden = num_hidden
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()  # they have the parameters of a loaded layer
        for number in range(num_hidden):
            self.register_parameter(f"weight_{number}", nn.Parameter(torch.empty(width, width, 3, 3)))
            self.register_parameter(f"scale_{number}", nn.Parameter(torch.ones(width)))
            self.register_parameter(f"shift_{number}", nn.Parameter(torch.zeros(width)))

    @property
    def num_summarised(self) -> int:
        """Channels times parts of the plane."""
        rows, columns = self._parts
        return self._width * rows * columns

    @property
    def _parts(self) -> tuple[int, int]:
        height, width = self._plane
        return min(_SUMMARY_SIDE, height), min(_SUMMARY_SIDE, width)

    @property
    def _weight_scale(self) -> float:
        """What keeps the products of standardised weights as large as what they multiply."""
        return float((9 * self._width) ** -0.5)

    @property
    def _plane(self) -> tuple[int, int]:
        """Height and width of the hidden planes."""
        return self._sides[0] // self._squares[0], self._sides[1] // self._squares[1]

    def initialise(self, generator: torch.Generator) -> None:
        """W ~ N(0, 2 / fan-in), as in a layer (He et al. 2015, eq. 10), so that steps change it as much."""
        with torch.no_grad():
            for number in range(self.num_hidden):
                self.get_parameter(f"weight_{number}").normal_(0, (2 / (9 * self._width)) ** 0.5, generator=generator)

    def read(self, activities: Tensor, *, keep: bool) -> list[Tensor]:
        """Activities (n, places * channels) to the averages (n, num_summarised).

        To `keep`, what `differentiate` needs follows.
        """
        planes = activities.view(-1, *self._sides, self._width).permute(0, 3, 1, 2)
        current = F.avg_pool2d(planes, self._squares)
        if self.convs:
            return [self._average(self._read_plain(current))]
        kept = []
        for number in range(self.num_hidden):
            operand = current.to(self._compute_dtype).contiguous(memory_format=torch.channels_last)
            product = F.conv2d(operand, self._cast(self._standardise(number)[0]), padding=1)
            rows = product.permute(0, 2, 3, 1).flatten(1).to(activities.dtype)
            del product, current
            standardised, inverse = _standardise(rows, (1,))
            del rows
            normalised = standardised.view(len(standardised), *self._plane, self._width)
            scale, shift = (getattr(self, f"{name}_{number}") for name in ("scale", "shift"))
            rectified = torch.addcmul(shift, normalised, scale).relu_()
            if keep:
                kept += [operand, normalised, inverse, rectified]
            del operand, standardised, normalised
            current = rectified.permute(0, 3, 1, 2)
        return [self._average(current), *kept]

    def make_plain(self) -> None:
        """Each of `convs`, an `nn.Conv2d`, has w(W) as its weight; `norms`, `nn.GroupNorm`s, are n, scale and shift."""
        for number in range(self.num_hidden):
            conv = nn.Conv2d(self._width, self._width, 3, padding=1, bias=False, device="meta")
            with torch.no_grad():
                conv.weight = nn.Parameter(self._standardise(number)[0].mul_(self._weight_scale))
            norm = nn.GroupNorm(1, self._width, eps=_LEAST_VARIANCE, device="meta")
            norm.weight, norm.bias = (self.get_parameter(f"{name}_{number}") for name in ("scale", "shift"))
            self.convs.append(conv)
            self.norms.append(norm)
            for name in ("weight", "scale", "shift"):
                delattr(self, f"{name}_{number}")

    def _read_plain(self, current: Tensor) -> Tensor:
        """What the hidden layers of a loaded layer make of the averaged plane."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            current = torch.relu(norm(call(conv, current, self._compute_dtype)))
        return current

    def _average(self, planes: Tensor) -> Tensor:
        """(n, channels, height, width) to the averages (n, num_summarised)."""
        return F.adaptive_avg_pool2d(planes, self._parts).permute(0, 2, 3, 1).flatten(1)

    def differentiate(self, gradient: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """dL/dactivities, but for the division of a square's average among its places, and the parameters' gradients.

        `gradient` is dL/dsummary (n, num_summarised). Returns (n, height, width, channels) of the averaged plane. What
        is `kept` is overwritten.
        """
        upstream = gradient.view(-1, *self._parts, self._width).permute(0, 3, 1, 2)
        last = kept[-1].permute(0, 3, 1, 2)
        by_place = torch.ops.aten._adaptive_avg_pool2d_backward(upstream, last).permute(0, 2, 3, 1)
        found: dict[str, Tensor] = {}
        for number in reversed(range(self.num_hidden)):
            operand, normalised, inverse, rectified = kept[4 * number : 4 * number + 4]
            by_scaled = rectified.sign_().mul_(by_place)
            del by_place
            found[f"scale_{number}"] = (by_scaled * normalised).sum(dim=(0, 1, 2))
            found[f"shift_{number}"] = by_scaled.sum(dim=(0, 1, 2))
            by_normalised = by_scaled.mul_(getattr(self, f"scale_{number}")).flatten(1)
            by_rows = _through_standardise_(by_normalised, normalised.flatten(1), inverse, (1,))
            by_product = by_rows.view(normalised.shape).permute(0, 3, 1, 2).to(self._compute_dtype)
            weight, inverse = self._standardise(number)
            by_operand, by_weight, _ = torch.ops.aten.convolution_backward(
                *(by_product, operand, self._cast(weight), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
                output_mask=[True, True, False],
            )
            by_weight = by_weight.to(weight.dtype).mul_(self._weight_scale)
            found[f"weight_{number}"] = _through_standardise_(by_weight, weight, inverse, (1, 2, 3))
            by_place = by_operand.permute(0, 2, 3, 1).to(gradient.dtype)
        return by_place, found

    def spread_(self, activities: Tensor, by_average: Tensor) -> Tensor:
        """dL/dpreactivations, written over the activities, from the gradient of the averaged plane."""
        rows, columns = self._squares
        height, width = self._plane
        cut = activities.view(-1, height, rows, width, columns, self._width)
        cut.sign_().mul_(by_average.div(rows * columns).view(-1, height, 1, width, 1, self._width))
        return activities

    def _standardise(self, number: int) -> tuple[Tensor, Tensor]:
        return _standardise(getattr(self, f"weight_{number}"), (1, 2, 3))

    def _cast(self, weight: Tensor) -> Tensor:
        operand = (weight * self._weight_scale).to(self._compute_dtype)
        return operand.contiguous(memory_format=torch.channels_last)


def _standardise(values: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values with a mean of 0 and a spread of 1 along some axes, and one over the spread that they had."""
    variance, mean = torch.var_mean(values, dim=axes, correction=0, keepdim=True)
    inverse = (variance + _LEAST_VARIANCE).rsqrt()
    return (values - mean).mul_(inverse), inverse


def _through_standardise_(gradient: Tensor, standardised: Tensor, inverse: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The gradient by the values, written over that by what `_standardise` made of them."""
    along = (gradient * standardised).mean(dim=axes, keepdim=True)
    mean = gradient.mean(dim=axes, keepdim=True)
    return gradient.sub_(mean).addcmul_(standardised, along, value=-1).mul_(inverse)


def _count_places(side: int) -> int:
    """Places along an axis of the averaged plane: the most, up to 8, that divide its length; all if only few do."""
    places = max(number for number in range(1, _MOST_SIDE + 1) if side % number == 0)
    return places if places >= _LEAST_SIDE else side
