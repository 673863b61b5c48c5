"""A plan for an accelerator holds for what torch's allocator would reserve, which is what a driver shows.

The allocator is modelled by its rules: until snapshots of a GPU are here, nothing says that they are those of a GPU.
"""

from __future__ import annotations

import pytest

import ffstream as ff
from benchmarks.footprint import draw_config, write_images
from ffstream.settings.sizes import Sizes
from tests.late.accelerator import CONTEXT_BYTES, late_cuda

_MOST_SPARE_BYTES = 4 << 20  # segments of small tensors, which decide the peak of small layers


class Reserved(ff.Observer):
    """Counts from the start of a run, when steps have been tried."""

    def __init__(self, late):
        self._late = late

    def on_start(self, outline):
        self._late.arena.release_unused()
        self._late.arena.reset_peak()
        self.before = self._late.arena.reserved_bytes


def compare_reserved(config, num_features, folder):
    """(planned, reserved) bytes of a run on the late device; both with the context, without which no run is."""
    sizes = Sizes.of(config)
    write_images(folder / "data.npz", 2 * max(sizes.shard_samples, sizes.batch) + sizes.batch + 40, num_features)
    config = config.override({"data": str(folder / "data.npz"), "device": "cuda"})
    with late_cuda("eager", capacity_bytes=8 << 30) as late:
        plan = ff.make_plan(config)
        observer = Reserved(late)
        ff.train(config, folder / "run", observer=observer)
        assert observer.before == 0
        return plan.device.num_bytes, late.arena.peak_reserved_bytes + CONTEXT_BYTES


# Of the configurations of the sweep: with slots grown for validation, stacks, tiles, micro-batches, and rows in 8 bits.
@pytest.mark.parametrize(
    ("number", "tier"), [(4, "disk"), (7, "disk"), (22, "disk"), (28, "disk"), (42, "disk"), (49, "host")]
)
def test_planned_memory_is_what_is_reserved(number, tier, tmp_path):
    config, num_features = draw_config(number)
    planned, reserved = compare_reserved(config.override({"cache.tier": tier}), num_features, tmp_path)
    assert reserved <= planned <= 1.1 * reserved + _MOST_SPARE_BYTES


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
