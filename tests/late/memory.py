"""The memory of the late device: pieces of host memory, handed out again as soon as they are freed."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from tests.late.streams import LateStream, Queues

_POISON = 0xFF  # NaN in every floating type, and no index
_GRANULE_BYTES = 512


class Block:
    """A piece of the device's memory. It is freed when no tensor refers to it any more."""

    def __init__(self, arena: Arena, memory: Tensor, stream: LateStream) -> None:
        self.arena, self.memory, self.stream = arena, memory, stream

    def __del__(self) -> None:
        self.arena.give_back(self)


class Arena:
    """An allocator as torch's: what is freed serves the stream again that had it, without waiting for other streams.

    Its content is destroyed in the order of that stream: work that another stream still has to do on it goes wrong.
    """

    def __init__(self, queues: Queues, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = self.peak_bytes = 0
        self._queues = queues
        self._free: dict[tuple[int, LateStream], list[Tensor]] = defaultdict(list)

    def take(self, num_bytes: int, stream: LateStream) -> Block:
        """Poisoned memory, for use on a stream."""
        size = max(1, -(-num_bytes // _GRANULE_BYTES)) * _GRANULE_BYTES
        with self._queues.lock:
            if self.allocated_bytes + size > self.capacity_bytes:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
            freed = self._free[size, stream]
            memory = freed.pop() if freed else torch.full((size,), _POISON, dtype=torch.uint8, device="cpu")
            self.allocated_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        return Block(self, memory, stream)

    def give_back(self, block: Block) -> None:
        """Free a block. May be called at any time, also while a task runs; so it only queues."""

        def poison(_forced: bool, memory: Tensor = block.memory) -> bool:
            memory.fill_(_POISON)
            return True

        with self._queues.lock:
            block.stream.tasks.append(poison)
            self.allocated_bytes -= block.memory.nbytes
            self._free[block.memory.nbytes, block.stream].append(block.memory)
