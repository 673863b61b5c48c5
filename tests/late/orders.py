"""What shards must be, whatever the order in which a device does its work.

Each function of `ORDERS` takes a module that has `Transfer` and a policy of streams, and fails by AssertionError if a
wait is missing.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import time

import torch

from ffstream.cache import CacheLayout, MemoryCache, as_cached, decode_, encode_
from tests.late.accelerator import late_cuda
from tests.late.tensors import DEVICE

CPU = torch.device("cpu")
EPOCHS = [3, 0, 6, 1, 5, 2, 4, 6, 2, 0, 1, 3]  # seven shards, of which the last is short


def layout_of(num_features=16, dtype="bf16"):
    return CacheLayout(8 * 7 - 3, 2, num_features, dtype, 8)


def full_cache(layout):
    """A cache on the host, and the rows that were stored in it."""
    shape = layout.num_samples, layout.num_rows, layout.num_features
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    cache = MemoryCache(layout, CPU)
    for shard in range(layout.num_shards):
        part = rows[layout.shard_range(shard)].clone()
        if layout.is_coded:
            stored = torch.empty(layout.stored_shape(shard), dtype=layout.stored_dtype)
            encode_(stored, part)
            part = stored
        cache.store(shard, part)
    return cache, rows


def rows_in(cache):
    """All rows of a full cache."""
    layout, found = cache.layout, []
    for shard in range(layout.num_shards):
        stored = torch.empty(layout.stored_shape(shard), dtype=layout.stored_dtype)
        cache.load(shard, stored)
        rows = torch.empty(layout.shard_shape(shard), dtype=layout.dtype)
        found.append(decode_(rows, stored) if layout.is_coded else stored)
    return torch.cat(found)


def compute(block):
    """Work on a block whose result names the block; it is queued, and the host goes on."""
    return (block.double() * 3).sum()


def check_sums(sums, layout, rows, order):
    """The work that was queued has seen the blocks that it was queued for."""
    rows = as_cached(rows, layout.dtype_name)
    want = [compute(rows[layout.shard_range(shard)]) for shard in order]
    assert [float(found) for found in sums] == [float(each) for each in want]


def blocks_come_in_order(module, policy, dtype="bf16"):
    """The computation is far behind the reading."""
    layout = layout_of(dtype=dtype)
    cache, rows = full_cache(layout)
    with late_cuda(policy), module.Transfer(DEVICE) as transfer:
        sums = [compute(block) for _, block in transfer.blocks(cache, EPOCHS)]
        check_sums(sums, layout, rows, EPOCHS)


def coded_blocks_come_in_order(module, policy):
    """In 8 bits."""
    blocks_come_in_order(module, policy, "int8")


def blocks_may_be_left_at_the_last_one(module, policy):
    """A pass that takes as many blocks as there are, and does not ask for one more, as those of training."""
    layout, orders = layout_of(), (EPOCHS[:3], EPOCHS[3:6], EPOCHS[6:7], EPOCHS[7:])
    cache, rows = full_cache(layout)
    with late_cuda(policy), module.Transfer(DEVICE) as transfer:
        sums, kept = [], []
        for order in orders:
            kept.append(transfer.blocks(cache, order))
            sums += [compute(block) for _, block in itertools.islice(kept[-1], len(order))]
        check_sums(sums, layout, rows, EPOCHS)


def blocks_may_be_left_early(module, policy):
    """An error or an interrupt ends a pass while the next block is on its way; the next pass uses the same slots."""
    layout = layout_of()
    cache, rows = full_cache(layout)
    with late_cuda(policy), module.Transfer(DEVICE) as transfer:
        sums = []
        for first in EPOCHS[:4]:
            blocks = transfer.blocks(cache, [first, *EPOCHS])
            sums.append(compute(next(blocks)[1]))
            blocks.close()
        check_sums(sums, layout, rows, EPOCHS[:4])


def slots_may_grow_at_work(module, policy):
    """Another layer has wider rows, so that memory is freed on which work is queued."""
    narrow, wide = layout_of(), layout_of(64)
    caches, sums = [full_cache(layout) for layout in (narrow, wide)], []
    with late_cuda(policy), module.Transfer(DEVICE) as transfer:
        for cache, _ in caches:
            sums.append([compute(block) for _, block in transfer.blocks(cache, EPOCHS[:5])])
        for layout, (_, rows), found in zip((narrow, wide), caches, sums, strict=True):
            check_sums(found, layout, rows, EPOCHS[:5])


def memory_is_free_once_it_is_released(module, policy):
    """A copy that was under way when its pass was left writes to no memory that others have by now."""
    cache, _ = full_cache(layout_of())
    with late_cuda(policy) as late, module.Transfer(DEVICE) as transfer:
        leave_after_one_block(transfer, cache)
        transfer.release()
        check_others(late, cache.layout.shard_bytes)


def memory_is_free_once_the_transfer_is_left(module, policy):
    """The same when the transfer ends, and when an error ends it."""
    cache, _ = full_cache(layout_of())
    for error in (None, KeyboardInterrupt):
        with late_cuda(policy) as late:
            with contextlib.suppress(KeyboardInterrupt), module.Transfer(DEVICE) as transfer:
                leave_after_one_block(transfer, cache)
                if error is not None:
                    raise error
            del transfer
            gc.collect()  # its threads refer to it in a cycle
            check_others(late, cache.layout.shard_bytes)


def leave_after_one_block(transfer, cache):
    """Leave a pass while a copy is under way."""
    blocks = transfer.blocks(cache, EPOCHS)
    next(blocks)
    blocks.close()


def check_others(late, num_bytes):
    """What is allocated now stays as it is, although it may lie where slots lay."""
    time.sleep(0.02)  # a reading thread lets go of what it has read
    others = [torch.full((num_bytes,), 7, dtype=torch.uint8, device=DEVICE) for _ in range(4)]
    late.queues.drain_all()
    assert all(bool((other == 7).all()) for other in others)


def rows_are_stored(module, policy, dtype="bf16"):
    """What is computed is stored, also if its room on the device is used again at once."""
    layout = layout_of(dtype=dtype)
    cache, rows = full_cache(layout)
    with late_cuda(policy), module.Transfer(DEVICE) as transfer:
        parts = [rows[layout.shard_range(shard)].to(DEVICE) for shard in range(layout.num_shards)]
        for _ in range(2):
            cache.drop()
            for shard, part in enumerate(parts):
                with transfer.storing(cache, shard) as room:
                    room.copy_(part * 1)
            transfer.flush()
    assert torch.equal(rows_in(cache), as_cached(rows, dtype))


def coded_rows_are_stored(module, policy):
    """In 8 bits."""
    rows_are_stored(module, policy, "int8")


def rows_pass_in_both_directions(module, policy):
    """From a cache to one of wider rows, and back to one of the first width."""
    narrow, wide = layout_of(), layout_of(40)
    source, rows = full_cache(narrow)
    with late_cuda(policy), module.Transfer(DEVICE) as transfer:
        for _ in range(2):
            above = MemoryCache(wide, CPU)
            for shard, block in transfer.blocks(source, above.missing()):
                with transfer.storing(above, shard) as room:
                    room[:, :, :16].copy_(block * 2)
                    room[:, :, 16:].fill_(1)
            transfer.flush()
            source = MemoryCache(narrow, CPU)
            for shard, block in transfer.blocks(above, source.missing()):
                with transfer.storing(source, shard) as room:
                    room.copy_(block[:, :, :16] * 2)
            transfer.flush()
    assert torch.equal(rows_in(source), rows * 16)


ORDERS = (
    blocks_come_in_order,
    coded_blocks_come_in_order,
    blocks_may_be_left_at_the_last_one,
    blocks_may_be_left_early,
    slots_may_grow_at_work,
    memory_is_free_once_it_is_released,
    memory_is_free_once_the_transfer_is_left,
    rows_are_stored,
    coded_rows_are_stored,
    rows_pass_in_both_directions,
)
