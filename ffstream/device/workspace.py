"""Buffers that a step uses and the next step uses again.

Memory that is allocated anew in every step is, on a CPU, given back to the system and faulted in again page by page:
half the time of a step of 1000 units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Buffer:
    """A buffer that a workspace may hold. Whoever fills it makes one, once, as a constant of its module.

    `term` names the part of a layer's footprint to which its bytes are counted: rows, activities or gradient; what has
    another term is counted among the others.
    """

    name: str
    term: str


# Shared by files that know nothing of each other, as none of them needs its buffer while another is filled.
ACTIVITIES = Buffer("activities", "activities")  # of the candidates; squares of what is handed on
BESIDE_ROWS = Buffer("beside rows", "rows")  # as large as rows, or some of them: a mask, or a gradient


class Workspace:
    """Buffers on one device, each as large as the largest request so far, in whatever type it was."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[Buffer, Tensor] = {}
        self._views: dict[tuple[Buffer, tuple[int, ...], torch.dtype], Tensor] = {}  # made once
        self._contents: dict[Buffer, object] = {}  # of buffers that may be taken again as they are

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
            memory = self._buffers[buffer] = torch.empty(0)  # the old one is gone before the larger one is there
            memory = self._buffers[buffer] = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        view = self._views[buffer, shape, dtype] = memory[:num_bytes].view(dtype).view(shape)
        return view

    def take_again(
        self, buffer: Buffer, shape: tuple[int, ...], dtype: torch.dtype, content: object
    ) -> tuple[Tensor, bool]:
        """The same, to be filled with what `content` stands for, and whether it is filled with that already."""
        is_there = self._contents.get(buffer) == content
        tensor = self.take(buffer, shape, dtype)
        self._contents[buffer] = content
        return tensor, is_there

    def clear(self) -> None:
        """Free all buffers: what comes next has little use for them, and needs the room."""
        self._buffers.clear()
        self._views.clear()
        self._contents.clear()

    def num_bytes(self, term: str) -> int:
        """Bytes of the buffers that are counted to a term."""
        return sum(memory.numel() for buffer, memory in self._buffers.items() if buffer.term == term)
