"""Where the shards of an activation cache live; here, the tiers in memory.

The caches here do as they are told, on the caller's thread; `transfer.py` decides when and on which thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ffstream.cache.layout import CacheLayout


class ActivationCache(ABC):
    """Shards of rows as the layout says that they are stored, each stored once and read many times."""

    layout: CacheLayout

    @abstractmethod
    def missing(self) -> list[int]:
        """The shards that are not stored, or are freed, in ascending order."""

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
        """Make a stored shard outlive the process and a loss of power, where the tier can."""

    def allocate(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard's own memory where that lies on `device`, to be filled in place, else None: then it is stored."""
        return None

    def resident(self, shard: int, device: torch.device) -> Tensor | None:
        """The shard itself where it already lies on `device`, else None: then it is loaded."""
        return None


class MemoryCache(ActivationCache):
    """Shards as tensors on one device: the device tier and the host tier."""

    def __init__(self, layout: CacheLayout, device: torch.device) -> None:
        self.layout = layout
        self._device = device
        self._shards: dict[int, Tensor] = {}

    def missing(self) -> list[int]:
        """The shards that are not there."""
        return [shard for shard in range(self.layout.num_shards) if shard not in self._shards]

    def allocate(self, shard: int, device: torch.device) -> Tensor | None:
        """Memory for the shard, when `device` is this tier's."""
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
        """The shard itself, when `device` is this tier's."""
        return self._shards[shard] if device == self._device else None

    def free(self, shard: int) -> None:
        """Free the tensor."""
        self._shards.pop(shard, None)

    def drop(self) -> None:
        """Free the tensors."""
        self._shards.clear()
