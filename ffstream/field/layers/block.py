"""The block: several convolutions that are trained together, by one loss on the activities of the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffstream.field.layers.base import Layer
from ffstream.field.layers.conv import Conv, ConvOptions
from ffstream.field.layers.plain import call
from ffstream.field.layers.planes import by_place
from ffstream.field.layers.shape import Activations, LayerShape
from ffstream.settings.limits import setting

_LEAST_VARIANCE = 1e-5  # added to what is divided by


@dataclass(frozen=True)
class BlockOptions(ConvOptions):
    """The settings of a block, for each block; a stride is that of its first convolution."""

    layers: int = setting(2, "Convolutions that are trained together.", at_least=2, at_most=99)


class Block(Conv):
    """z = w(W_k) * x_{k-1} + b, where x_i = relu(scale_i * n(w(W_i) * x_{i-1}) + shift_i) and x_0 is what it reads.

    The gradient passes through all convolutions of the block and ends at what it reads: inside a block this is
    backpropagation, not layer-local learning. Everything else of a block is as of a convolution that has its last
    activities.

    n gives each sample a mean of 0 and a spread of 1 (a group norm of one group), so that parts of a batch give the
    update of the whole. w does the same for the weights of each channel (Qiao et al. 2019, eq. 7), but for those of the
    first convolution: the others read activities that are never negative, and weights that sum to 0 are blind to what
    all of them have in common. The convolutions run in `compute_dtype`, all else in the weights' type.
    """

    tileable = False  # every convolution of a block reads all channels of the one before
    noun = "block"

    def __init__(self, shape: LayerShape, compute_dtype: torch.dtype = torch.float32) -> None:
        """`weight` is that of the first convolution; those of the others are `weight_1`, `weight_2`, …"""
        super().__init__(shape, compute_dtype)
        self.num_inner = _options_of(shape).layers - 1
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()  # they have the parameters of a loaded layer
        kernel, num_read = self.options.kernel, self.width // self.options.groups
        for number in range(self.num_inner):
            self.register_parameter(f"scale_{number}", nn.Parameter(torch.ones(self.width)))
            self.register_parameter(f"shift_{number}", nn.Parameter(torch.zeros(self.width)))
            weight = torch.empty(self.width, num_read, kernel, kernel, dtype=torch.float32)
            self.register_parameter(f"weight_{number + 1}", nn.Parameter(weight))

    @classmethod
    def units_of(cls, shape: LayerShape) -> Activations:
        """Channels at every place of the last convolution. Raises ConfigError as a convolution does."""
        options, units = _options_of(shape), super().units_of(shape)
        assert units.plane is not None, "those of a convolution have places"
        grown = (options.layers - 1) * (1 - options.kernel % 2)  # a side grows by one place where a kernel is even
        return Activations.of_places(units.plane[1] + grown, units.plane[2] + grown, shape.width)

    def initialise(self, generator: torch.Generator) -> None:
        """W ~ N(0, 2 / fan-in), as in a convolution; what is standardised keeps this spread."""
        super().initialise(generator)
        with torch.no_grad():
            for number in range(1, self.num_inner + 1):
                weight = self.get_parameter(f"weight_{number}")
                weight.normal_(0.0, (2 / weight[0].numel()) ** 0.5, generator=generator)

    def preactivations(self, rows: Tensor) -> Tensor:
        """(n, in_features) -> (n, num_units), in the type that those of a convolution have."""
        if self.convs:
            return self._call_plain(rows)
        current = self.read(rows)
        for number in range(self.num_inner + 1):
            weight = self._find_weight(number).to(self.compute_dtype).contiguous(memory_format=torch.channels_last)
            bias = self.bias.to(self.compute_dtype) if number == self.num_inner else None
            current = F.conv2d(current, weight, bias, self._strides[number], self.padding, 1, self.options.groups)
            if number < self.num_inner:
                scale, shift = (self.get_parameter(f"{name}_{number}") for name in ("scale", "shift"))
                normalised = F.group_norm(current.to(self.bias.dtype), 1, scale, shift, _LEAST_VARIANCE)
                current = torch.relu(normalised).to(self.compute_dtype)
        return by_place(current).flatten(1).to(self.unit_dtype)

    def _find_weight(self, number: int) -> Tensor:
        """The weights of a convolution as they are multiplied by."""
        if number == 0:
            return self.weight
        weight = self.get_parameter(f"weight_{number}")
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = (variance + _LEAST_VARIANCE).rsqrt() * float((2 / weight[0].numel()) ** 0.5)
        return (weight - mean) * scale

    @property
    def _strides(self) -> list[int]:
        return [self.stride] + [1] * self.num_inner

    def gradients(
        self, rows: Tensor, gradient: Tensor, total: Tensor | None = None
    ) -> Iterator[tuple[str, slice, Tensor]]:
        """By autograd, through all convolutions of the block."""
        return Layer.gradients(self, rows, gradient, total)

    def input_gradients(self, rows: Tensor, gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """By autograd, through all convolutions of the block."""
        return Layer.input_gradients(self, rows, gradient)

    def make_plain(self) -> None:
        """Each of `convs`, an `nn.Conv2d`, has w(W); `norms`, `nn.GroupNorm`s, are n, scale and shift."""
        if self.head is not None:
            self.head.make_plain()
        if type(self).preactivations is not Block.preactivations:
            return
        num_read = self.shape.reads.num_channels
        for number, stride in enumerate(self._strides):
            conv = nn.Conv2d(
                *(num_read if number == 0 else self.width, self.width, self.options.kernel, stride),
                padding=self.padding,
                groups=self.options.groups,
                bias=number == self.num_inner,
                device="meta",  # where no random numbers are drawn
            )
            conv.weight = self.weight if number == 0 else nn.Parameter(self._find_weight(number).detach())
            self.convs.append(conv)
            if number == self.num_inner:
                conv.bias = self.bias
                break
            norm = nn.GroupNorm(1, self.width, eps=_LEAST_VARIANCE, device="meta")
            norm.weight, norm.bias = (self.get_parameter(f"{name}_{number}") for name in ("scale", "shift"))
            self.norms.append(norm)
        own = [name for name, _ in self.named_parameters(recurse=False) if name != "label_embedding"]
        for name in own:
            delattr(self, name)

    def _call_plain(self, rows: Tensor) -> Tensor:
        current = self._as_planes(rows.to(self.mean_activity.dtype))
        for conv, norm in zip(self.convs, self.norms, strict=False):
            current = torch.relu(norm(call(conv, current, self.compute_dtype)))
        return by_place(call(self.convs[-1], current, self.compute_dtype)).flatten(1)


def _options_of(shape: LayerShape) -> BlockOptions:
    return shape.options if shape.options is not None else BlockOptions()
