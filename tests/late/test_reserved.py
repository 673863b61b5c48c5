"""A plan for an accelerator holds for what torch's allocator would reserve, which is what a driver shows.

The allocator is modelled by its rules: until snapshots of a GPU are here, nothing says that they are those of a GPU.
`python -m tests.late.reserved` compares every configuration of the sweep.
"""

from __future__ import annotations

import pytest

import ffstream as ff
from benchmarks.footprint import draw_config
from ffstream.settings.config import Config
from tests.late.accelerator import CONTEXT_BYTES, late_cuda
from tests.late.reserved import MOST_SPARE_BYTES, Reserved, compare_reserved, summarise


# Of the configurations of the sweep: with slots grown for validation, stacks, tiles, micro-batches, rows in 8 bits, a
# last tile that is small, a small shard that comes first, and a slot that validation does not use.
@pytest.mark.parametrize(
    ("number", "tier"),
    [
        *((4, "disk"), (7, "disk"), (22, "disk"), (28, "disk"), (42, "disk"), (49, "host")),
        *((80, "disk"), (88, "disk"), (135, "disk")),
    ],
)
def test_planned_memory_is_what_is_reserved(number, tier, tmp_path):
    config, num_features = draw_config(number)
    planned, reserved = compare_reserved(config.override({"cache.tier": tier}), num_features, tmp_path)
    assert reserved <= planned <= 1.1 * reserved + MOST_SPARE_BYTES


def test_what_a_tile_that_has_ended_leaves_is_planned_for_the_next(tmp_path):
    """Buffers of the pass that measures it grow where its optimiser's state was, so that the next finds no room there.

    The pass casts more rows than a step does, and to almost as many bytes as the state of a tile has.
    """
    config = Config(recipe="hinton", layers=1, width=3000, epochs=1, batch=64, precision="fp32").override(
        {"network.tile_units": 1500, "negatives.per_sample": "all", "cache.shard_samples": 218, "cache.tier": "disk"}
    )
    planned, reserved = compare_reserved(config.override({"validation_fraction": 0.0}), 800, tmp_path)
    assert reserved <= planned <= 1.1 * reserved + MOST_SPARE_BYTES


def test_a_sweep_names_what_reserved_more_than_planned_and_what_failed():
    fitting = {"number": 1, "planned_bytes": 100 << 20, "reserved_bytes": 99 << 20}
    short = {"number": 2, "planned_bytes": 99 << 20, "reserved_bytes": 100 << 20}
    roomy = {"number": 3, "planned_bytes": 200 << 20, "reserved_bytes": 100 << 20}
    failed = {"number": 4, "error": "RuntimeError: no such operator"}
    assert summarise([fitting, roomy])[1]
    for wrong in (short, failed):
        text, is_kept = summarise([fitting, wrong])
        assert not is_kept
        assert f"  {wrong['number']}: " in text
    assert "  3: x 2.000, 100.0 MiB" in summarise([fitting, roomy])[0]


def test_a_cache_on_the_device_is_planned_as_it_is_reserved(small_config, tmp_path):
    config = small_config(width=512, cache__tier="device", cache__shard_samples=64)
    with late_cuda("eager") as late:
        planned = ff.make_plan(config.override({"device": "cuda"})).device.num_bytes
        ff.train(config.override({"device": "cuda"}), tmp_path / "run", observer=Reserved(late))
        assert late.arena.peak_reserved_bytes + CONTEXT_BYTES <= planned


def test_a_run_leaves_nothing_on_the_device(small_config, tmp_path):
    """Also with rows in 8 bits, whose buffers a thread that has ended refers to for a while."""
    with late_cuda("eager") as late:
        ff.train(small_config(device="cuda", cache__tier="disk", cache__dtype="int8"), tmp_path / "run")
        late.arena.release_unused()
        assert late.arena.reserved_bytes == 0
