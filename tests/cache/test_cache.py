"""The activation cache: shards, order, tiers, damage, and the stream that reads it."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import ffstream as ff
from ffstream.cache import DTYPES, CacheLayout, MemoryCache, compute_batches, compute_shard_order
from ffstream.cache.transfer import Transfer
from tests.helpers import disk_cache

CPU = torch.device("cpu")
LAYOUT = CacheLayout(num_samples=50, num_rows=2, num_features=6, dtype_name="bf16", shard_samples=16)


def draw(layout, seed=0):
    shape = (layout.num_samples, layout.num_rows, layout.num_features)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(layout.dtype)


def fill(cache, rows):
    with Transfer(CPU) as transfer:
        for shard in range(cache.layout.num_shards):
            with transfer.storing(cache, shard) as room:
                room.copy_(rows[cache.layout.shard_range(shard)])
    return cache


def read(cache):
    with Transfer(CPU) as transfer:
        return torch.cat([block.clone() for _, block in transfer.blocks(cache, range(cache.layout.num_shards))])


@given(num_samples=st.integers(1, 3000), shard_samples=st.integers(1, 500))
def test_shards_cover_every_sample_once(num_samples, shard_samples):
    layout = CacheLayout(num_samples, 3, 5, "fp32", shard_samples)
    covered = [i for shard in range(layout.num_shards) for i in range(num_samples)[layout.shard_range(shard)]]
    assert covered == list(range(num_samples))
    assert sum(layout.shard_shape(shard)[0] for shard in range(layout.num_shards)) == num_samples
    assert layout.num_bytes == num_samples * 3 * 5 * 4


@settings(max_examples=50, deadline=None)
@given(num_samples=st.integers(1, 2000), batch=st.integers(1, 600), seed=st.integers(0, 99))
def test_batches_cover_every_sample_once_in_nearly_equal_parts(num_samples, batch, seed):
    batches = compute_batches(num_samples, batch, torch.Generator().manual_seed(seed))
    sizes = [len(part) for part in batches]
    assert sorted(torch.cat(list(batches)).tolist()) == list(range(num_samples))
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1


def test_the_order_of_shards_is_a_function_of_seed_layer_and_epoch():
    layout = CacheLayout(1000, 1, 1, "bf16", 20)
    orders = {key: tuple(compute_shard_order(layout, *key, 10)) for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert orders[0, 0, 0] == tuple(compute_shard_order(layout, 0, 0, 0, 10))
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == list(range(50)) for order in orders.values())


@pytest.mark.parametrize("dtype_name", DTYPES)
def test_every_tier_gives_back_what_was_written(dtype_name, tmp_path):
    layout = CacheLayout(50, 2, 6, dtype_name, 16)
    rows = draw(layout)
    fill(disk_cache(layout, tmp_path), rows)
    for cache in (fill(MemoryCache(layout, CPU), rows), disk_cache(layout, tmp_path)):
        assert torch.equal(read(cache), rows)


def test_a_stream_follows_any_order_and_can_be_used_again(tmp_path):
    rows = draw(LAYOUT)
    cache = fill(disk_cache(LAYOUT, tmp_path), rows)
    with Transfer(CPU) as transfer:
        for order in ([3, 0, 2, 1], [1, 1, 3], [], [0]):
            found = [(shard, block.clone()) for shard, block in transfer.blocks(cache, order)]
            assert [shard for shard, _ in found] == order
            assert all(torch.equal(block, rows[LAYOUT.shard_range(shard)]) for shard, block in found)


def test_leaving_a_stream_early_ends_its_thread(tmp_path):
    cache = fill(disk_cache(LAYOUT, tmp_path), draw(LAYOUT))
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Transfer(CPU) as transfer:
        for _ in transfer.blocks(cache, [0, 1, 2, 3]):
            1 / 0  # noqa: B018
    assert threading.active_count() == before


def test_dropping_a_cache_leaves_nothing(tmp_path):
    cache = fill(disk_cache(LAYOUT, tmp_path / "cache"), draw(LAYOUT))
    cache.drop()
    assert not (tmp_path / "cache").exists()


def flip(position):
    return lambda data: data[:position] + bytes([data[position] ^ 4]) + data[position:][1:]


def header(change):
    """Replace the header of a safetensors file."""

    def damage(data):
        length = int.from_bytes(data[:8], "little")
        fields = json.loads(data[8 : 8 + length])
        change(fields["rows"])
        text = json.dumps(fields).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return damage


DAMAGE = {
    "empty": lambda data: b"",
    "half a length": lambda data: data[:4],
    "half a header": lambda data: data[:30],
    "no rows": lambda data: data[: 8 + int.from_bytes(data[:8], "little")],
    "one byte short": lambda data: data[:-1],
    "first bit of the rows": flip(-384),
    "last bit of the rows": flip(-1),
    "a huge header": lambda data: (2**63 - 1).to_bytes(8, "little") + data[8:],
    "a header of zeros": lambda data: data[:8] + bytes(len(data) - 8),
    "another type": header(lambda rows: rows.update(dtype="F16")),
    "another shape": header(lambda rows: rows.update(shape=[16, 6, 2])),
    "other offsets": header(lambda rows: rows.update(data_offsets=[8, 392])),
    "a deep header": lambda data: (60_000).to_bytes(8, "little") + b"[" * 60_000,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_named_and_not_read(name, tmp_path):
    fill(disk_cache(LAYOUT, tmp_path), draw(LAYOUT))
    path = tmp_path / "shard-00001.safetensors"
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with pytest.raises(ff.CorruptFileError, match=r"shard-00001.*delete .* and resume"):
        read(disk_cache(LAYOUT, tmp_path))


def test_swapped_and_missing_shards_are_detected(tmp_path):
    fill(disk_cache(LAYOUT, tmp_path), draw(LAYOUT))
    first, second = (tmp_path / f"shard-0000{number}.safetensors" for number in (0, 1))
    first.rename(tmp_path / "x")
    with pytest.raises(ff.CorruptFileError, match="shard-00000.* is missing"):
        read(disk_cache(LAYOUT, tmp_path))
    second.rename(first)
    (tmp_path / "x").rename(second)
    with pytest.raises(ff.CorruptFileError, match="shard-00000.*altered"):
        read(disk_cache(LAYOUT, tmp_path))


@settings(max_examples=50, deadline=None)
@given(num_samples=st.integers(1, 500), shard_samples=st.integers(1, 60), key=st.tuples(*[st.integers(0, 9)] * 3))
def test_an_order_of_shards_is_a_pure_permutation(num_samples, shard_samples, key):
    layout = CacheLayout(num_samples, 1, 1, "fp32", shard_samples)
    before = torch.get_rng_state()
    order = list(compute_shard_order(layout, *key, 10))
    assert sorted(order) == list(range(layout.num_shards))
    assert order == list(compute_shard_order(layout, *key, 10))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_a_function_of_their_generator():
    first, again, other = (
        torch.cat(list(compute_batches(100, 7, torch.Generator().manual_seed(seed)))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.integers(0, 3), max_size=9), dtype_name=st.sampled_from(sorted(DTYPES)))
def test_memory_and_disk_stream_the_same_blocks_in_any_order(tmp_path_factory, order, dtype_name):
    layout = CacheLayout(50, 2, 6, dtype_name, 16)
    rows = draw(layout)
    disk = fill(disk_cache(layout, tmp_path_factory.mktemp("cache")), rows)
    memory = fill(MemoryCache(layout, CPU), rows)
    for cache in (disk, memory):
        with Transfer(CPU) as transfer:
            found = [(shard, block.clone()) for shard, block in transfer.blocks(cache, order)]
        assert [shard for shard, _ in found] == order
        assert all(torch.equal(block, rows[layout.shard_range(shard)]) for shard, block in found)


@pytest.mark.parametrize("shard", [0, 3])
def test_a_shard_is_copied_into_the_readers_slot(shard, tmp_path):
    rows = draw(LAYOUT)
    for cache in (fill(MemoryCache(LAYOUT, CPU), rows), fill(disk_cache(LAYOUT, tmp_path), rows)):
        slot = torch.empty(LAYOUT.shard_shape(shard), dtype=LAYOUT.dtype)
        cache.load(shard, slot)
        assert torch.equal(slot, rows[LAYOUT.shard_range(shard)])
        slot.zero_()
        assert torch.equal(read(cache), rows)


def test_a_stream_left_in_the_middle_of_an_epoch_starts_the_next_one_clean(tmp_path):
    rows = draw(LAYOUT)
    cache = fill(disk_cache(LAYOUT, tmp_path), rows)
    with Transfer(CPU) as transfer:
        for leave_after in (1, 2, 3):
            for position, _ in enumerate(transfer.blocks(cache, [3, 2, 1, 0]), start=1):
                if position == leave_after:
                    break
            found = torch.cat([block.clone() for _, block in transfer.blocks(cache, range(4))])
            assert torch.equal(found, rows)


def test_a_corrupt_shard_is_heard_at_its_turn_and_ends_the_thread(tmp_path):
    rows = draw(LAYOUT)
    fill(disk_cache(LAYOUT, tmp_path), rows)
    (tmp_path / "shard-00002.safetensors").unlink()
    before, seen = threading.active_count(), []
    cache = disk_cache(LAYOUT, tmp_path)
    with pytest.raises(ff.CorruptFileError, match="shard-00002"), Transfer(CPU) as transfer:
        for shard, block in transfer.blocks(cache, [3, 0, 2, 1]):
            assert torch.equal(block, rows[LAYOUT.shard_range(shard)])
            seen.append(shard)
    assert seen == [3, 0]
    assert threading.active_count() == before


def test_no_altered_byte_of_a_shard_changes_a_row_unheard(tmp_path):
    rows, shard = draw(LAYOUT), 3  # the short one, so that every byte can be tried
    fill(disk_cache(LAYOUT, tmp_path), rows)
    path = tmp_path / "shard-00003.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for position in range(len(data)):
        for mask in (1, 128):
            path.write_bytes(data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :])
            slot = torch.zeros(LAYOUT.shard_shape(shard), dtype=LAYOUT.dtype)
            message = ""
            try:
                disk_cache(LAYOUT, tmp_path).load(shard, slot)
            except ff.CorruptFileError as error:
                message = str(error)
            if message:
                assert path.name in message
            else:  # a byte of the header that says nothing of the rows, such as its padding
                assert 8 <= position < start
                assert torch.equal(slot, rows[LAYOUT.shard_range(shard)])


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 60, -385, -384, -200, -1])
def test_a_shard_truncated_anywhere_is_named(keep, tmp_path):
    fill(disk_cache(LAYOUT, tmp_path), draw(LAYOUT))
    path = tmp_path / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ff.CorruptFileError, match="shard-00002"):
        read(disk_cache(LAYOUT, tmp_path))


@pytest.mark.parametrize(("source", "target"), [(0, 2), (3, 1), (1, 3)])
def test_a_shard_replaced_by_another_ones_file_is_named(source, target, tmp_path):
    fill(disk_cache(LAYOUT, tmp_path), draw(LAYOUT))
    paths = [tmp_path / f"shard-0000{number}.safetensors" for number in range(4)]
    paths[target].write_bytes(paths[source].read_bytes())
    with pytest.raises(ff.CorruptFileError, match=paths[target].name):
        read(disk_cache(LAYOUT, tmp_path))


@pytest.mark.parametrize(
    "changes", [{"num_samples": 49}, {"num_rows": 3}, {"num_features": 7}, {"dtype_name": "fp32"}, {"shard_samples": 8}]
)
def test_shards_of_a_layout_that_differs_in_anything_are_refused(changes, tmp_path):
    fill(disk_cache(LAYOUT, tmp_path), draw(LAYOUT))
    with pytest.raises(ff.CorruptFileError, match="shard-0000"):
        read(disk_cache(CacheLayout(**(LAYOUT.to_mapping() | changes)), tmp_path))


def test_shards_computed_from_something_else_are_refused(tmp_path):
    fill(disk_cache(LAYOUT, tmp_path, "run a, layer 1"), draw(LAYOUT))
    with pytest.raises(ff.CorruptFileError, match=r"shard-00000.*altered since it was written, or another shard's"):
        read(disk_cache(LAYOUT, tmp_path, "run a, layer 2"))


def test_a_shard_is_a_safetensors_file(tmp_path):
    rows = draw(LAYOUT)
    fill(disk_cache(LAYOUT, tmp_path), rows)
    found = load_file(tmp_path / "shard-00001.safetensors")
    assert torch.equal(found["rows"], rows[LAYOUT.shard_range(1)])


def test_a_stored_shard_is_read_at_once_and_counts_once_it_is_synced(tmp_path):
    rows = draw(LAYOUT)[LAYOUT.shard_range(2)].clone()
    cache, slot = disk_cache(LAYOUT, tmp_path), torch.empty_like(rows)
    cache.store(2, rows)
    cache.load(2, slot)
    assert torch.equal(slot, rows)
    assert cache.missing() == [0, 1, 3]
    assert disk_cache(LAYOUT, tmp_path).missing() == [0, 1, 2, 3]
    cache.sync(2)
    assert disk_cache(LAYOUT, tmp_path).missing() == [0, 1, 3]
    cache.load(2, slot.zero_())
    assert torch.equal(slot, rows)
    cache.free(2)
    assert disk_cache(LAYOUT, tmp_path).missing() == [0, 1, 2, 3]


def test_a_shard_is_durable_before_what_depends_on_it_is_done(tmp_path):
    cache, seen = disk_cache(LAYOUT, tmp_path), []
    with Transfer(CPU) as transfer:
        for shard in range(4):
            with transfer.storing(cache, shard, lambda: seen.append(disk_cache(LAYOUT, tmp_path).missing())) as room:
                room.zero_()
        transfer.commit(lambda: seen.append("last"))
    assert seen == [[1, 2, 3], [2, 3], [3], [], "last"]


@pytest.mark.parametrize("limit", [1, 2])
def test_no_more_shards_wait_to_be_durable_than_allowed(limit, tmp_path):
    layout = CacheLayout(200, 1, 4, "fp32", 10)
    cache, most = disk_cache(layout, tmp_path), 0
    with Transfer(CPU, max_unsynced=limit) as transfer:
        for shard in range(layout.num_shards):
            with transfer.storing(cache, shard) as room:
                room.zero_()
            most = max(most, len(list(tmp_path.glob(".tmp-*"))))
    assert most <= limit
    assert cache.missing() == []


def test_a_failing_disk_is_heard_and_ends_the_threads(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    before = threading.active_count()
    with pytest.raises(ff.StorageError, match="cache"):
        fill(disk_cache(LAYOUT, tmp_path / "cache"), draw(LAYOUT))
    assert threading.active_count() == before


def test_a_failed_commit_is_heard_by_whoever_commits_next():
    def fail():
        raise ff.StorageError("full")

    with pytest.raises(ff.StorageError, match="full"), Transfer(CPU) as transfer:
        transfer.commit(fail)
        for _ in range(1000):
            time.sleep(0.001)
            transfer.commit(lambda: None)


def test_a_cache_that_ends_with_the_process_waits_for_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: pytest.fail("waited for the disk"))
    rows = draw(LAYOUT)
    assert torch.equal(read(fill(disk_cache(LAYOUT, tmp_path, durable=False), rows)), rows)
