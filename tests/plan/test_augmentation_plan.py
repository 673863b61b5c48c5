"""Shifted images in a plan: caches, passes, time and memory."""

from __future__ import annotations

import json

import pytest

from benchmarks.footprint import compare, draw_config
from ffstream.plan.plan import Rates
from tests.helpers import run_cli
from tests.plan.test_plan import PLENTY, plan, with_less


def test_views_take_as_many_caches_and_a_shard_and_no_more_of_the_device():
    for tier in ("disk", "host"):
        one, five = (plan(**{"cache.tier": tier, "augmentation.views": views}) for views in (1, 5))
        shard, row = 4096 * 784 * 2, 784 * 2
        need = five.disk if tier == "disk" else five.host
        twice = 2 if tier == "disk" else 1
        assert need.terms["cache"] == twice * ((5 * 60000 + 6000) * row + shard)
        assert five.device == one.device
    tight = plan(with_less(disk_bytes=five.disk.num_bytes), **{"cache.tier": "host", "augmentation.views": 5})
    assert tight.fits


def test_views_are_read_one_an_epoch_and_handed_on_all():
    first = plan(epochs=3, **{"augmentation.views": 5}).layers[0]
    train, validation = 60000 * 784 * 2, 6000 * 784 * 2
    assert first.read_bytes == 3 * (train + validation) + 5 * train + validation
    assert first.written_bytes == (5 * 60000 + 6000) * 500 * 2


def test_a_fresh_input_is_written_every_epoch_through_all_layers_below():
    in_one_stack = {"epochs": 3, "layers": 6, "network.stack_layers": 0}
    found = plan(**in_one_stack, **{"augmentation.restream": True})
    image, row, validation = 60000 * 784 * 2, 60000 * 500 * 2, 6000 * 500 * 2
    first, second, rest = found.layers
    assert first.read_bytes == 3 * (image + 6000 * 784 * 2) + 6000 * 784 * 2
    assert first.written_bytes == 3 * image + validation
    assert second.read_bytes == 3 * (row + validation) + validation + 3 * image
    assert second.written_bytes == 3 * (image + row) + validation
    assert rest.read_bytes == 3 * (row + validation) + validation + 3 * (image + 2.5 * row)  # 1, 2, 3 and 4 below
    assert found.disk == plan(**in_one_stack).disk


def test_time_counts_handing_on_all_views_and_all_passes_of_an_epoch():
    rates = Rates(1e12, 1e15, 1e-15, {"host": 1e15, "disk": 1e15})  # products alone take time
    resources = with_less(PLENTY, rates=rates)
    changes = {"epochs": 3, "width": 784, "validation_fraction": 0.0, "layers": 8, "network.stack_layers": 0}
    plain = plan(resources, **changes)
    one_pass_s = 2 * 784 * 784 * 60000 / 1e12  # of all layers but the last, which is planned for like those before it
    views = plan(resources, **changes | {"augmentation.views": 5})
    assert views.total_s - plain.total_s == pytest.approx(8 * 4 * one_pass_s, rel=0.03)
    fresh = plan(resources, **changes | {"augmentation.restream": True})
    assert fresh.total_s - plain.total_s == pytest.approx((3 * sum(range(8)) - 8) * one_pass_s, rel=0.03)


def test_time_counts_measuring_tiles_anew_every_epoch():
    rates = Rates(1e12, 1e15, 1e-15, {"host": 1e15, "disk": 1e15})
    changes = {"epochs": 3, "width": 784, "layers": 1, "network.tile_units": 196}
    plain, fresh = (
        plan(with_less(PLENTY, rates=rates), **changes | {"augmentation.restream": flag}) for flag in (False, True)
    )
    one_pass_s = 2 * 784 * 196 * 60000 / 1e12
    assert fresh.total_s - plain.total_s == pytest.approx((3 * (1 + 2 + 3) - 3) * one_pass_s, rel=0.03)


@pytest.mark.parametrize("number", [7, 29, 49])
@pytest.mark.parametrize(
    "changes", [{"augmentation.views": 3}, {"augmentation.restream": True}], ids=["views", "fresh"]
)
def test_planned_memory_is_what_a_shifted_run_takes(changes, number, tmp_path):
    config, num_features = draw_config(number)
    planned, measured = compare(config.override(changes), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


def test_plan_takes_the_options_and_data_of_no_shape(tmp_path):
    machine = "device=8GiB,30TFLOP/s;h2d=12GB/s;host=32GiB;disk=1TiB,3GB/s"
    common = ("plan", "--samples", 10**6, "--machine", machine, "--json")
    plain, views, fresh = (
        json.loads(run_cli(*common, *more)[1])
        for more in ((), ("--views", 9, "--max-shift", 1), ("--restream", "--max-shift", 1))
    )
    assert views["peaks"]["disk"]["num_bytes"] + views["peaks"]["host"]["num_bytes"] > 5 * (
        plain["peaks"]["disk"]["num_bytes"] + plain["peaks"]["host"]["num_bytes"]
    )
    assert fresh["total_s"] > plain["total_s"]
