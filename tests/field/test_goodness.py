"""Goodness and its gradient against the definition and against autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffstream.device.memory import measure_peak_bytes
from ffstream.field.goodness import GOODNESSES, Goodness
from tests.helpers import make_dense

REFERENCES = {
    "sum_squares": lambda h: (h * h).sum(1),
    "mean_squares": lambda h: (h * h).mean(1),
    "neg_sum_squares": lambda h: -(h * h).sum(1),
    "neg_mean_squares": lambda h: -(h * h).mean(1),
    "sum": lambda h: h.sum(1),
    "mean": lambda h: h.mean(1),
}

LAYER = make_dense(1, 1)


def draw(seed, num_rows, num_units):
    generator = torch.Generator().manual_seed(seed)
    preactivations = torch.randn(num_rows, num_units, generator=generator, dtype=torch.float64)
    return preactivations, torch.randn(num_rows, generator=generator, dtype=torch.float64)


def test_every_goodness_has_a_reference_here():
    assert set(GOODNESSES) >= set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 9), num_units=st.integers(1, 40))
def test_value_and_gradient_are_those_of_the_definition(name, seed, num_rows, num_units):
    preactivations, upstream = draw(seed, num_rows, num_units)
    leaf = preactivations.clone().requires_grad_()
    expected = REFERENCES[name](torch.relu(leaf))
    (gradient,) = torch.autograd.grad(expected, leaf, upstream)
    activities = torch.relu(preactivations)
    torch.testing.assert_close(GOODNESSES[name].value(activities), expected.detach())
    torch.testing.assert_close(LAYER.through_goodness_(GOODNESSES[name], activities.clone(), upstream), gradient)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 9), num_units=st.integers(1, 40))
def test_the_closed_form_is_the_gradient_by_activities(name, seed, num_rows, num_units):
    preactivations, upstream = draw(seed, num_rows, num_units)
    activities, goodness = torch.relu(preactivations), GOODNESSES[name]
    expected = Goodness.gradient(goodness, activities, upstream)
    torch.testing.assert_close(goodness.gradient(activities, upstream).expand_as(activities), expected)
    torch.testing.assert_close(goodness.gradient(activities, upstream, out=torch.empty_like(activities)), expected)
    flat = expected[activities == 0]
    assert not goodness.is_flat_at_zero or not flat.any()
    torch.testing.assert_close(goodness.gradient(activities, upstream, out=activities), expected)


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("sum_squares", 70.0),
        ("mean_squares", 1.0),
        ("neg_sum_squares", -70.0),
        ("neg_mean_squares", -1.0),
        ("sum", 70.0),
        ("mean", 1.0),
    ],
)
def test_automatic_threshold_is_the_width_for_sums_and_one_for_means(name, threshold):
    assert GOODNESSES[name].default_threshold(70) == pytest.approx(threshold)


@pytest.mark.parametrize("name", list(GOODNESSES))
def test_the_threshold_of_a_wide_layer_takes_no_memory(name):
    assert measure_peak_bytes(lambda: GOODNESSES[name].default_threshold(1 << 20), torch.device("cpu")) < 100


def test_no_goodness_of_the_package_lacks_a_reference_here():
    ours = {name for name in GOODNESSES if type(GOODNESSES[name]).__module__ == "ffstream.field.goodness"}
    assert ours == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(-1e4, 1e4, width=32), min_size=width, max_size=width), min_size=1, max_size=5
        )
    )
)
def test_any_single_precision_values_agree_with_double_precision(name, rows):
    preactivations = torch.tensor(rows, dtype=torch.float32)
    leaf = preactivations.double().requires_grad_()
    expected = REFERENCES[name](torch.relu(leaf))
    expected.sum().backward()
    activities = torch.relu(preactivations)
    torch.testing.assert_close(GOODNESSES[name].value(activities).double(), expected.detach(), rtol=1e-5, atol=1e-30)
    gradient = LAYER.through_goodness_(GOODNESSES[name], activities, torch.ones(len(rows)))
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_silent_row_has_no_gradient(name):
    assert not LAYER.through_goodness_(GOODNESSES[name], torch.zeros(2, 5), torch.ones(2)).any()


class FourthPowers(Goodness):
    """Not a sum of squares, and its slope is not zero where the ReLU closes."""

    def value(self, activities):
        return (activities + 1).pow(4).sum(1)


def test_the_default_gradient_of_a_users_goodness_goes_through_the_layers_activation():
    preactivations, upstream = draw(3, 7, 11)
    leaf = preactivations.clone().requires_grad_()
    (expected,) = torch.autograd.grad(FourthPowers().value(torch.relu(leaf)), leaf, upstream)
    with torch.no_grad():
        torch.testing.assert_close(
            LAYER.through_goodness_(FourthPowers(), torch.relu(preactivations), upstream), expected
        )
    assert FourthPowers().default_threshold(3) == pytest.approx(48.0)
