"""A value from which the spread of a standardised feature comes: an error, or the end of a heavy tail."""

from __future__ import annotations

import re

import pytest
import torch

from ffstream.data import Scaling
from ffstream.training.visibility import find_hidden

NUM_ROWS = 900


def generate(seed):
    return torch.Generator().manual_seed(seed)


def said_of_standardised(column, labels):
    rows = torch.randn(NUM_ROWS, 8, generator=generate(0))
    rows[:, 3] = column
    return find_hidden(rows, labels, Scaling.of(rows, float(rows.abs().max()), "features"), "features")


TAILS = {
    "lognormal": lambda x: (4 * x).exp(),
    "Cauchy": lambda x: (3.1415 * (torch.special.ndtr(x) - 0.5)).tan() ** 3,
    "rare amounts": lambda x: torch.where(x > 2, (2 * x + 5).exp(), 0.0),
}


@pytest.mark.parametrize("name", TAILS)
def test_of_a_heavy_tail_no_image_is_to_blame(name):
    """What is hidden by the largest values matters only if it tells classes; then the logarithm shows it."""
    labels = torch.arange(NUM_ROWS) % 2
    normal = torch.randn(NUM_ROWS, generator=generate(1))
    assert said_of_standardised(TAILS[name](normal), labels) is None
    if name == "lognormal":
        assert "take the logarithm of feature 3" in said_of_standardised(TAILS[name](normal + labels), labels)


def test_a_value_that_is_far_from_a_feature_without_a_tail_is_to_be_mended():
    column = torch.randn(NUM_ROWS, generator=generate(1))
    column[7] = 1e6
    assert re.search("image 7 .* holds 1e\\+06.* mend or", said_of_standardised(column, torch.arange(NUM_ROWS) % 2))
