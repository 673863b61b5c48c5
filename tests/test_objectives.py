"""Objectives against the definition and against autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffstream.objectives import OBJECTIVES, Objective


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
