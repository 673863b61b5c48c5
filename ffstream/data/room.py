"""Accounts for the memory that data may take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffstream.device.memory import host_free_bytes, is_out_of_memory
from ffstream.errors import BudgetError
from ffstream.ground.units import format_bytes


class Room:
    """The memory that is left for data: at first `room_bytes`, or by default what this machine has free."""

    def __init__(self, room_bytes: int | None = None) -> None:
        self._left_bytes = max(0, host_free_bytes() if room_bytes is None else room_bytes)

    def check(self, noun: str, num_bytes: int) -> None:
        """Raise BudgetError when less than `num_bytes` is left; `noun` begins its message."""
        if num_bytes > self._left_bytes:
            raise BudgetError(
                f"{noun}: needs {format_bytes(num_bytes)} of memory, allowed {format_bytes(self._left_bytes)}, what "
                "the host budget or this machine has left for data; use fewer or smaller images, or allow more by "
                "--host-budget"
            )

    def take(self, noun: str, num_bytes: int) -> None:
        """Take `num_bytes` off what is left. Raises BudgetError as `check` does."""
        self.check(noun, num_bytes)
        self._left_bytes -= num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Add `num_bytes`, which were taken before, to what is left."""
        self._left_bytes += num_bytes

    def allocate(self, noun: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Take the memory of a tensor and allocate the tensor, uninitialised. Raises BudgetError."""
        self.take(noun, tensor_bytes(shape, dtype))
        try:
            return torch.empty(tuple(shape), dtype=dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = format_bytes(tensor_bytes(shape, dtype))
            raise BudgetError(f"{noun}: the system has no {size} of memory; use fewer or smaller images") from error


def tensor_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """The bytes that a tensor of this shape and type takes."""
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    return num_bytes
