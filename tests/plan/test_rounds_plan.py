"""Rounds in a plan: the device of one layer, two rounds on the disk, and a time that is linear in depth."""

from __future__ import annotations

import pytest

import ffstream as ff
from ffstream.data.shape import DataShape
from ffstream.field.blueprint import Blueprint
from ffstream.plan.dry_run import do_on_paper
from ffstream.plan.plan import Rates
from tests.helpers import run_cli
from tests.plan.plans import PLENTY, plan, with_less

ROUNDS = {"schedule.order": "rounds", "network.stack_layers": 0}
FRESH = {"augmentation.restream": True, "augmentation.max_shift": 1}


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_the_device_holds_what_it_holds_in_a_sequential_run_at_any_depth(tier):
    one_stack = {"cache.tier": tier, "network.stack_layers": 0}
    sequential = plan(layers=4, **one_stack)
    rounds = [plan(layers=layers, **one_stack, **{"schedule.order": "rounds"}) for layers in (4, 400)]
    assert {found.device.num_bytes for found in rounds} == {sequential.device.num_bytes}


def test_the_disk_holds_two_rounds_and_a_layer_with_the_optimisers_and_the_validation_goodness():
    found, deeper = (plan(layers=layers, **ROUNDS, **{"cache.tier": "host"}) for layers in (4, 14))
    last = found.layers[-1].footprint
    of_layer = last.weights + last.optimiser + 4 * 6000 * 10
    assert deeper.disk.terms["layers"] - found.disk.terms["layers"] == 2 * 10 * of_layer
    first = found.layers[0].footprint
    largest = max(first.weights + first.optimiser, last.weights + last.optimiser) + 4 * 6000 * 10
    assert found.disk.terms["layers"] > 2 * 4 * min(of_layer, largest)
    assert found.disk.terms["layers"] <= (2 * 4 + 1) * largest


def test_a_round_passes_once_through_every_layer():
    rates = Rates(1e12, 1e15, 1e-15, {"host": 1e15, "disk": 1e15})  # products alone take time
    resources, num_rounds = with_less(PLENTY, rates=rates), 3
    changes = {"epochs": num_rounds, "width": 784, "network.stack_layers": 0}
    one_pass_s = 2 * 784 * 784 * 66000 / 1e12  # of both splits
    plain = plan(resources, layers=8, **changes)
    rounds = [plan(resources, layers=layers, **changes, **FRESH, **{"schedule.order": "rounds"}) for layers in (8, 16)]
    assert rounds[0].total_s - plain.total_s == pytest.approx(8 * (num_rounds - 1) * one_pass_s, rel=0.03)
    assert rounds[1].total_s == pytest.approx(2 * rounds[0].total_s, rel=0.01)
    restreamed = plan(resources, layers=16, **changes, **FRESH)
    assert rounds[1].total_s < 0.6 * restreamed.total_s


def test_caches_are_read_and_written_once_a_round_and_layers_too():
    resources = with_less(PLENTY, rates=Rates(1e12, 1e11, 1e-6, {"host": 1e10, "disk": 1e9}))
    found = plan(resources, epochs=3, layers=4, **ROUNDS, **{"cache.tier": "disk"})
    first, _, rest = found.layers
    row, validation = 60000 * 500 * 2, 6000 * 500 * 2
    assert rest.read_bytes == 3 * (row + validation) + 3 * (row + validation)
    assert first.written_bytes == 3 * (row + validation)
    state = rest.footprint.weights + rest.footprint.optimiser
    assert rest.seconds["the layer's state"] * 1e9 == pytest.approx(3 * 2 * state)


@pytest.mark.parametrize("bytes_per_s", [1e9, 4e9])
def test_the_window_that_is_named_works_as_long_as_its_layers_move(bytes_per_s):
    rates = Rates(1e12, 1e15, 1e-15, {"host": bytes_per_s, "disk": 1e9})  # products alone take time
    resources, changes = with_less(PLENTY, rates=rates), {"epochs": 3, "width": 784}
    found = plan(resources, layers=4, **changes, **ROUNDS)
    for layer in found.layers:
        work_s = sum(layer.seconds[name] for name in ("products", "memory", "operators"))
        moving_s = 2 * (layer.footprint.weights + layer.footprint.optimiser) / bytes_per_s
        assert layer.hiding_samples == pytest.approx(moving_s / (work_s / (3 * 60000)))
    assert all(layer.hiding_samples is None for layer in plan(resources, layers=4, **changes).layers)


@pytest.mark.parametrize(("normalise", "is_more"), [("channels", True), ("samples", False)])
def test_statistics_are_work_of_their_own(normalise, is_more):
    data = DataShape(64, 10, {"train": 1000}, (8, 8))
    config = ff.Config(recipe="conv-ff").override({"network.layers": f"conv4(normalise={normalise})", "batch": 32})
    config = config.override({"cache.shard_samples": 256, "precision": "fp32", "standardise": "none"})
    (layer,) = do_on_paper(Blueprint.of(config, data), draws_on_device=True)
    assert (layer.settle.flops > 0) == is_more


def test_plan_names_the_rounds():
    code, output, _ = run_cli("plan", "--order", "rounds", "--layers", 3, "--epochs", 5, "--width", 64)
    assert code == 0
    assert "3 layers in 5 rounds: about" in output
    assert "moving a layer in and out takes as long as its work on" in output
