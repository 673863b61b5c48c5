"""Weights in the type of the products: cast once for all products between two updates, as far as there is room."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ffstream.device.workspace import Buffer, Workspace
from ffstream.field.layers.base import cut_units

_KEPT = Buffer("kept cast", "gradient")


class CastWeights:
    """Casts the weights (num_units, features) of one layer, or of one tile.

    A cast is made anew after every change of the weights in place. No two layers share one, even if one of them is
    freed before the other is made.
    """

    def __init__(self) -> None:
        self._token = object()

    def keep(self, weight: nn.Parameter, dtype: torch.dtype, room: Workspace | None) -> Tensor | None:
        """All weights in `dtype`, in memory that no product writes to; None if `room` does not keep them."""
        if room is None or not room.keeps_cast or weight.dtype == dtype:
            return None
        return self.cast(_KEPT, weight.detach(), weight._version, dtype, room)

    def cast(self, buffer: Buffer, part: Tensor, version: int, dtype: torch.dtype, room: Workspace) -> Tensor:
        """Some of the weights in `dtype`, which stay in a buffer until that is taken for something else.

        They are cut as updates are, so that each core casts the weights that it has updated: reading them from another
        core's cache takes twice as long.
        """
        content = (self._token, part.storage_offset(), *part.shape, *part.stride(), version)
        cast, is_there = room.take_again(buffer, tuple(part.shape), dtype, content)
        for units in cut_units(0 if is_there else len(part), room.parts.gradient_units):
            cast[units].copy_(part[units])
        return cast
