"""The rules of torch's caching allocator, as torch's own documentation and source say them."""

from __future__ import annotations

import random

import pytest

from ffstream.device.caching_allocator import FREED, CachingAllocator, Trace, replay, reserve_alike

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("num_bytes", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (100 * MIB, 100 * MIB),
    ],
)
def test_a_first_tensor_takes_a_segment_of_its_class(num_bytes, reserved):
    allocator = CachingAllocator()
    allocator.allocate(num_bytes)
    assert allocator.reserved_bytes == reserved == reserve_alike(num_bytes, 1)


def test_small_tensors_share_segments_and_are_apart_from_large_ones():
    allocator = CachingAllocator()
    for _ in range(2 * MIB // 512):
        allocator.allocate(100)
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(100)
    assert allocator.reserved_bytes == 4 * MIB
    allocator.allocate(2 * MIB)
    assert allocator.reserved_bytes == 24 * MIB


def test_a_block_serves_the_smallest_request_that_fits_and_only_its_own_stream():
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB, "a"), allocator.allocate(30 * MIB, "a")
    allocator.free(large)
    allocator.free(small)
    assert allocator.allocate(29 * MIB + 512 * KIB, "a") is small  # uncut: less than 1 MiB would be left
    assert small.size_bytes == 30 * MIB
    allocator.allocate(40 * MIB, "b")
    assert allocator.reserved_bytes == 110 * MIB


def test_free_neighbours_are_one_block_again_and_only_whole_segments_are_given_back():
    allocator = CachingAllocator()
    whole = allocator.allocate(64 * MIB)
    allocator.free(whole)
    parts = [allocator.allocate(16 * MIB) for _ in range(4)]
    assert allocator.reserved_bytes == 64 * MIB
    for part in (parts[0], parts[2], parts[1]):
        allocator.free(part)
    allocator.release()
    assert allocator.reserved_bytes == 64 * MIB  # the last part lives
    allocator.allocate(48 * MIB)
    assert allocator.reserved_bytes == 64 * MIB
    allocator.free(parts[3])
    allocator.release()
    assert allocator.reserved_bytes == 64 * MIB
    assert allocator.requested_bytes == 48 * MIB


@pytest.mark.parametrize("seed", range(5))
def test_it_never_reserves_less_than_is_alive_and_gives_everything_back(seed):
    rng, allocator, alive = random.Random(seed), CachingAllocator(), []
    for _ in range(2000):
        if alive and rng.random() < 0.48:
            allocator.free(alive.pop(rng.randrange(len(alive))))
        else:
            alive.append(allocator.allocate(int(2 ** rng.uniform(0, 26)), rng.choice("ab")))
        assert allocator.requested_bytes == sum(block.requested_bytes for block in alive)
        assert sum(block.size_bytes for block in alive) <= allocator.reserved_bytes <= allocator.peak_reserved_bytes
    for block in alive:
        allocator.free(block)
    allocator.release()
    assert (allocator.requested_bytes, allocator.reserved_bytes) == (0, 0)


ALIKE = [(1, 5000), (600 * KIB, 7), (3 * MIB, 13), (7 * MIB, 5), (11 * MIB, 3)]


@pytest.mark.parametrize(("num_bytes", "count"), ALIKE)
def test_tensors_alike_take_what_the_rules_say(num_bytes, count):
    allocator = CachingAllocator()
    for _ in range(count):
        allocator.allocate(num_bytes)
    assert allocator.reserved_bytes == reserve_alike(num_bytes, count)


def test_slots_grow_when_a_phase_needs_more_and_end_when_it_needs_none():
    trace = Trace()
    trace.begin("small")
    first = trace.make(12 * MIB)
    trace.begin("large")
    trace.begin("small")
    trace.free(first)
    trace.begin("none")
    events = (*trace.take(), (9, 14 * MIB), (9, FREED))
    phases = {"small": {"slot": 10 * MIB}, "large": {"slot": 14 * MIB}, "none": {"slot": 0}}
    # The segment of the small slot is kept, and too small for the large one, whose own serves the last tensor.
    assert replay(events, phases) == (10 + 12 + 14) * MIB
    assert trace.take() == ()
