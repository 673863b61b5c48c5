"""The host's plan counts what is pinned for copies to and from a device, as torch's allocator rounds and keeps it."""

from __future__ import annotations

import pytest

import ffstream as ff
from ffstream.plan.pinned import PROBED_BYTES, reserve_pinned
from tests.late.accelerator import late_cuda

WAYS = {
    "through the host": {"cache__tier": "host"},
    "hard negatives in tiles": {"cache__tier": "disk", "network__tile_units": 10},
    "from a pool": {"recipe": "hinton", "cache__tier": "disk", "network__stack_layers": 0},
    "in 8 bits, written anew": {"augmentation__restream": True, "augmentation__max_shift": 1, "cache__dtype": "int8"},
    "batches of several shards": {"batch": 96, "micro_batch": 20, "cache__shard_samples": 32},
    "stacks of wide rows": {"network__stack_layers": 2, "width": 200, "cache__dtype": "fp32"},
}


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_what_is_pinned_is_planned(settings, small_config, tmp_path):
    """The device carries nothing out until it has to, so that the host is as far ahead as it can be."""
    settings = {"cache__tier": "disk", "epochs": 2, "layers": 3, "recipe": "inject"} | settings
    with late_cuda("lazy") as late:
        config = small_config(device="cuda", **settings)
        terms = ff.make_plan(config).host.terms
        ff.train(config, tmp_path / "run")
        pinned, planned = (found - PROBED_BYTES for found in (late.pinned_bytes, terms["goodness"] + terms["copies"]))
    assert 0 < pinned <= planned <= 2 * pinned


def test_a_cache_on_the_device_pins_what_is_drawn(small_config, tmp_path):
    with late_cuda("eager") as late:
        config = small_config(device="cuda", cache__tier="device")
        terms = ff.make_plan(config).host.terms
        ff.train(config, tmp_path / "run")
        assert PROBED_BYTES < late.pinned_bytes <= terms["goodness"] + terms["copies"]


def test_blocks_are_powers_of_two_that_are_kept():
    assert reserve_pinned([[5], [8], [7]]) == 8
    assert reserve_pinned([[5, 8], [9]]) == 8 + 8 + 16
    assert reserve_pinned([[1, 0, 2], [3, 4, 4]]) == 1 + 2 + 3 * 4
    assert reserve_pinned([]) == 0
