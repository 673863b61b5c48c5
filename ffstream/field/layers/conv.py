"""The convolution: units at every place of a plane, which share their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffstream.errors import ConfigError
from ffstream.field.layers.local_head import LocalHead
from ffstream.field.layers.normalised import CHANNELS, NORMALISATIONS, NormalisedLayer, check_normalisation
from ffstream.field.layers.plain import call
from ffstream.field.layers.planes import by_place, keep_where_active_
from ffstream.field.layers.shape import Activations, LayerShape
from ffstream.settings.limits import setting

_LEAST_VARIANCE = 1e-6  # of a channel over places, added where a root is taken
_SUMMARY_SIDE = 2  # a local classifier reads averages over 2 x 2 parts of the plane, as in Belilovsky et al. 2019


@dataclass(frozen=True)
class ConvOptions:
    """The settings of a convolution, for each layer."""

    kernel: int = setting(3, "Side of the square of places that a unit reads.", at_least=1, at_most=99)
    stride: int = setting(1, "Places from one unit to the next.", at_least=1, at_most=99)
    groups: int = setting(1, "Groups of channels that do not read each other.", at_least=1)
    pool: int = setting(1, "Side of the square of places of which the next layer reads one number.", at_least=1)
    pooling: str = setting("max", "Which number of these: the largest, or the average.", choices=("max", "average"))
    normalise: str = setting(
        CHANNELS,
        "What is handed on: each channel with a mean of 0 and a spread of 1 over the training samples (channels), each "
        "sample so (samples), the channels of each class in each sample so (groups), or each sample divided by its "
        "length (length).",
        choices=NORMALISATIONS,
    )


class Conv(NormalisedLayer):
    """z = W * x + b at every place, with W (channels, channels read / groups, kernel, kernel) ~ N(0, 2 / fan-in).

    Activations lie in rows with all channels of a place side by side, which torch calls channels_last. The convolutions
    run in `compute_dtype`. What is handed on is pooled, then normalised: it has to be centred, as activities that are
    never negative let the goodness of shared weights run away.
    """

    tileable = has_places = takes_head = shares_weights = True
    noun: ClassVar[str] = "conv"  # of the kind, in errors

    def __init__(self, shape: LayerShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shape, compute_dtype)
        self.options = _options_of(shape)
        kernel = self.options.kernel
        num_read = shape.reads.num_channels // self.options.groups
        self.weight = nn.Parameter(torch.empty(self.width, num_read, kernel, kernel, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(self.width, dtype=torch.float32))
        self.conv: nn.Module | None = None  # has the parameters of a loaded layer
        self.head: LocalHead | None = None
        if shape.head_layers > 1:
            _, height, width, _ = self._plane_of(self.units)
            self.head = LocalHead((height, width), self.width, shape.head_layers - 1, compute_dtype)

    @classmethod
    def units_of(cls, shape: LayerShape) -> Activations:
        """Channels at every place. Raises ConfigError for what has no places, or options that do not fit it."""
        options, reads = _options_of(shape), shape.reads
        if reads.plane is None:
            found = reads.image_shape if reads.image_shape is not None else str(reads)
            raise ConfigError(
                f"config network: a layer of kind {cls.noun} reads {found}, allowed: what has places, such as images "
                "of (height, width) with up to 4 channels before or after, or another convolution; use kind linear"
            )
        num_read, kernel = reads.num_channels, options.kernel
        if num_read % options.groups or shape.width % options.groups:
            raise ConfigError(
                f"config network: a {cls.noun} layer reads {num_read} channels and has {shape.width}, found "
                f"groups={options.groups}, allowed a number that divides both"
            )
        sides = [(side + 2 * (kernel // 2) - kernel) // options.stride + 1 for side in reads.plane[1:3]]
        if min(sides) < 1:
            raise ConfigError(
                f"config network: a {cls.noun} layer with kernel={kernel} reads {reads}, and has no place left; use a "
                "smaller kernel"
            )
        return Activations.of_places(sides[0], sides[1], shape.width)

    @classmethod
    def handed_on_by(cls, shape: LayerShape) -> Activations:
        """The channels of pooled places."""
        units, pool = cls.units_of(shape), _options_of(shape).pool
        assert units.plane is not None, "units of a convolution have places"
        sides = [side // pool for side in units.plane[1:3]]
        if min(sides) < 1:
            raise ConfigError(
                f"config network: pool={pool} of a {cls.noun} layer of {units} leaves no place; leave pooling out, or "
                "use fewer of them"
            )
        handed_on = Activations.of_places(sides[0], sides[1], shape.width)
        return check_normalisation(cls.noun, cls.name_normalisation(shape), shape, handed_on)

    @classmethod
    def name_normalisation(cls, shape: LayerShape) -> str:
        """That of its options."""
        return _options_of(shape).normalise

    @classmethod
    def can_be_cut(cls, options: ConvOptions) -> bool:
        """If no channels are left out that some read, and each is normalised by itself."""
        return options.groups == 1 and options.normalise == CHANNELS

    def count_unit_runs(self, name: str) -> int:
        """A local classifier has weights for all channels in each part of the plane."""
        if name != "label_embedding" or self.label_embedding is None:
            return 1
        return self.label_embedding.shape[1] // self.width

    def initialise(self, generator: torch.Generator) -> None:
        """W ~ N(0, 2 / fan-in): activities keep their spread from layer to layer (He et al. 2015, eq. 10)."""
        with torch.no_grad():
            self.weight.normal_(0.0, (2 / self.weight[0].numel()) ** 0.5, generator=generator)
        if self.head is not None:
            self.head.initialise(generator)

    def preactivations(self, rows: Tensor) -> Tensor:
        """(n, in_features) -> (n, num_units)."""
        if self.conv is not None:
            planes = self._as_planes(rows.to(self.mean_activity.dtype))
            return by_place(call(self.conv, planes, self.compute_dtype)).flatten(1)
        weight = self.weight.to(self.compute_dtype).contiguous(memory_format=torch.channels_last)
        bias = self.bias.to(self.compute_dtype)
        found = F.conv2d(self.read(rows), weight, bias, self.stride, self.padding, 1, self.options.groups)
        return by_place(found).flatten(1).to(self.unit_dtype)

    @property
    def unit_dtype(self) -> torch.dtype:
        """That of products if a classifier reads averages of activities, which need no more precision; else float32."""
        return self.compute_dtype if self.is_summarised and self.conv is None else self.mean_activity.dtype

    def make_plain(self) -> None:
        """`conv`, an `nn.Conv2d`, has W and b, but not in a kind derived from this one that does not call it."""
        if self.head is not None:
            self.head.make_plain()
        if type(self).preactivations is Conv.preactivations:
            conv = nn.Conv2d(
                *(self.shape.reads.num_channels, self.width, self.options.kernel, self.stride),
                padding=self.padding,
                groups=self.options.groups,
                device="meta",  # where no random numbers are drawn
            )
            conv.weight, conv.bias, self.conv = self.weight, self.bias, conv
            del self.weight, self.bias

    def gradients(
        self, rows: Tensor, gradient: Tensor, total: Tensor | None = None
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """Those of the weights, by torch, and db = sum(gradient) over samples and places."""
        found = self._differentiate(rows, gradient, of_input=False)
        yield "weight", slice(None), found.to(self.weight.dtype)
        yield "bias", slice(None), self._sum(gradient) if total is None else total

    def input_gradients(self, rows: Tensor, gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """dL/drows, for all features at once."""
        found = self._differentiate(rows, gradient, of_input=True).permute(0, 2, 3, 1)
        before, height, width, after = self._plane_of(self.shape.reads)
        if self._leaves_out:
            of_read, step = found, self.options.stride
            found = of_read.new_zeros(len(rows), height, width, before * after)
            found[:, ::step, ::step] = of_read
        planes = found.unflatten(3, (before, after))
        yield slice(None), planes.permute(0, 3, 1, 2, 4).reshape(len(rows), -1)

    def _differentiate(self, rows: Tensor, gradient: Tensor, *, of_input: bool) -> Tensor:
        _, height, width, _ = self._plane_of(self.units)
        upstream = gradient.to(self.compute_dtype).view(-1, height, width, self.width).permute(0, 3, 1, 2)
        weight = self.weight.detach().to(self.compute_dtype).contiguous(memory_format=torch.channels_last)
        sides = [self.stride] * 2, [self.padding] * 2, [1, 1]
        found = torch.ops.aten.convolution_backward(
            *(upstream, self.read(rows.detach()), weight, None, *sides, False, [0, 0], self.options.groups),
            output_mask=[of_input, not of_input, False],
        )
        wanted: Tensor = found[0] if of_input else found[1]
        return wanted

    def _sum(self, gradient: Tensor) -> Tensor:
        """(n, num_units) -> (channels,)."""
        return gradient.view(-1, self.width).sum(dim=0).to(self.bias.dtype)

    def read(self, rows: Tensor) -> Tensor:
        """Rows (n, in_features) as planes (n, channels, height, width) in channels_last, to be multiplied."""
        return self._as_planes(rows.to(self.compute_dtype))

    def _as_planes(self, rows: Tensor) -> Tensor:
        planes = self._view_planes(rows)
        if not self._leaves_out:
            return planes
        read = planes[:, :, :: self.options.stride, :: self.options.stride]
        return read.contiguous(memory_format=torch.channels_last)

    @property
    def _leaves_out(self) -> bool:
        """Whether there are places that no unit reads, which are then left out before the product.

        oneDNN writes beyond its memory in the gradient of weights of 1 x 1 with a stride, where few channels are read:
        at best, the process ends (oneDNN issue 6035).
        """
        return self.options.kernel == 1 and self.options.stride > 1

    @property
    def stride(self) -> int:
        """Places from one unit to the next, of those places that are not left out."""
        return 1 if self._leaves_out else self.options.stride

    def _view_planes(self, rows: Tensor) -> Tensor:
        before, height, width, after = self._plane_of(self.shape.reads)
        planes = rows.view(-1, before, height, width, after)
        if before == 1:
            return planes.squeeze(1).permute(0, 3, 1, 2)
        channels = planes.permute(0, 2, 3, 1, 4).flatten(3)  # a copy, of the few channels of an image
        return channels.permute(0, 3, 1, 2)

    @staticmethod
    def _plane_of(activations: Activations) -> tuple[int, int, int, int]:
        assert activations.plane is not None, "`units_of` sees to it"
        return activations.plane

    @property
    def padding(self) -> int:
        """Places added at each side of the plane: with an odd kernel and a stride of 1, it keeps its size."""
        return self.options.kernel // 2

    # --- what a local classifier reads

    @property
    def summary_names(self) -> frozenset[str]:
        """The parameters of the local classifier's hidden layers."""
        return frozenset(name for name, _ in self.named_parameters() if name.startswith("head."))

    @property
    def num_summarised(self) -> int:
        """Channels times parts of the plane."""
        if self.head is not None:
            return self.head.num_summarised
        rows, columns = self._parts
        return rows * columns * self.width

    def summarise(self, activities: Tensor, *, keep: bool = False) -> list[Tensor]:
        """The average of each channel over 2 x 2 parts of the plane: (n, num_summarised) in the weights' type.

        It is that of the activities, or of what the hidden layers of a local classifier make of them.
        """
        if self.head is not None:
            return self.head.read(activities, keep=keep)
        (rows, columns), (_, height, width, _) = self._parts, self._plane_of(self.units)
        planes = activities.view(-1, height, width, self.width).permute(0, 3, 1, 2)
        averages = by_place(F.avg_pool2d(planes, (height // rows, width // columns)))
        return [averages.flatten(1).to(self.mean_activity.dtype)]

    def through_summary_(
        self, activities: Tensor, gradient: Tensor, kept: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient of a part's average is the same for all places of the part."""
        if self.head is not None:
            by_average, found = self.head.differentiate(gradient, kept)
            return self.head.spread_(activities, by_average), {f"head.{name}": v for name, v in found.items()}
        cut, (rows, columns) = self._cut(activities), self._parts
        by_part = gradient.div(cut.shape[2] * cut.shape[4])
        keep_where_active_(cut, by_part.view(-1, rows, 1, columns, 1, self.width))
        return activities, {}

    def _cut(self, activities: Tensor) -> Tensor:
        """Activities as (n, parts, places, parts, places, channels), a view."""
        rows, columns = self._parts
        _, height, width, _ = self._plane_of(self.units)
        return activities.view(-1, rows, height // rows, columns, width // columns, self.width)

    @property
    def _parts(self) -> tuple[int, int]:
        """Parts of the plane along its height and its width; a side that cannot be halved is one part."""
        _, height, width, _ = self._plane_of(self.units)
        parts = [1 if side % _SUMMARY_SIDE else _SUMMARY_SIDE for side in (height, width)]
        return parts[0], parts[1]

    # --- what a similarity term compares

    def outline(self, activities: Tensor) -> list[Tensor]:
        """The spread of each channel over places, less the mean of these: (n, channels) in the weights' type.

        It says what a sample has somewhere, wherever that is (Nokland and Eidnes 2019, section 2.2). Spreads are never
        negative, so that only what is left without their mean has a direction of its own. Spread and mean of each
        channel follow.
        """
        places = activities.unflatten(1, (-1, self.width))
        # A product with ones is the fastest sum over places, in bfloat16 above all; it sums in float32.
        share = places.new_full((1, 1, 1), 1 / self._num_places).expand(len(places), 1, self._num_places)
        mean, squares = (
            torch.bmm(share, each).squeeze(1).to(self.mean_activity.dtype) for each in (places, places.square())
        )
        spread = squares.addcmul_(mean, mean, value=-1).clamp_(min=0).add_(_LEAST_VARIANCE).sqrt_()
        return [spread - spread.mean(dim=1, keepdim=True), spread, mean]

    def through_outline_(self, activities: Tensor, gradient: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The derivative of a spread by the activity h of a place is (h - mean) / (places * spread)."""
        spread, mean = kept
        slope = (gradient - gradient.mean(dim=1, keepdim=True)).div_(spread).div_(self._num_places)
        offset = mean.mul(slope).neg_()
        places = activities.unflatten(1, (-1, self.width))
        slopes = torch.addcmul(offset.to(places.dtype).unsqueeze(1), slope.to(places.dtype).unsqueeze(1), places)
        keep_where_active_(places, slopes)
        return activities

    # --- what it hands on

    def collect_handed(self, preactivations: Tensor) -> Tensor:
        """The pooled activities of each place, (n, places * channels)."""
        activate = self.activate if self.workspace is None else self.activate_
        _, height, width, _ = self._plane_of(self.units)
        planes = activate(preactivations).view(-1, height, width, self.width)
        if self.options.pool > 1:
            pool = F.max_pool2d if self.options.pooling == "max" else F.avg_pool2d
            planes = by_place(pool(planes.permute(0, 3, 1, 2), self.options.pool))
        return planes.flatten(1)


def _options_of(shape: LayerShape) -> ConvOptions:
    return shape.options if shape.options is not None else ConvOptions()
