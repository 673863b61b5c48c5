"""A test error far above the validation error is named with both; one that chance explains never is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ffstream as ff
from ffstream.infer.gap import find_gap, measure_spread


def draw(share, num, seed):
    return torch.rand(num, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("error", [0.0, 0.05, 0.3, 0.6])
@pytest.mark.parametrize(("num", "num_held_out"), [(20, 5), (100, 25), (600, 125), (5000, 2000)])
def test_splits_of_one_error_are_never_named(error, num, num_held_out):
    for seed in range(25):
        assert find_gap(draw(error, num, seed), draw(error, num_held_out, seed + 1000)) is None


def test_a_test_error_far_above_is_named_with_figures_and_sizes_but_not_one_below():
    for seed in range(10):
        high, low = draw(0.4, 600, seed), draw(0.08, 150, seed + 1000)
        assert f"the test error of {high.double().mean():.3f} (600 images) is far above" in find_gap(high, low)
        assert "(150 images)" in find_gap(high, low)
        assert find_gap(low, high) is None
        assert find_gap(draw(0.16, 10_000, seed), draw(0.09, 10_000, seed + 1000)) is None  # as other writers err


def test_images_of_few_persons_count_for_fewer():
    for seed in range(10):
        by_person, held_out = draw(0.3, 20, seed).repeat_interleave(40), draw(0.2, 200, seed)
        mixed = by_person[torch.randperm(800, generator=torch.Generator().manual_seed(seed))]
        assert measure_spread(by_person, held_out) > 1.5 * measure_spread(mixed, held_out)


def test_no_images_have_no_gap():
    nothing = torch.zeros(0, dtype=torch.bool)
    assert find_gap(nothing, draw(0.5, 10, 0)) is None
    assert find_gap(draw(0.5, 10, 0), nothing) is None


@pytest.mark.parametrize(("recipe", "method"), [("inject", "goodness"), ("inject", "fitted"), ("unsupervised", "auto")])
def test_test_images_of_which_some_are_turned_are_named(recipe, method, digits, tmp_path):
    images, labels = digits.test.images.numpy()[:600], digits.test.labels.numpy()[:600]
    is_turned = np.random.default_rng(0).random((600, 1, 1)) < 0.45
    turned = np.where(is_turned, np.rot90(images, 1, (1, 2)), images)
    train = digits.train.take(slice(1500))
    np.savez(tmp_path / "d.npz", x_train=train.images, y_train=train.labels, x_test=turned, y_test=labels)
    data = str(tmp_path / "d.npz")
    config = ff.Config(recipe=recipe, data=data, layers=2, width=64, epochs=8, device="cpu")
    run = ff.train(config, tmp_path / "run")
    assert "is far above the validation error" in run.evaluate(method).warning
