"""The time that a plan expects, and the rates that it is made of."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ffstream as ff
from ffstream.plan.plan import Rates
from ffstream.plan.probe import epochs_of_one_layer, measure_rates
from tests.plan.plans import CPU, CUDA, plan, with_less

RATES = Rates(1e12, 1e11, 1e-6, {"host": 1e10, "disk": 1e9})


def test_without_rates_no_time_is_planned():
    assert plan().total_s is None
    assert plan().layers[0].bottleneck is None


def test_time_grows_with_epochs_and_depth_and_shrinks_with_speed():
    resources = with_less(CUDA, rates=RATES)
    base = plan(resources, epochs=5, layers=4).total_s
    assert plan(resources, epochs=10, layers=4).total_s > 1.8 * base
    assert plan(resources, epochs=5, layers=8).total_s > 1.8 * base
    faster = dataclasses.replace(RATES, flops_per_s=2e12, moved_bytes_per_s=2e11, operator_s=5e-7)
    assert plan(with_less(CUDA, rates=faster), epochs=5, layers=4).total_s == pytest.approx(base / 2)


def test_products_are_counted_as_arithmetic_says():
    """4 * d_in * d_out a row in training, 2 a row in each pass."""
    changes = {"validation_fraction": 0.0, "epochs": 3, "layers": 2, "width": 512}
    changes |= {"objective.perturbation": 0.0, "negatives.per_step": 3}
    layer = plan(with_less(CUDA, rates=RATES), num_samples=512 * 100, num_features=512, batch=512, **changes).layers[0]
    rows, embedding = 512 * 100, 4 * 2 * 10 * 512  # and dU, from one-hot rows, of four candidates
    passes = 2 * 512 * 512 * rows * 1.1 * (3 * 0.1 / 1.1 + 1)  # validation each epoch, and handing all on
    expected = 3 * rows * (4 * 512 * 512 + embedding) + passes
    assert layer.seconds["products"] * RATES.flops_per_s == pytest.approx(expected, rel=0.03)


def test_the_default_is_planned_with_the_products_of_its_adversarial_steps():
    """8 * d_in * d_out a row in training: forward twice, the input's gradient and the weights'."""
    changes = {"validation_fraction": 0.0, "epochs": 5, "layers": 2, "width": 512, "negatives.sampler": "hard"}
    layer = plan(with_less(CUDA, rates=RATES), num_samples=512 * 100, num_features=512, batch=512, **changes).layers[0]
    assert layer.read_bytes == 512 * 100 * 512 * 2 * (5 + 1) + 5120 * 512 * 2 * (5 + 1)
    rows, embedding = 512 * 100, 2 * 2 * 10 * 512
    passes = 2 * 512 * 512 * rows * (1.1 * 1 + 0.1 * 5)
    expected = 5 * rows * (8 * 512 * 512 + embedding) + passes
    assert layer.seconds["products"] * RATES.flops_per_s == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("slow", "bottleneck"),
    [
        ({"flops_per_s": 1e9}, "products"),
        ({"moved_bytes_per_s": 1e6}, "memory"),
        ({"operator_s": 1.0}, "operators"),
        ({"loaded_bytes_per_s": {"host": 1e3, "disk": 1e3}}, "loading"),
    ],
)
def test_what_is_slow_is_the_bottleneck(slow, bottleneck):
    resources = with_less(CUDA, rates=dataclasses.replace(RATES, **slow))
    assert plan(resources, **{"cache.tier": "disk"}).layers[0].bottleneck == bottleneck


def test_the_width_from_which_loading_hides_is_that_of_the_design():
    """417 units at 10 TFLOP/s and bf16 over 12 GB/s PCIe, 1667 from a disk of 3 GB/s."""
    rates = Rates(1e13, 1e11, 1e-6, {"host": 12e9, "disk": 3e9})
    for tier, units in (("host", 417), ("disk", 1667)):
        found = plan(with_less(CUDA, rates=rates), **{"cache.tier": tier}).layers[0].hiding_units
        assert found == pytest.approx(units, abs=0.5)
    assert plan(with_less(CUDA, rates=rates), **{"cache.tier": "device"}).layers[0].hiding_units is None
    overlay = {"recipe": "hinton", "cache.tier": "disk"}  # ten rows are loaded for two that are used
    assert plan(with_less(CUDA, rates=rates), **overlay).layers[0].hiding_units == pytest.approx(5 * 1667, abs=2)


def test_loading_hides_behind_the_rest():
    resources = with_less(CUDA, rates=RATES)
    staged, resident = (plan(resources, **{"cache.tier": tier}) for tier in ("host", "device"))
    assert staged.layers[0].seconds["loading"] > 0
    assert staged.total_s == resident.total_s


def test_rates_of_this_machine_are_positive_and_a_plan_made_of_them_takes_time(tmp_path):
    rates = measure_rates(ff.Config(precision="fp32"), CPU, tmp_path)
    assert min(rates.flops_per_s, rates.moved_bytes_per_s, rates.operator_s, *rates.loaded_bytes_per_s.values()) > 0
    assert plan(with_less(rates=rates), epochs=1).total_s > 0
    assert list(tmp_path.iterdir()) == []


def test_rates_are_positive_where_the_machine_was_disturbed_while_products_were_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("ffstream.plan.probe._measure_products", lambda *_: 1e6)  # each step is a hundred times as fast
    rates = measure_rates(ff.Config(precision="fp32"), CPU, tmp_path)
    assert min(rates.moved_bytes_per_s, rates.operator_s) > 0


def test_rates_are_measured_by_dense_layers_whatever_options_the_kind_has():
    config = ff.Config(batch=64, precision="fp32", device="cpu").override({"network.kind": "conv"})
    with epochs_of_one_layer(config.override({"parts.layer.kernel": 5}), 32, 64, torch.device("cpu")) as (_, _, step):
        assert step.flops > 0
