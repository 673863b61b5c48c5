"""Negative samplers never draw the true label."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffstream.field.negatives import NEGATIVE_SAMPLERS, Hard, distinct_offsets, uniform


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", list(NEGATIVE_SAMPLERS))
@settings(max_examples=40, deadline=None)
@given(data=st.data(), num_classes=st.integers(2, 12), seed=st.integers(0, 10**6))
def test_draws_are_wrong_distinct_labels(name, data, num_classes, seed):
    num_negatives = data.draw(st.integers(1, num_classes - 1))
    labels = torch.randint(0, num_classes, (50,), generator=generator(seed))
    drawn = NEGATIVE_SAMPLERS[name](labels, num_classes, num_negatives, generator(seed))
    assert drawn.shape == (50, num_negatives)
    assert drawn.dtype == torch.int64
    assert ((drawn >= 0) & (drawn < num_classes)).all()
    assert (drawn != labels.unsqueeze(1)).all()
    assert all(len(set(row)) == num_negatives for row in drawn.tolist())


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_uniform_draws_every_wrong_label_equally_often(num_negatives):
    labels = torch.full((9000,), 4)
    counts = uniform(labels, 10, num_negatives, generator()).flatten().bincount(minlength=10)
    expected = 1000 * num_negatives
    assert counts[4] == 0
    others = counts[torch.arange(10) != 4].double()
    assert float(((others - expected) ** 2 / expected).sum()) < 26.1  # chi-square, 8 degrees, p = 0.001


def test_draws_are_a_function_of_the_generator():
    first, again, other = (distinct_offsets(40, 9, 3, generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", list(NEGATIVE_SAMPLERS))
def test_a_sampler_reads_its_own_generator_and_no_global_one(name):
    labels = torch.arange(60) % 6
    before = torch.get_rng_state()
    torch.manual_seed(1)
    first = NEGATIVE_SAMPLERS[name](labels, 6, 2, generator(3))
    torch.manual_seed(2)
    untouched = torch.get_rng_state()
    again = NEGATIVE_SAMPLERS[name](labels, 6, 2, generator(3))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), untouched)
    torch.set_rng_state(before)


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_each_column_is_uniform_for_each_true_label(num_negatives):
    labels = torch.arange(10).repeat_interleave(4500)
    drawn = uniform(labels, 10, num_negatives, generator(11))
    for label in range(10):
        for column in drawn[labels == label].unbind(1):
            counts = column.bincount(minlength=10).double()
            others = counts[torch.arange(10) != label]
            assert counts[label] == 0
            assert float(((others - 500) ** 2 / 500).sum()) < 35  # chi-square, 8 degrees, p = 3e-5


def test_two_classes_leave_one_wrong_label():
    labels = torch.tensor([0, 1, 1, 0])
    assert torch.equal(uniform(labels, 2, 1, generator()).squeeze(1), 1 - labels)


def test_as_many_negatives_as_wrong_labels_are_all_of_them():
    drawn = uniform(torch.full((20,), 3), 5, 4, generator())
    assert all(sorted(row) == [0, 1, 2, 4] for row in drawn.tolist())


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_hard_negatives_come_by_the_softmax_of_their_goodness(num_negatives):
    logits = torch.tensor([0.5, 9.0, -1.0, 1.0, 0.0]).expand(40000, -1)
    noise = Hard().draw_noise(40000, 5, generator(3))
    allowed = logits.clone()
    allowed[:, 1] = -torch.inf
    drawn = Hard().choose(allowed, noise, num_negatives)
    assert (drawn != 1).all()
    assert all(len(set(row)) == num_negatives for row in drawn[:500].tolist())
    shares = drawn[:, 0].bincount(minlength=5).double() / 40000  # the first drawn is a plain draw
    expected = torch.softmax(logits[0].double().index_fill(0, torch.tensor([1]), -torch.inf), dim=0)
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)


def test_hard_negatives_are_a_function_of_their_noise():
    logits = torch.randn(50, 5, generator=generator(1))
    logits[:, 2] = -torch.inf
    noise, same = (Hard().draw_noise(50, 5, generator(4)) for _ in range(2))
    assert torch.equal(noise, same)
    first, again = (Hard().choose(logits.clone(), noise, 2) for _ in range(2))
    assert torch.equal(first, again)
    other = Hard().choose(logits.clone(), Hard().draw_noise(50, 5, generator(5)), 2)
    assert not torch.equal(first, other)
    assert sorted(Hard().choose(logits, noise, 4)[0].tolist()) == [0, 1, 3, 4]
