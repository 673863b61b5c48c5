"""Layer kinds, by name."""

from ffstream.layers.base import Layer, cut_units
from ffstream.layers.linear import Linear
from ffstream.layers.local import Local
from ffstream.registry import Registry

LAYER_KINDS: Registry[type[Layer]] = Registry("layer kind", "network.kind")
LAYER_KINDS.register("linear", Linear)
LAYER_KINDS.register("local", Local)

__all__ = ["LAYER_KINDS", "Layer", "Linear", "Local", "cut_units"]
