"""Objectives against the definition and against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffstream.field.objectives import OBJECTIVES, Objective


def logistic(x):
    return -torch.log(torch.sigmoid(x[:, 0])) - torch.log(1 - torch.sigmoid(x[:, 1:])).mean(1)


def pairwise(x):
    return torch.log(1 + torch.exp(-(x[:, :1] - x[:, 1:]))).mean(1)


def cross_entropy(x):
    return -torch.log(torch.exp(x[:, 0]) / torch.exp(x).sum(1))


REFERENCES = {"logistic": logistic, "pairwise": pairwise, "cross_entropy": cross_entropy}


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_samples=st.integers(1, 9), num_negatives=st.integers(1, 9))
def test_loss_and_gradient_are_those_of_the_definition(name, seed, num_samples, num_negatives):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_samples, 1 + num_negatives, generator=generator, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    expected = REFERENCES[name](leaf)
    expected.sum().backward()
    for found in (OBJECTIVES[name].loss_and_gradient, lambda x: Objective.loss_and_gradient(OBJECTIVES[name], x)):
        loss, gradient = found(logits.clone())
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_extreme_goodness_keeps_loss_and_gradient_finite(name, size):
    loss, gradient = OBJECTIVES[name].loss_and_gradient(torch.tensor([[size, -size, 0.0], [-size, size, size]]))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_better_positive_is_never_worse(name):
    logits = torch.zeros(5, 4)
    logits[:, 0] = torch.arange(5.0)
    loss = OBJECTIVES[name].loss(logits)
    assert (loss[1:] < loss[:-1]).all()


def test_no_objective_of_the_package_lacks_a_reference_here():
    ours = {name for name in OBJECTIVES if type(OBJECTIVES[name]).__module__ == "ffstream.field.objectives"}
    assert ours == set(REFERENCES)


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


SCALARS = {
    "logistic": lambda p, ns: softplus(-p) + sum(softplus(n) for n in ns) / len(ns),
    "pairwise": lambda p, ns: sum(softplus(n - p) for n in ns) / len(ns),
    "cross_entropy": lambda p, ns: max(p, *ns) - p + math.log(sum(math.exp(x - max(p, *ns)) for x in [p, *ns])),
}


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("num_negatives", range(1, 10))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_extreme_logits_agree_with_stable_arithmetic_in_both_forms(name, num_negatives, data):
    extreme = st.sampled_from([-1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4])
    row = data.draw(st.lists(extreme, min_size=1 + num_negatives, max_size=1 + num_negatives))
    expected = torch.tensor([SCALARS[name](row[0], row[1:])])
    closed = OBJECTIVES[name].loss_and_gradient(torch.tensor([row]))
    default = Objective.loss_and_gradient(OBJECTIVES[name], torch.tensor([row]))
    for loss, gradient in (closed, default):
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 0] <= 0
        assert (gradient[0, 1:] >= 0).all()
    torch.testing.assert_close(closed[1], default[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_callers_logits_are_left_alone(name):
    logits = torch.tensor([[1.0, 2.0, -3.0]])
    OBJECTIVES[name].loss_and_gradient(logits)
    assert logits.tolist() == [[1.0, 2.0, -3.0]]
    assert not logits.requires_grad


@pytest.mark.parametrize("name", ["pairwise", "cross_entropy"])
def test_only_differences_count_where_there_is_no_threshold(name):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(OBJECTIVES[name].loss(logits), OBJECTIVES[name].loss(logits + 7))
    torch.testing.assert_close(OBJECTIVES[name].loss_and_gradient(logits)[1].sum(1), torch.zeros(6).double())
