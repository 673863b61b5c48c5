"""Layer kinds, by name."""

from ffstream.field.layers.base import Layer, cut_units
from ffstream.field.layers.block import Block, BlockOptions
from ffstream.field.layers.conv import Conv, ConvOptions
from ffstream.field.layers.linear import Linear, LinearOptions
from ffstream.field.layers.local import Local, LocalOptions
from ffstream.field.layers.mode import Mode
from ffstream.field.layers.shape import Activations, LayerShape, UnitAxis
from ffstream.ground.registry import Registry

LAYER_KINDS: Registry[type[Layer]] = Registry("layer kind", "network.kind", keeps_classes=True)
LAYER_KINDS.register("linear", Linear, settings=LinearOptions)
LAYER_KINDS.register("local", Local, settings=LocalOptions)
LAYER_KINDS.register("conv", Conv, settings=ConvOptions)
LAYER_KINDS.register("block", Block, settings=BlockOptions)

__all__ = [
    "LAYER_KINDS",
    "Activations",
    "Block",
    "BlockOptions",
    "Conv",
    "ConvOptions",
    "Layer",
    "LayerShape",
    "Linear",
    "LinearOptions",
    "Local",
    "LocalOptions",
    "Mode",
    "UnitAxis",
    "cut_units",
]
