"""How much host memory a run with an accelerator takes for copies to and from it. Pure.

torch's allocator of pinned memory rounds a block up to a power of two, and keeps it for a later one when it is freed
(at/core/CachingHostAllocator.h of torch 2.9). So what is pinned is, for each of these sizes, the most blocks at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ffstream.cache import CacheLayout
from ffstream.cache.transfer import NUM_SLOTS
from ffstream.field.blueprint import Blueprint
from ffstream.plan.footprint import PaperLayer, cache_layouts, goodness_bytes

PROBED_BYTES = 16 << 20  # pinned once before a run, to see whether the system allows it

# While the host draws for a shard, the device may still have to copy what was drawn for the shards before. It is three
# shards behind at most where these pass through slots: a slot is filled again once it was copied from, which is once
# the shard before it was computed. Otherwise it is behind by as many operators as its driver queues.
_SHARDS_BEHIND = 3
_QUEUED_OPERATORS = 1024

_Sizes = Sequence[int]  # bytes of the blocks that exist at once


def reserve_pinned(moments: Iterable[_Sizes]) -> int:
    """Bytes that are pinned in the end if there are blocks of these sizes at each of some moments."""
    most: Counter[int] = Counter()
    for sizes in moments:
        most |= Counter(round_pinned(size) for size in sizes if size)
    return sum(size * count for size, count in most.items())


def round_pinned(num_bytes: int) -> int:
    """Bytes of the block in which so many lie."""
    return 1 << (num_bytes - 1).bit_length()


def count_pinned(on_paper: Sequence[PaperLayer], blueprint: Blueprint, *, staged: bool) -> dict[str, int]:
    """The terms of the host's need: the goodness of samples, which copies from the device fill, and all other copies.

    `staged` says that shards pass through the host.
    """
    goodness = list(_list_goodness(blueprint))
    by_sample = reserve_pinned([goodness])
    copies = reserve_pinned([goodness, [PROBED_BYTES], *_list_moments(on_paper, blueprint, goodness, staged=staged)])
    drawn = max(sum(layer.drawn) for layer in on_paper)  # in other memory, where it is drawn
    return {"goodness": by_sample, "copies": copies - by_sample + drawn}


def _list_goodness(blueprint: Blueprint) -> Iterator[int]:
    """The size of every array of a split's goodness that there is at once."""
    kept = goodness_bytes(blueprint, cache_layouts(blueprint, blueprint.image_row))
    of_tiles = blueprint.sizes.num_tiles > 1
    copies = {"train": 2 if of_tiles else 0, "validation": 3}  # of tiles so far, this tile, all layers
    for split, size in kept.items():
        yield from [size] * copies[split]


def _list_moments(
    on_paper: Sequence[PaperLayer], blueprint: Blueprint, goodness: list[int], *, staged: bool
) -> Iterator[list[int]]:
    """The blocks that there are while each of the first layers trains, is measured, and hands on."""
    config = blueprint.config
    images = cache_layouts(blueprint, blueprint.image_row)
    for layout in images.values():
        yield _list_slots(layout, staged=staged)
    read: list[int] = []  # slots that a layer before may have left, as those for reading only grow
    for spec, layer in zip(blueprint.distinct, on_paper, strict=True):
        layouts = cache_layouts(blueprint, spec.row)
        train = layouts["train"]
        slots = _list_slots(train, staged=staged)
        drawn = list(layer.drawn) * (1 + min(_count_behind(layer, train, blueprint, staged=staged), train.num_blocks))
        yield slots + drawn + goodness
        largest = _merge_slots(_list_slots(layout, staged=staged) for layout in (*layouts.values(), train))
        read = _merge_slots([largest, read]) if config.restreams else largest
        yield read + goodness
        for layout in cache_layouts(blueprint, spec.next_row).values() if spec.hands_on else ():
            yield read + _list_slots(layout, staged=staged) + goodness
        if config.restreams:
            yield read + _list_slots(images["train"], staged=staged) + goodness


def _count_behind(layer: PaperLayer, train: CacheLayout, blueprint: Blueprint, *, staged: bool) -> int:
    """How many shards a device may be behind the host, at most."""
    if staged:
        return _SHARDS_BEHIND
    num_operators = layer.step.num_operators * max(train.shard_samples // blueprint.sizes.batch, 1)
    return -(-_QUEUED_OPERATORS // max(num_operators, 1))


def _list_slots(layout: CacheLayout, *, staged: bool) -> list[int]:
    """The sizes of the slots in one direction; a single shard needs one."""
    return [layout.shard_bytes] * min(layout.num_shards, NUM_SLOTS) if staged else []


def _merge_slots(each: Iterable[list[int]]) -> list[int]:
    """Slots that are large enough for each of several lists of slots."""
    found: list[int] = []
    for sizes in each:
        found += [0] * (len(sizes) - len(found))
        found[: len(sizes)] = map(max, found, sizes)
    return found
