"""Numbers that stand for missing values, which are looked for in each feature by itself."""

from __future__ import annotations

import re

import pytest
import torch

from ffstream.data.missing_values import find_code

NUM_ROWS = 900


def generate(seed):
    return torch.Generator().manual_seed(seed)


def table(seed=0):
    """Magnitudes of normal numbers; whole numbers of 0 to 5 in features 3 to 5."""
    rows = torch.randn(NUM_ROWS, 8, generator=generate(seed)).abs()
    rows[:, 3:6] = torch.randint(0, 6, (NUM_ROWS, 3), generator=generate(seed + 1)).float()
    return rows


def with_codes(rows, features, codes, share=0.15):
    """Rows with some of the codes, at a share of the places in some features."""
    for number, feature in enumerate(features):
        is_missing = torch.rand(NUM_ROWS, generator=generate(number)) < share
        chosen = torch.randint(0, len(codes), (NUM_ROWS,), generator=generate(number))
        rows[:, feature] = torch.where(is_missing, torch.tensor(codes)[chosen], rows[:, feature])
    return rows


@pytest.mark.parametrize("largest", [1.0, 1e3, 1e6])
@pytest.mark.parametrize(
    ("features", "codes"),
    [
        *(((1, 2), [code]) for code in (-1.0, -9.0, 9.0, 77.0, 98.0, 255.0)),
        *(((3, 4), [code]) for code in (-9.0, 9.0, 98.0)),
        ((1, 2), [77.0, 88.0, 98.0]),
        ((3, 4), [96.0, 97.0, 98.0]),
        ((1, 2), [-9.0, -1.0]),
    ],
)
def test_a_code_is_named_whatever_other_features_hold(features, codes, largest):
    rows = with_codes(table(), features, codes)
    rows[:, 0] *= largest
    said = find_code(rows, torch.arange(NUM_ROWS))
    assert re.search(f"values? {', '.join(f'{code:g}' for code in codes)} occurs? .* 2 features .{features[0]}, ", said)


def choose(*values):
    return lambda generator: torch.tensor(values)[torch.randint(0, len(values), (NUM_ROWS,), generator=generator)]


ORDINARY = {
    "-1 and 0": choose(-1.0, 0.0),
    "-1 and 1": choose(-1.0, 1.0),
    "-1 to 3": choose(-1.0, 0.0, 1.0, 2.0, 3.0),
    "-2 to 0": choose(-2.0, -1.0, 0.0),
    "levels": choose(8.0, 10.0, 12.0, 13.0, 16.0, 18.0, 21.0),
    "notes": choose(5.0, 10.0, 20.0, 50.0),
    "counts": lambda generator: torch.poisson(torch.full((NUM_ROWS,), 1.5), generator),
    "ages": lambda generator: (38 + 13 * torch.randn(NUM_ROWS, generator=generator)).round().clamp(17, 90),
    "capped": lambda generator: (3 + torch.randn(NUM_ROWS, generator=generator)).exp().clamp(max=100),
    "rare amounts": lambda generator: 900.0 * (torch.rand(NUM_ROWS, generator=generator) < 0.05),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_value_at_an_end_of_its_feature_stands_for_nothing(name):
    for seed in range(5):
        rows = 40 * table(seed)
        rows[:, 6], rows[:, 7] = (ORDINARY[name](generate(10 * seed + number)) for number in (0, 1))
        assert find_code(rows, torch.arange(NUM_ROWS)) is None


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x / 16, lambda x: x / 8 - 1, lambda x: 16 - x])
def test_black_and_white_of_pictures_stand_for_nothing(change, digits):
    for start in range(0, 3600, 200):
        assert find_code(change(digits.train.images[start : start + 200].float()), torch.arange(200)) is None
