"""What is far smaller than the rest is named where a network has learnt little, and only there."""

from __future__ import annotations

import pytest
import torch

from ffstream.data import Split
from ffstream.run.judgement import Judgement
from ffstream.training.faintness import find_faint


def series(num=200):
    """Windows of six sensors, 40 times each."""
    return torch.randn(num, 6, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ones", [(), (1,)])
@pytest.mark.parametrize("standardise", ["none", "channels"])
def test_lines_in_far_smaller_units_are_named_along_either_axis(axis, ones, standardise):
    images = series()
    images[:, :2] /= 240
    images = images.transpose(1, axis + 1).reshape(200, *ones, *((6, 40), (40, 6))[axis])
    said = find_faint(images, standardise)
    assert f"of the 6 lines along axis {axis} of the training images, 2 (0, 1) are up to " in said
    assert find_faint(images, "features") is None  # which brings all to one size


def test_data_of_one_size_and_borders_and_zeros_are_not_named(digits):
    for images in (series(), series() / 1000, digits.train.images.float(), digits.train.images):
        assert find_faint(images, "none") is None
    padded = torch.nn.functional.pad(digits.train.images.float(), (4, 4, 4, 4))
    assert find_faint(padded, "none") is None
    assert find_faint(torch.zeros(50, 6, 40), "none") is None


def test_features_of_a_table_are_named_by_number():
    table = series().flatten(1)[:, :8]
    assert find_faint(table, "none") is None
    table[:, [3, 5]] /= 100
    assert "of the 8 features of the training images, 2 (3, 5) are up to" in find_faint(table, "none")
    images = torch.zeros(10, 3, 8, 8)
    assert find_faint(images, "none") is None  # of channels, the run says so when it starts


def judge(right, faint):
    """What is said of 200 validation images of which a share is right."""
    labels = torch.arange(200) % 4
    predicted = torch.where(
        torch.rand(200, generator=torch.Generator().manual_seed(0)) < right, labels, (labels + 1) % 4
    )
    scores = torch.nn.functional.one_hot(predicted, 4).double()
    nothing = Split(torch.zeros(0, 2), labels[:0])
    judgement = Judgement(labels, torch.arange(200), "validation images", faint, nothing, labels[:0])
    return list(judgement.judge(scores, ("a", "b", "c", "d")))


def test_it_is_said_only_of_a_network_that_has_learnt_little():
    assert judge(0.9, "something is small") == []
    (said,) = judge(0.6, "something is small")
    assert said.startswith("the validation error is 0.")
    assert said.endswith(", and something is small")
    assert [said[:20] for said in judge(0.0, "something is small")] == ["the validation error"] * 2
    assert judge(0.6, None) == []
