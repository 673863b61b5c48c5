"""Probabilities from goodness: temperatures and weights are those of least cross-entropy, and no fit goes astray."""

from __future__ import annotations

import re

import pytest
import torch

from ffstream.infer.combination import (
    RIDGES,
    Combination,
    _minimise,
    choose_ridge,
    find_uncounted,
    fit_temperature,
    fit_weights,
    measure_probabilities,
    plain_sum,
)
from ffstream.infer.evaluation import LabelSweep


def draw(num_layers, num_samples, num_classes, strengths, seed=0):
    """Goodness (layers, n, C) of noise in which layer k adds strengths[k] to the true label, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    goodness = torch.randn(num_layers, num_samples, num_classes, generator=generator)
    goodness[:, torch.arange(num_samples), labels] += torch.tensor(strengths).float().unsqueeze(1)
    return goodness, labels


@pytest.mark.parametrize("ridge", [*RIDGES, 0.0])
@pytest.mark.parametrize("size", [(1, 30, 3), (6, 20, 2), (6, 200, 10), (20, 60, 4)])
def test_no_weight_can_be_moved_for_the_better(size, ridge):
    num_layers, num_samples, num_classes = size
    goodness, labels = draw(*size, [0.2 * (k % 4) for k in range(num_layers)])
    weights = _minimise(goodness.double(), labels, ridge).requires_grad_()
    targets = torch.nn.functional.one_hot(labels, num_classes).double() + 1 / num_classes / num_samples
    logits = torch.einsum("k,knc->nc", weights, goodness.double())
    loss = torch.nn.functional.cross_entropy(logits, targets / (num_samples + 1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss + ridge * (weights - 1).square().sum(), weights)
    assert bool((weights >= 0).all())
    is_free = weights.detach() > 1e-3
    assert float(gradient[is_free].abs().max()) < 1e-3
    assert bool((gradient[~is_free] > -1e-4).all())  # at zero only what would be better still below it


def test_labels_of_a_plain_sum_are_those_of_the_sweep_to_the_bit():
    goodness, labels = draw(7, 500, 10, [0.3] * 7)
    for first_layer in (1, 2, 5, 7):
        sweep = LabelSweep(labels, first_layer)
        for depth, layer in enumerate(goodness, 1):
            sweep.add(layer)
            logits = plain_sum(depth, first_layer, 0.5).logits(goodness[:depth])
            assert torch.equal(logits, sweep.sum.double() / 0.5)


def test_the_temperature_is_the_one_that_labels_were_drawn_with():
    generator = torch.Generator().manual_seed(1)
    goodness = torch.randn(2, 20_000, 5, generator=generator)
    probabilities = torch.softmax(goodness.sum(dim=0) / 0.4, dim=1)
    labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    found = fit_temperature(plain_sum(2, 1, 1.0), goodness, labels)
    assert found.temperature == pytest.approx(0.4, rel=0.03)
    assert found.weights == (1.0, 1.0)
    figures = measure_probabilities(found.logits(goodness), labels)
    assert figures.expected_calibration_error < 0.015


def test_a_temperature_follows_the_units_of_goodness():
    goodness, labels = draw(3, 200, 4, [0.5] * 3)
    one = fit_temperature(plain_sum(3, 2, 1.0), goodness, labels).temperature
    for factor in (1e-6, 1e6):
        other = fit_temperature(plain_sum(3, 2, 1.0), goodness * factor, labels).temperature
        assert other == pytest.approx(one * factor, rel=1e-4)


@pytest.mark.parametrize("strength", [50.0, 0.0, -50.0])
def test_goodness_that_is_always_right_or_always_wrong_has_finite_probabilities(strength):
    goodness, labels = draw(3, 40, 4, [strength] * 3)
    for found in (fit_temperature(plain_sum(3, 1, 1.0), goodness, labels), fit_weights(list(goodness), labels, 1)):
        probabilities = torch.softmax(found.logits(goodness), dim=1)
        assert bool(probabilities.isfinite().all())
        if strength > 0:
            assert 0.9 < float(probabilities[torch.arange(40), labels].min()) < 1
        if strength < 0:
            assert float(probabilities.max()) < 0.3


def test_goodness_that_is_all_one_gives_every_label_the_same():
    found = fit_weights([torch.ones(10, 4)] * 3, torch.arange(10) % 4, 2)
    assert torch.equal(torch.softmax(found.logits([torch.ones(10, 4)] * 3), dim=1), torch.full((10, 4), 0.25).double())


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_few_samples_are_enough_to_fit(num_samples):
    goodness, labels = draw(4, num_samples, 3, [1.0] * 4)
    assert min(fit_weights(list(goodness), labels, 2).weights) >= 0


def test_layers_that_tell_nothing_lose_their_weight_and_those_below_the_first_have_none():
    goodness, labels = draw(4, 2000, 5, [3.0, 1.0, 0.0, 1.0])
    found = fit_weights(list(goodness), labels, 2)
    assert found.weights[0] == 0
    assert found.weights[2] < 0.25
    assert found.weights[1] == pytest.approx(found.weights[3], rel=0.2)
    assert sum(found.weights) == pytest.approx(3)


def test_with_the_strongest_ridge_a_fit_is_the_calibrated_plain_sum():
    goodness, labels = draw(5, 300, 5, [0.0, 1.0, 0.0, 2.0, 0.5])
    fitted = fit_weights(list(goodness), labels, 2, ridge=1e6)
    plain = fit_temperature(plain_sum(5, 2, 1.0), goodness, labels)
    assert fitted.weights == pytest.approx(plain.weights, abs=1e-3)
    assert fitted.temperature == pytest.approx(plain.temperature, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_forty_equal_layers_on_a_hundred_samples_are_not_told_apart(seed):
    goodness, labels = draw(40, 100, 5, [0.2] * 40, seed)
    fresh, fresh_labels = draw(40, 5000, 5, [0.2] * 40, seed + 100)
    losses = {}
    for name, ridge in (("chosen", None), ("weak", RIDGES[-1])):
        logits = fit_weights(list(goodness), labels, 1, ridge).logits(fresh)
        losses[name] = measure_probabilities(logits, fresh_labels).negative_log_likelihood
    plain = fit_temperature(plain_sum(40, 1, 1.0), goodness, labels).logits(fresh)
    assert losses["chosen"] < losses["weak"]
    assert losses["chosen"] < 1.05 * measure_probabilities(plain, fresh_labels).negative_log_likelihood


def test_a_strong_ridge_is_given_up_where_layers_differ():
    goodness, labels = draw(6, 1000, 5, [2.0, 0, 0, 0, 0, 0])
    assert choose_ridge(goodness.double(), labels) < RIDGES[0]


def test_a_fit_is_a_function_of_its_arguments():
    goodness, labels = draw(6, 100, 5, [0.5] * 6)
    torch.manual_seed(1)
    first = fit_weights(list(goodness), labels, 2)
    torch.manual_seed(2)
    assert fit_weights(list(goodness), labels, 2) == first


def test_figures_of_probabilities_are_those_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.35, 0.65]], dtype=torch.float64)
    found = measure_probabilities(probabilities.log(), torch.tensor([0, 1, 1, 1]))
    wanted = -torch.tensor([0.9, 0.1, 0.7, 0.65], dtype=torch.float64).log().mean()
    assert found.negative_log_likelihood == pytest.approx(float(wanted))
    # Bins of 1/15: both 0.9 in one, half of them right; 0.7 and 0.65 in two of their own, both right.
    assert found.expected_calibration_error == pytest.approx((2 * 0.4 + 0.3 + 0.35) / 4)


def test_weights_and_layers_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        Combination((1.0, 1.0), 1.0).logits([torch.ones(1, 2)])


def test_a_stack_of_which_no_layer_counts_is_named_with_numbers_of_layers_that_all_count():
    for num_layers in range(1, 26):
        for num_in_stack in range(7):
            weights = plain_sum(num_layers, 2, 1.0, num_in_stack).weights
            starts = range(0, num_layers, num_in_stack or num_layers)
            idle = [start for start in starts if not any(weights[start : start + (num_in_stack or num_layers)])]
            said = find_uncounted(num_layers, num_in_stack)
            assert (said is not None) == (idle != [])
            if said is not None:
                assert f"so that layer {num_layers} of {num_layers} would be trained for nothing" in said
                numbers = re.search(r"ask for (\d+) layers, or for (\d+)", said).groups()
                assert [find_uncounted(int(number), num_in_stack) for number in numbers] == [None, None]
