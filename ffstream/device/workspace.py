"""Buffers that a step uses and the next step uses again.

Memory that is allocated anew in every step is, on a CPU, given back to the system and faulted in again page by page:
half the time of a step of 1000 units.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor


class Workspace:
    """Named buffers on one device, each as large as the largest request so far, in whatever type it was."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}  # made once: each takes four operators
        self._contents: dict[str, object] = {}  # of buffers that may be taken again as they are

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of undefined content, valid until `name` is taken again."""
        self._contents.pop(name, None)
        view = self._views.get((name, shape, dtype))
        if view is not None:
            return view
        num_bytes = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < num_bytes:
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
            buffer = self._buffers[name] = torch.empty(0)  # the old one is gone before the larger one is there
            buffer = self._buffers[name] = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        view = self._views[name, shape, dtype] = buffer[:num_bytes].view(dtype).view(shape)
        return view

    def take_again(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, content: object) -> tuple[Tensor, bool]:
        """The same, to be filled with what `content` stands for, and whether it is filled with that already."""
        is_there = self._contents.get(name) == content
        tensor = self.take(name, shape, dtype)
        self._contents[name] = content
        return tensor, is_there

    def clear(self) -> None:
        """Free all buffers: what comes next has little use for them, and needs the room."""
        self._buffers.clear()
        self._views.clear()
        self._contents.clear()

    def num_bytes(self, names: Collection[str]) -> int:
        """Of the buffers of these names."""
        return sum(buffer.numel() for name, buffer in self._buffers.items() if name in names)
