"""Bringing shards to the device, one ahead of the computation. The only file that knows streams and pinned memory.

Two slots a side are allocated once and used in turn. On another thread a shard is read into a host slot and, on CUDA,
copied from there (pinned) into a device slot on a side stream. Events order the two uses of a slot:

    copied[i]    the copy into device slot i has ended: the computation may start, the host slot may be refilled
    consumed[i]  the computation on device slot i has ended: the slot may be overwritten
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from ffstream.cache import ActivationCache

_NUM_SLOTS = 2


class BlockStream:
    """Iterates over the shards of one cache on `device`. A context manager: leaving it ends the reading thread."""

    def __init__(self, cache: ActivationCache, device: torch.device) -> None:
        self._cache = cache
        self._device = device
        self._reader: ThreadPoolExecutor | None = None
        self._slots: list[_Slot] = []

    def __enter__(self) -> BlockStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.shutdown(wait=True)

    def blocks(self, order: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (shard, rows) in the given order. `rows` is valid until the next one is asked for."""
        if order and self._cache.resident(order[0], self._device) is not None:
            for shard in order:
                rows = self._cache.resident(shard, self._device)
                assert rows is not None
                yield shard, rows
            return
        yield from self._staged_blocks(order)

    def _staged_blocks(self, order: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="ffstream-cache-reader")
            self._slots = [_Slot(self._cache, self._device) for _ in range(_NUM_SLOTS)]
        reader, slots = self._reader, self._slots
        pending: Future[Tensor] | None = reader.submit(slots[0].fill, order[0]) if order else None
        for position, shard in enumerate(order):
            assert pending is not None
            slot = slots[position % _NUM_SLOTS]
            rows = pending.result()
            pending = None
            if position + 1 < len(order):
                following = slots[(position + 1) % _NUM_SLOTS]
                pending = reader.submit(following.fill, order[position + 1])
            slot.await_copy()
            yield shard, rows
            slot.release()


class _Slot:
    """Room for one shard on the host and, when that is elsewhere, on the device."""

    def __init__(self, cache: ActivationCache, device: torch.device) -> None:
        self._cache = cache
        shape, dtype = cache.layout.shard_shape(0), cache.layout.dtype
        self._cuda = device.type == "cuda"
        self._host = _allocate_host(shape, dtype, pinned=self._cuda)
        if self._cuda:
            self._device_rows = torch.empty(shape, dtype=dtype, device=device)
            self._stream = torch.cuda.Stream(device)
            self._copied = torch.cuda.Event()
            self._consumed = torch.cuda.Event()
            # What the caching allocator hands out may still be in use on the stream that computes.
            self._consumed.record(torch.cuda.current_stream(device))

    def fill(self, shard: int) -> Tensor:
        """Read a shard and, on CUDA, start its copy. Called on the reading thread."""
        num_samples = self._cache.layout.shard_shape(shard)[0]
        host = self._host[:num_samples]
        if not self._cuda:
            self._cache.read_into(shard, host)
            return host
        self._copied.synchronize()  # the host slot may still be the source of the last copy
        self._cache.read_into(shard, host)
        rows = self._device_rows[:num_samples]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._consumed)
            rows.copy_(host, non_blocking=True)
            self._copied.record(self._stream)
        return rows

    def await_copy(self) -> None:
        """Make the stream that computes wait for the copy; the host does not wait."""
        if self._cuda:
            torch.cuda.current_stream(self._device_rows.device).wait_event(self._copied)

    def release(self) -> None:
        """The computation on this slot is queued: later copies into it wait for its end."""
        if self._cuda:
            self._consumed.record(torch.cuda.current_stream(self._device_rows.device))


def _allocate_host(shape: tuple[int, ...], dtype: torch.dtype, *, pinned: bool) -> Tensor:
    if pinned:
        try:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        except RuntimeError:  # the limit on locked memory; pageable memory copies more slowly but as correctly
            pass
    return torch.empty(shape, dtype=dtype)
