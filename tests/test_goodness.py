"""Goodness and its gradient against the definition and against autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffstream.goodness import GOODNESSES, Goodness

REFERENCES = {
    "sum_squares": lambda h: (h * h).sum(1),
    "mean_squares": lambda h: (h * h).mean(1),
    "neg_sum_squares": lambda h: -(h * h).sum(1),
    "neg_mean_squares": lambda h: -(h * h).mean(1),
}


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
    torch.testing.assert_close(Goodness.gradient_(GOODNESSES[name], activities.clone(), upstream), gradient)
    torch.testing.assert_close(GOODNESSES[name].gradient_(activities.clone(), upstream), gradient)


@pytest.mark.parametrize(
    ("name", "threshold"),
    [("sum_squares", 70.0), ("mean_squares", 1.0), ("neg_sum_squares", -70.0), ("neg_mean_squares", -1.0)],
)
def test_automatic_threshold_is_the_width_for_sums_and_one_for_means(name, threshold):
    assert GOODNESSES[name].default_threshold(70) == pytest.approx(threshold)
