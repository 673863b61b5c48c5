"""Moves shards between caches and the device while it computes. The only file that uses streams and events.

There are two slots in each direction, used in turn. Three threads work beside the computation, each on one task after
another:

    reader     loads the next shard into a slot on the host and, for an accelerator, copies it there on a side stream
    writer     stores the shards that were computed, one shard behind the computation
    committer  makes stored shards durable, and carries out other actions that must come after them

Events order the uses of a slot on an accelerator:

    copied     the last copy between the slot's host and device memory has ended: the source may be overwritten
    consumed   the computation on the slot's device memory has ended: a copy may overwrite it

Rows in 8 bits are moved in their stored form. On the device that computes, they are decoded into a buffer of one shard,
and coded from another such buffer.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

import torch
from torch import Tensor

from ffstream.cache import ActivationCache, CacheLayout, decode_, encode_
from ffstream.cache.pinned import allocate_host, has_side_streams
from ffstream.device.accelerator import Accelerator, Stream, find_accelerator
from ffstream.device.workspace import Buffer, Workspace
from ffstream.ground.interrupts import check_interrupts
from ffstream.ground.stopwatch import Stopwatch

NUM_SLOTS = 2  # in each direction
_SHARD = Buffer("shard", "slots")  # a shard of decoded rows, if rows are stored in eight bits

# Nouns of the stopwatch: what the computing thread waits for.
READING, WRITING, SYNCING = "waiting for data", "waiting to store", "waiting for the disk"


class Transfer:
    """Moves shards between caches and one device. A context manager: leaving it ends its threads.

    At most `max_unsynced` shards are stored but not yet durable, any number if it is None. With 1, the disk holds at
    most one shard more than the cache. `on_unpinned` is called, at most once, if the system refuses to pin the host
    memory of a slot.
    """

    def __init__(
        self,
        device: torch.device,
        max_unsynced: int | None = None,
        on_unpinned: Callable[[], None] | None = None,
    ) -> None:
        self.device = device
        self.stopwatch = Stopwatch()  # what the computing thread waits for
        self._max_unsynced = max_unsynced
        self._on_unpinned = on_unpinned
        self._read_slots = [_Slot(device) for _ in range(NUM_SLOTS)]
        self._write_slots = [_Slot(device) for _ in range(NUM_SLOTS)]
        self._decoded, self._to_code = Workspace(device), Workspace(device)
        self._writes: deque[Future[None]] = deque()  # at most NUM_SLOTS
        self._commits: deque[Future[None]] = deque()
        self._failed = False
        names = ("reader", "writer", "committer")  # a thread starts when it is first given work
        self._reader, self._writer, self._committer = (
            ThreadPoolExecutor(1, thread_name_prefix=f"ffstream-{name}", initializer=self._prepare_thread)
            for name in names
        )

    def _prepare_thread(self) -> None:
        accelerator = find_accelerator(self.device)
        if accelerator is not None:
            accelerator.set_for_thread(self.device)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for executor in (self._reader, self._writer, self._committer):
            executor.shutdown(wait=True)  # all that was submitted is still carried out
        for slot in (*self._read_slots, *self._write_slots):
            slot.free()
        for buffers in (self._decoded, self._to_code):  # the threads refer to this object, which lives on for a while
            buffers.clear()
        if kind is None:
            self.finish()

    # --- to the device

    def blocks(self, cache: ActivationCache, order: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (shard, rows on the device) in the given order. `rows` is valid until the next shard is asked for."""
        if order and cache.resident(order[0], self.device) is not None:
            for shard in order:
                check_interrupts()
                rows = cache.resident(shard, self.device)
                assert rows is not None
                yield shard, self._decode(cache.layout, shard, rows)
        else:
            yield from self._staged_blocks(cache, order)

    def _staged_blocks(self, cache: ActivationCache, order: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        slots = self._read_slots
        for slot in slots[: len(order)]:
            self._reserve(slot, cache.layout.shard_bytes)
        pending = self._fill(slots[0], cache, order[0]) if order else None
        try:
            for position, shard in enumerate(order):
                check_interrupts()
                assert pending is not None
                slot = slots[position % NUM_SLOTS]
                with self.stopwatch.lap(READING):
                    rows, pending = pending.result(), None
                if position + 1 < len(order):
                    following = slots[(position + 1) % NUM_SLOTS]
                    pending = self._fill(following, cache, order[position + 1])
                slot.await_copy()
                yield shard, self._decode(cache.layout, shard, rows)
        finally:
            if pending is not None:  # the caller stopped early: the slots must be free for the next reading
                wait([pending])

    def _fill(self, slot: _Slot, cache: ActivationCache, shard: int) -> Future[Tensor]:
        """Let the reading thread fill a slot, on which the computation is queued as far as it will be."""
        slot.release()  # here and not after the block: a caller need not come back after the last block that it takes
        return self._reader.submit(slot.fill, cache, shard)

    # --- from the device

    @contextlib.contextmanager
    def storing(self, cache: ActivationCache, shard: int, then: Callable[[], None] | None = None) -> Iterator[Tensor]:
        """Yield memory on the device in which to compute a shard; on leaving, the shard is handed over to the cache.

        `then` is called, perhaps later and on another thread, once the shard is durable.
        """
        check_interrupts()
        stored = cache.allocate(shard, self.device)
        if stored is not None:
            with self._coding(cache.layout, shard, stored) as rows:
                yield rows
            if then is not None:
                then()
            return
        if len(self._writes) == NUM_SLOTS:
            with self.stopwatch.lap(WRITING):
                self._writes.popleft().result()
        slot = self._write_slots[0]
        self._reserve(slot, cache.layout.shard_bytes)
        with self._coding(cache.layout, shard, slot.take(cache.layout, shard)) as rows:
            yield rows
        while self._max_unsynced is not None and len(self._commits) >= self._max_unsynced:
            self.await_commit(self._commits.popleft())
        slot.send()
        self._write_slots.append(self._write_slots.pop(0))
        written = self._writer.submit(slot.drain, cache, shard)
        self._writes.append(written)

        def commit() -> None:
            written.result()
            cache.sync(shard)
            if then is not None:
                then()

        self.commit(commit)

    def flush(self) -> None:
        """Wait until every shard handed over can be read back, and free the slots. Raises an error of a write."""
        while self._writes:
            with self.stopwatch.lap(WRITING):
                self._writes.popleft().result()
        for slot in self._write_slots:
            slot.free()
        self._to_code.clear()

    def _reserve(self, slot: _Slot, num_bytes: int) -> None:
        slot.reserve(num_bytes)
        if self._on_unpinned is not None and not slot.is_as_wanted:
            self._on_unpinned()
            self._on_unpinned = None

    def release(self) -> None:
        """Free the memory that is kept for reading. To be called only while nothing is being read."""
        for slot in self._read_slots:
            slot.free()
        self._decoded.clear()

    # --- in 8 bits

    def _decode(self, layout: CacheLayout, shard: int, stored: Tensor) -> Tensor:
        if not layout.is_coded:
            return stored
        return decode_(_take_shard(self._decoded, layout, shard), stored, layout.carried)

    @contextlib.contextmanager
    def _coding(self, layout: CacheLayout, shard: int, stored: Tensor) -> Iterator[Tensor]:
        """Yield memory in which to compute a shard; on leaving, `stored` holds the shard in its stored form."""
        if not layout.is_coded:
            yield stored
            return
        rows = _take_shard(self._to_code, layout, shard)
        yield rows
        encode_(stored, rows, layout.carried)

    # --- durable

    def commit(self, action: Callable[[], object]) -> Future[None]:
        """Carry out `action` after every action that was handed over before it, and only if all of those succeeded.

        The future that is returned is done once `action` has run or was skipped. Raises the error of an earlier action.
        """
        check_interrupts()
        while self._commits and self._commits[0].done():
            self._commits.popleft().result()
        self._commits.append(self._committer.submit(self._carry_out, action))
        return self._commits[-1]

    def finish(self) -> None:
        """Wait until all that was handed over is durable. Raises the error of what failed."""
        self.flush()
        while self._commits:
            self.await_commit(self._commits.popleft())

    def await_commit(self, commit: Future[None]) -> None:
        """Wait for a future that `commit` returned. Raises the error of its action."""
        with self.stopwatch.lap(SYNCING):
            commit.result()

    def _carry_out(self, action: Callable[[], object]) -> None:
        if self._failed:
            return
        self._failed = True
        action()
        self._failed = False


class _Slot:
    """Memory for one shard on the host and, on an accelerator, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._accelerator = find_accelerator(device)
        self._host_bytes = self._device_bytes = torch.empty(0, dtype=torch.uint8)
        self._host = self._rows = self._host_bytes
        # Without side streams, copies are made in the order of the computation, and the host waits for them.
        self._order = _Order(self._accelerator, device) if has_side_streams(self._accelerator) else None

    def reserve(self, num_bytes: int) -> None:
        """Make room for a shard of that size; what the slot held before may be lost."""
        if len(self._host_bytes) >= num_bytes:
            return
        self.free()
        if self._accelerator is not None:
            self._device_bytes = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._host_bytes = allocate_host(num_bytes, self._accelerator)

    def free(self) -> None:
        """Free the memory at once, although another thread may still refer to the slot for a moment.

        What is queued on the computing stream comes before what that stream does with the memory later. A copy on the
        side stream does not.
        """
        if self._order is not None and len(self._device_bytes):  # else there is nothing that a copy could use
            self._order.copied.synchronize()
        self._host = self._rows = self._host_bytes = self._device_bytes = torch.empty(0, dtype=torch.uint8)

    @property
    def is_as_wanted(self) -> bool:
        """Whether the host memory is pinned, or need not be, as there is no copy to a device."""
        return self._order is None or self._host_bytes.is_pinned()

    def take(self, layout: CacheLayout, shard: int) -> Tensor:
        """The reserved memory on the device, in the shape of a shard as it is stored."""
        shape, dtype = layout.stored_shape(shard), layout.stored_dtype
        num_bytes = math.prod(shape) * dtype.itemsize
        self._host = self._host_bytes[:num_bytes].view(dtype).view(shape)
        is_apart = self._accelerator is not None
        self._rows = self._device_bytes[:num_bytes].view(dtype).view(shape) if is_apart else self._host
        return self._rows

    def fill(self, cache: ActivationCache, shard: int) -> Tensor:
        """Load a shard and, on an accelerator, start its copy to the device. Called on the reading thread."""
        if self._order is not None:
            self._order.copied.synchronize()  # the host's memory may still be the source of the last copy
        rows = self.take(cache.layout, shard)
        cache.load(shard, self._host)
        if self._order is not None:
            with self._order.copying():
                self._order.stream.wait_event(self._order.consumed)
                rows.copy_(self._host, non_blocking=True)
                self._order.copied.record(self._order.stream)
        elif self._accelerator is not None:
            rows.copy_(self._host)
        return rows

    def await_copy(self) -> None:
        """Make the computing stream wait for the copy to the device; the host does not wait."""
        if self._order is not None:
            self._order.computing_stream().wait_event(self._order.copied)

    def release(self) -> None:
        """Make later copies into this slot wait for the computation on it, which is queued by now."""
        if self._order is not None:
            self._order.consumed.record(self._order.computing_stream())

    def send(self) -> None:
        """On an accelerator, start the copy of what was computed to the host."""
        if self._order is not None:
            self._order.consumed.record(self._order.computing_stream())
            with self._order.copying():
                self._order.stream.wait_event(self._order.consumed)
                self._host.copy_(self._rows, non_blocking=True)
                self._order.copied.record(self._order.stream)
        elif self._accelerator is not None:
            self._host.copy_(self._rows)

    def drain(self, cache: ActivationCache, shard: int) -> None:
        """Store the shard that `send` was called for. Called on the writing thread."""
        if self._order is not None:
            self._order.copied.synchronize()
        cache.store(shard, self._host)


class _Order:
    """The side stream of a slot, and the events that order it with the computation."""

    def __init__(self, accelerator: Accelerator, device: torch.device) -> None:
        self._accelerator, self._device = accelerator, device
        self.stream = accelerator.make_stream(device)
        self.copied, self.consumed = accelerator.make_event(device), accelerator.make_event(device)

    def computing_stream(self) -> Stream:
        """The stream of the computation: the current one of the thread that asks."""
        return self._accelerator.current_stream(self._device)

    def copying(self) -> contextlib.AbstractContextManager[object]:
        """Queue the copies of a block on the side stream."""
        return self._accelerator.queueing_on(self.stream)


def _take_shard(buffers: Workspace, layout: CacheLayout, shard: int) -> Tensor:
    """Memory for a shard of decoded rows, with room for the largest, which is the first: it never has to grow."""
    return buffers.take(_SHARD, layout.shard_shape(0), layout.dtype)[: layout.shard_shape(shard)[0]]
