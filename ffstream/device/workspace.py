"""Buffers that are reused from step to step.

On a CPU, memory that is allocated anew in every step is given back to the system and faulted in again page by page,
which takes half the time of a step of 1000 units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.device.parts import PartSizes, part_sizes


@dataclass(frozen=True, eq=False)
class Buffer:
    """Identifies a buffer that a workspace may hold. The module that fills the buffer defines it once, as a constant.

    `term` names the term of a layer's footprint that counts its bytes: rows, activities or gradient. The bytes of a
    buffer with any other term are counted in the footprint's `others`.
    """

    name: str
    term: str


# Shared by modules that do not know each other: none of them needs its buffer while another module fills it.
ACTIVITIES = Buffer("activities", "activities")  # activities of the candidates, or squares of rows to normalise
BESIDE_ROWS = Buffer("beside rows", "rows")  # as large as the rows, or smaller: a dropout mask, or a gradient


class Workspace:
    """Buffers on one device, each as large in bytes as the largest request for it so far, whatever its type.

    `parts` says in which parts those compute that use the buffers: by default, as is usual on this kind of device.
    `keeps_cast` says that there is room for all weights of a layer in the type of its products.
    """

    def __init__(self, device: torch.device, parts: PartSizes | None = None, *, keeps_cast: bool = False) -> None:
        self._device = device
        self.keeps_cast = keeps_cast
        self.parts = parts or part_sizes(device.type)
        self._buffers: dict[Buffer, Tensor] = {}
        self._views: dict[tuple[Buffer, tuple[int, ...], torch.dtype], Tensor] = {}  # of the buffers, each made once
        self._contents: dict[Buffer, object] = {}  # what buffers from `take_again` are filled with

    def take(self, buffer: Buffer, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of undefined content, valid until `buffer` is taken again."""
        self._contents.pop(buffer, None)
        view = self._views.get((buffer, shape, dtype))
        if view is not None:
            return view
        num_bytes = math.prod(shape) * dtype.itemsize
        memory = self._buffers.get(buffer)
        if memory is None or memory.numel() < num_bytes:
            self._views = {key: view for key, view in self._views.items() if key[0] is not buffer}
            memory = self._buffers[buffer] = torch.empty(0)  # frees the old memory before the larger is allocated
            memory = self._buffers[buffer] = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        view = self._views[buffer, shape, dtype] = memory[:num_bytes].view(dtype).view(shape)
        return view

    def take_again(
        self, buffer: Buffer, shape: tuple[int, ...], dtype: torch.dtype, content: object
    ) -> tuple[Tensor, bool]:
        """Like `take`, for a buffer to be filled with `content`; also returns whether it already holds that."""
        is_there = self._contents.get(buffer) == content
        tensor = self.take(buffer, shape, dtype)
        self._contents[buffer] = content
        return tensor, is_there

    def clear(self) -> None:
        """Free all buffers, for work that has little use for them and needs their memory."""
        self._buffers.clear()
        self._views.clear()
        self._contents.clear()

    def num_bytes(self, term: str) -> int:
        """Bytes of the buffers that a term counts."""
        return sum(memory.numel() for buffer, memory in self._buffers.items() if buffer.term == term)
