"""The memory of the late device: pieces of host memory, handed out again as soon as they are freed."""

from __future__ import annotations

from collections import defaultdict, deque

import torch
from torch import Tensor

from ffstream.device import caching_allocator
from ffstream.device.caching_allocator import CachingAllocator
from tests.late.streams import LateStream, Queues

_POISON = 0xFF  # NaN in every floating type, and no index
_GRANULE_BYTES = 512


class Block:
    """A piece of the device's memory. It is freed when no tensor refers to it any more."""

    def __init__(self, arena: Arena, memory: Tensor, stream: LateStream, place: caching_allocator.Block) -> None:
        self.arena, self.memory, self.stream, self.place = arena, memory, stream, place

    def __del__(self) -> None:
        self.arena.give_back(self)


class Arena:
    """An allocator as torch's: what is freed serves the stream again that had it, without waiting for other streams.

    Its content is destroyed in the order of that stream: work that another stream still has to do on it goes wrong. How
    much of a GPU it would have reserved is found by the rules of torch's allocator.
    """

    def __init__(self, queues: Queues, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.limit_bytes: int | None = None  # of what may be reserved
        self.peak_bytes = 0
        self._queues = queues
        self._free: dict[tuple[int, LateStream], list[Tensor]] = defaultdict(list)
        self._rules = CachingAllocator()
        # Freed, which the rules are not told yet: a block may be freed at any time, also while they are at work.
        self._freed: deque[caching_allocator.Block] = deque()

    @property
    def requested_bytes(self) -> int:
        """Bytes of the tensors that are alive."""
        with self._queues.lock:
            self._catch_up()
            return self._rules.requested_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are taken from the device."""
        with self._queues.lock:
            self._catch_up()
            return self._rules.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most bytes that were taken from the device at once."""
        return self._rules.peak_reserved_bytes

    def reset_peak(self) -> None:
        """Let the peaks begin anew."""
        self.peak_bytes = self.requested_bytes
        self._rules.peak_reserved_bytes = self.reserved_bytes

    def release_unused(self) -> None:
        """Give back to the device what nothing lives in."""
        with self._queues.lock:
            self._catch_up()
            self._rules.release()

    def take(self, num_bytes: int, stream: LateStream) -> Block:
        """Poisoned memory, for use on a stream."""
        size = max(1, -(-num_bytes // _GRANULE_BYTES)) * _GRANULE_BYTES
        with self._queues.lock:
            self._catch_up()
            if self._rules.requested_bytes + size > self.capacity_bytes:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
            place = self._rules.allocate(num_bytes, stream)
            if self._is_beyond_limit():
                self._rules.release()
            if self._is_beyond_limit():
                self._freed.append(place)
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes beyond the limit.")
            freed = self._free[size, stream]
            memory = freed.pop() if freed else torch.full((size,), _POISON, dtype=torch.uint8, device="cpu")
            self.peak_bytes = max(self.peak_bytes, self._rules.requested_bytes)
        return Block(self, memory, stream, place)

    def give_back(self, block: Block) -> None:
        """Free a block. May be called at any time, also while a task runs; so it only queues."""

        def poison(_forced: bool, memory: Tensor = block.memory) -> bool:
            memory.fill_(_POISON)
            return True

        with self._queues.lock:
            block.stream.tasks.append(poison)
            self._freed.append(block.place)
            self._free[block.memory.nbytes, block.stream].append(block.memory)

    def _is_beyond_limit(self) -> bool:
        return self.limit_bytes is not None and self._rules.reserved_bytes > self.limit_bytes

    def _catch_up(self) -> None:
        while self._freed:
            self._rules.free(self._freed.popleft())
