"""Where the shards of an activation cache live: the interface of all tiers, and the tiers in memory.

A cache does its work at once, on the caller's thread; `transfer.py` decides when and on which thread to call it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ffstream.cache.layout import CacheLayout


class ActivationCache(ABC):
    """Shards of rows in the stored form of the layout. Each shard is stored once and read many times."""

    layout: CacheLayout

    @abstractmethod
    def missing(self) -> list[int]:
        """The shards that are not stored yet, or have been freed, in ascending order."""

    @abstractmethod
    def store(self, shard: int, rows: Tensor) -> None:
        """Keep a copy of `rows`, a host tensor."""

    @abstractmethod
    def load(self, shard: int, slot: Tensor) -> None:
        """Copy one shard into `slot`, a host tensor of its shape and type."""

    @abstractmethod
    def free(self, shard: int) -> None:
        """Forget one shard."""

    @abstractmethod
    def drop(self) -> None:
        """Forget everything."""

    def sync(self, shard: int) -> None:  # noqa: B027 - most tiers do not outlive the process
        """Make a stored shard outlive the process and a loss of power, if the tier can do so."""

    def allocate(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard's own memory, to be filled in place, if it lies on `device`; None if `store` must be called."""
        return None

    def resident(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard itself if it lies on `device`; None if `load` must be called."""
        return None


class MemoryCache(ActivationCache):
    """Shards as tensors on one device: the device tier and the host tier."""

    def __init__(self, layout: CacheLayout, device: torch.device) -> None:
        self.layout = layout
        self._device = device
        self._shards: dict[int, Tensor] = {}

    def missing(self) -> list[int]:
        """The shards that are not stored."""
        return [shard for shard in range(self.layout.num_shards) if shard not in self._shards]

    def allocate(self, shard: int, device: torch.device) -> Tensor | None:
        """New memory for the shard, if `device` is this tier's."""
        if device != self._device:
            return None
        rows = torch.empty(self.layout.stored_shape(shard), dtype=self.layout.stored_dtype, device=device)
        self._shards[shard] = rows
        return rows

    def store(self, shard: int, rows: Tensor) -> None:
        """Keep a copy on this tier's device."""
        self._shards[shard] = rows.to(self._device, copy=True)

    def load(self, shard: int, slot: Tensor) -> None:
        """Copy one shard into `slot`."""
        slot.copy_(self._shards[shard])

    def resident(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard itself, if `device` is this tier's."""
        return self._shards[shard] if device == self._device else None

    def free(self, shard: int) -> None:
        """Free the tensor of one shard."""
        self._shards.pop(shard, None)

    def drop(self) -> None:
        """Free the tensors of all shards."""
        self._shards.clear()
