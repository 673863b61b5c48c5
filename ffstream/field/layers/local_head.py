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
from ffstream.field.layers.planes import by_place, in_channels_last, keep_where_active_

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
        """Activities (n, places * channels) to the averages (n, num_summarised), in the type of the parameters.

        To `keep`, what `differentiate` needs follows.
        """
        planes = activities.view(-1, *self._sides, self._width).permute(0, 3, 1, 2)
        current = F.avg_pool2d(planes, self._squares)
        if self.convs:
            return [self._average(self._read_plain(current))]
        current = in_channels_last(current.to(self._compute_dtype))
        kept = []
        for number in range(self.num_hidden):
            product = in_channels_last(F.conv2d(current, self._cast(self._standardise(number)[0]), padding=1))
            normalised, mean, inverse = self._normalise(number, product)
            rectified = in_channels_last(normalised.relu_())
            if keep:
                kept += [current, product, mean, inverse]
            current = rectified
            del product, normalised, rectified
        dtype = self.get_parameter("scale_0").dtype
        return [self._average(current).to(dtype), *kept, *([current] if keep else [])]

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
        dtype, last = gradient.dtype, kept[-1]
        upstream = gradient.to(self._compute_dtype).view(-1, *self._parts, self._width).permute(0, 3, 1, 2)
        by_plane = torch.ops.aten._adaptive_avg_pool2d_backward(upstream, last)
        found: dict[str, Tensor] = {}
        for number in reversed(range(self.num_hidden)):
            operand, product, mean, inverse = kept[4 * number : 4 * number + 4]
            rectified = kept[4 * number + 4]
            by_scaled = keep_where_active_(by_place(rectified), by_place(by_plane)).permute(0, 3, 1, 2)
            del by_plane
            by_product, by_scale, by_shift = torch.ops.aten.native_group_norm_backward(
                *(by_scaled, product, mean, inverse, self._affine(number, product)[0]),
                *(len(product), self._width, self._plane[0] * self._plane[1], 1, [True, True, True]),
            )
            found[f"scale_{number}"], found[f"shift_{number}"] = by_scale.to(dtype), by_shift.to(dtype)
            weight, *moments = self._standardise(number)
            sizes = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
            by_plane, by_weight, _ = torch.ops.aten.convolution_backward(
                *(in_channels_last(by_product), operand, self._cast(weight), None, *sizes),
                output_mask=[True, True, False],
            )
            del by_product, by_scaled
            by_weight = by_weight.to(dtype).mul_(self._weight_scale)
            found[f"weight_{number}"] = self._through_standardise(number, by_weight, moments)
        return by_place(by_plane), found

    def spread_(self, activities: Tensor, by_average: Tensor) -> Tensor:
        """dL/dpreactivations, written over the activities, from the gradient of the averaged plane."""
        rows, columns = self._squares
        height, width = self._plane
        cut = activities.view(-1, height, rows, width, columns, self._width)
        keep_where_active_(cut, by_average.div(rows * columns).view(-1, height, 1, width, 1, self._width))
        return activities

    def _normalise(self, number: int, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """scale * n(product) + shift, and the mean and one over the spread of each sample."""
        sizes = len(product), self._width, self._plane[0] * self._plane[1], 1
        scale, shift = self._affine(number, product)
        found, mean, inverse = torch.native_group_norm(product, scale, shift, *sizes, _LEAST_VARIANCE)
        return found, mean, inverse

    def _affine(self, number: int, product: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift in the type of the product, as devices other than a CPU want one type."""
        scale, shift = (self.get_parameter(f"{name}_{number}").to(product.dtype) for name in ("scale", "shift"))
        return scale, shift

    def _standardise(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """w(W), and the mean and one over the spread of each channel's weights."""
        weight = self.get_parameter(f"weight_{number}")
        found, mean, inverse = torch.native_layer_norm(
            weight.flatten(1), [9 * self._width], None, None, _LEAST_VARIANCE
        )
        return found.view(weight.shape), mean, inverse

    def _through_standardise(self, number: int, gradient: Tensor, moments: Sequence[Tensor]) -> Tensor:
        """The gradient by W, from that by w(W)."""
        weight = self.get_parameter(f"weight_{number}").detach()
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            *(gradient.flatten(1), weight.flatten(1), [9 * self._width], *moments, None, None, [True, False, False])
        )[0]
        return found.view(weight.shape)

    def _cast(self, weight: Tensor) -> Tensor:
        operand = (weight * self._weight_scale).to(self._compute_dtype)
        return operand.contiguous(memory_format=torch.channels_last)


def _count_places(side: int) -> int:
    """Places along an axis of the averaged plane: the most, up to 8, that divide its length; all if only few do."""
    places = max(number for number in range(1, _MOST_SIDE + 1) if side % number == 0)
    return places if places >= _LEAST_SIDE else side
