"""Copies between the host and a device for which the host does not wait, from and to pinned memory.

A device copies from and to pinned memory by itself; for a copy from or to other memory, the host has to wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from ffstream.device.accelerator import Accelerator, find_accelerator


def has_side_streams(accelerator: Accelerator | None) -> TypeGuard[Accelerator]:
    """Whether there is an accelerator, and copies can run beside its computation."""
    return accelerator is not None and accelerator.has_side_streams


def allocate_host(num_bytes: int, accelerator: Accelerator | None) -> Tensor:
    """Bytes on the host; for an accelerator, pinned if the system allows it, so that copies run beside its work."""
    if accelerator is not None:
        try:
            return accelerator.allocate_pinned(num_bytes)
        except RuntimeError:  # the limit on locked memory; pageable memory copies more slowly but as correctly
            pass
    return torch.empty(num_bytes, dtype=torch.uint8)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, for what is queued from here on. The host does not wait for the copy."""
    accelerator = find_accelerator(device)
    if not has_side_streams(accelerator):
        return tensor.to(device)
    source = allocate_host(tensor.nbytes, accelerator).view(tensor.dtype).view(tensor.shape)
    return source.copy_(tensor).to(device, non_blocking=True)


def all_to_device(tensors: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """The same for tensors that differ only in their length, by one copy."""
    if find_accelerator(device) is None:
        return tensors
    parts: Sequence[Tensor] = to_device(torch.cat(list(tensors)), device).split([len(tensor) for tensor in tensors])
    return parts


class Gathering:
    """Rows on the host that a device computes, some at a time. The host waits for the device once, at the end.

    Memory for all rows is allocated on the host when the first of them come.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._num_rows, self._device = num_rows, device
        self._accelerator = find_accelerator(device)
        self._rows: Tensor | None = None

    def put(self, start: int, rows: Tensor) -> None:
        """Let the rows from `start` on be these, (n, ...) on the device, as they are once what is queued is done."""
        if self._rows is None:
            shape = self._num_rows, *rows.shape[1:]
            num_bytes = math.prod(shape) * rows.dtype.itemsize
            self._rows = allocate_host(num_bytes, self._accelerator).view(rows.dtype).view(shape)
        self._rows[start : start + len(rows)].copy_(rows.contiguous(), non_blocking=True)

    def finish(self) -> Tensor:
        """All rows, (num_rows, ...); an empty tensor if none came."""
        if self._accelerator is not None:
            self._accelerator.synchronise(self._device)
        return torch.empty(0) if self._rows is None else self._rows
