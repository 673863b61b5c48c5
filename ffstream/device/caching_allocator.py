"""How much of a GPU torch's caching allocator reserves for tensors that are made and freed in a given order. Pure.

The rules are those of torch's allocator for CUDA with its default settings (c10/cuda/CUDACachingAllocator.cpp of torch
2.9): it takes memory from the device in segments, cuts these into blocks, and keeps a segment when its blocks are free.
So it reserves more than the tensors have; the driver, and a budget, see what it reserves.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

_MIB = 1 << 20
_GRANULE_BYTES = 512  # blocks are a multiple of it
_MOST_SMALL_BYTES = _MIB  # up to which a block lies in a small segment
_SMALL_SEGMENT_BYTES = 2 * _MIB
_LARGE_SEGMENT_BYTES = 20 * _MIB  # shared by blocks of less than _LEAST_OWN_BYTES
_LEAST_OWN_BYTES = 10 * _MIB  # from which on a new block gets a segment of its own
_OWN_STEP_BYTES = 2 * _MIB  # segments of their own are a multiple of it
_MOST_LEFT_BYTES = _MIB  # of a large block, which stay uncut at its end


@dataclass(eq=False)
class Block:
    """A part of a segment: free, or the memory of one tensor."""

    pool: tuple[bool, Hashable]  # of small segments or not, and the stream whose work may use it
    size_bytes: int
    number: int  # later ones have larger numbers; stands for the address
    requested_bytes: int = 0  # 0 if it is free
    is_free: bool = True
    before: Block | None = field(default=None, repr=False)  # in the same segment
    after: Block | None = field(default=None, repr=False)

    @property
    def is_whole_segment(self) -> bool:
        """Whether it is all of its segment."""
        return self.before is None and self.after is None


class CachingAllocator:
    """The allocator of one device, without memory."""

    def __init__(self) -> None:
        self.requested_bytes = self.reserved_bytes = self.peak_reserved_bytes = 0
        self._free: dict[tuple[bool, Hashable], list[tuple[int, int, Block]]] = {}  # by pool, the smallest first
        self._num_blocks = 0

    def allocate(self, num_bytes: int, stream: Hashable = None) -> Block:
        """A block for a tensor of `num_bytes`, to be used by the work of `stream`."""
        size_bytes = _round(num_bytes)
        pool = (size_bytes <= _MOST_SMALL_BYTES, stream)
        block = self._take_free(pool, size_bytes) or self._reserve(pool, size_bytes)
        left_bytes = block.size_bytes - size_bytes
        if left_bytes >= _GRANULE_BYTES if pool[0] else left_bytes > _MOST_LEFT_BYTES:
            self._cut(block, size_bytes)
        block.is_free, block.requested_bytes = False, num_bytes
        self.requested_bytes += num_bytes
        return block

    def free(self, block: Block) -> None:
        """Let a block be used again, as one with the free blocks beside it."""
        self.requested_bytes -= block.requested_bytes
        block.is_free, block.requested_bytes = True, 0
        for beside in (block.before, block.after):
            if beside is not None and beside.is_free:
                self._forget(beside)
                self._merge(block, beside)
        self._remember(block)

    def release(self) -> None:
        """Give all segments back to the device in which nothing lives, as `empty_cache` does."""
        for pool, blocks in self._free.items():
            kept = [entry for entry in blocks if not entry[2].is_whole_segment]
            self.reserved_bytes -= sum(size for size, *_ in blocks) - sum(size for size, *_ in kept)
            self._free[pool] = kept

    def _take_free(self, pool: tuple[bool, Hashable], size_bytes: int) -> Block | None:
        """The smallest free block that is large enough, if there is one."""
        blocks = self._free.get(pool, [])
        place = bisect.bisect_left(blocks, size_bytes, key=lambda entry: entry[0])
        return blocks.pop(place)[2] if place < len(blocks) else None

    def _reserve(self, pool: tuple[bool, Hashable], size_bytes: int) -> Block:
        segment_bytes = _segment_bytes(size_bytes)
        self.reserved_bytes += segment_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return self._number(Block(pool, segment_bytes, 0))

    def _number(self, block: Block) -> Block:
        self._num_blocks += 1
        block.number = self._num_blocks
        return block

    def _cut(self, block: Block, size_bytes: int) -> None:
        rest = self._number(Block(block.pool, block.size_bytes - size_bytes, 0, before=block, after=block.after))
        if rest.after is not None:
            rest.after.before = rest
        block.size_bytes, block.after = size_bytes, rest
        self._remember(rest)

    def _merge(self, block: Block, beside: Block) -> None:
        block.size_bytes += beside.size_bytes
        if beside is block.before:
            block.number, block.before = beside.number, beside.before
            if block.before is not None:
                block.before.after = block
        else:
            block.after = beside.after
            if block.after is not None:
                block.after.before = block

    def _remember(self, block: Block) -> None:
        bisect.insort(self._free.setdefault(block.pool, []), (block.size_bytes, block.number, block))

    def _forget(self, block: Block) -> None:
        blocks = self._free[block.pool]
        del blocks[bisect.bisect_left(blocks, (block.size_bytes, block.number), key=lambda entry: entry[:2])]


def _round(num_bytes: int) -> int:
    return max(-(-num_bytes // _GRANULE_BYTES), 1) * _GRANULE_BYTES


def _segment_bytes(size_bytes: int) -> int:
    """The size of the segment that is taken from the device for a block."""
    if size_bytes <= _MOST_SMALL_BYTES:
        return _SMALL_SEGMENT_BYTES
    if size_bytes < _LEAST_OWN_BYTES:
        return _LARGE_SEGMENT_BYTES
    return -(-size_bytes // _OWN_STEP_BYTES) * _OWN_STEP_BYTES


def reserve_alike(num_bytes: int, count: int) -> int:
    """Bytes that are reserved for `count` tensors of `num_bytes` each, with nothing beside them."""
    size_bytes = _round(num_bytes)
    segment_bytes = _segment_bytes(size_bytes)
    return -(-count // (segment_bytes // size_bytes)) * segment_bytes


# What happens to the memory of a device, in order: (number of a tensor, its bytes) when it is made, (number, FREED), or
# (name, 0) when a phase begins, whose slots are not among the events: they are given when these are replayed.
Event = tuple[int | str, int]
FREED = -1


class Trace:
    """Notes the events of the tensors on a device."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._num_made = 0

    def make(self, num_bytes: int) -> int:
        """Note that a tensor was made. Returns its number."""
        self._num_made += 1
        self._events.append((self._num_made, num_bytes))
        return self._num_made

    def free(self, number: int) -> None:
        """Note that a tensor was freed."""
        self._events.append((number, FREED))

    def begin(self, phase: str) -> None:
        """Note that a phase begins."""
        self._events.append((phase, 0))

    def take(self) -> tuple[Event, ...]:
        """All events since the last call."""
        events, self._events = tuple(self._events), []
        return events


def replay(events: Iterable[Event], phases: Mapping[str, Mapping[str, int]]) -> int:
    """The most bytes that are reserved at once.

    `phases` says how many bytes each slot has to have from the begin of a phase on. A slot that is smaller is freed and
    made anew, one that is larger is kept, and one that has to have 0 bytes is freed.
    """
    allocator = CachingAllocator()
    blocks: dict[int, Block] = {}
    slots: dict[str, Block] = {}
    for key, num_bytes in events:
        if isinstance(key, str):
            for slot, size in phases.get(key, {}).items():
                if slot in slots and (size == 0 or size > slots[slot].requested_bytes):
                    allocator.free(slots.pop(slot))
                if size and slot not in slots:
                    slots[slot] = allocator.allocate(size)
        elif num_bytes != FREED:
            blocks[key] = allocator.allocate(num_bytes)
        elif key in blocks:  # else it was made before the first event
            allocator.free(blocks.pop(key))
    return allocator.peak_reserved_bytes
