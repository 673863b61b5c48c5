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
        *(((3, 4), [code]) for code in (-9.0, 98.0)),
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


@pytest.mark.parametrize("seed", range(3))
def test_nine_among_answers_is_named_if_it_is_rarer_than_they_are(seed):
    for share, is_named in ((0.02, True), (0.15, False)):
        rows = with_codes(table(seed), (3, 4), [9.0], share)
        assert (find_code(rows, torch.arange(NUM_ROWS)) is not None) is is_named


NULL_VALUES = [-999.25, -9999.25, -99.9, -99.99, 999.9, 9999.99, 9.969209968386869e36, 9.96921e36, -1e31, -9.99e8]
NULL_VALUES += [1.70141e38, float(torch.finfo(torch.float32).min)]


@pytest.mark.parametrize("code", NULL_VALUES)
def test_the_null_values_of_formats_and_instruments_are_named(code):
    said = find_code(with_codes(table(), (1, 4), [code], 0.05), torch.arange(NUM_ROWS))
    assert f"value {code:g} occurs" in said
    assert "2 features (1, 4)" in said


@pytest.mark.parametrize("code", [99.99, 999.99])
def test_the_largest_of_prices_is_none(code):
    generator = generate(0)
    for others in ((4.99, 9.99, 14.99, 24.5), (5.0, 7.5, 9.99, 12.0, 14.99, 16.0)):
        rows = table()
        prices = torch.tensor(others)[torch.randint(0, len(others), (NUM_ROWS,), generator=generator)]
        rows[:, 1] = torch.where(torch.rand(NUM_ROWS, generator=generator) < 0.05, code, prices)
        assert find_code(rows, torch.arange(NUM_ROWS)) is None


def choose(*values):
    return lambda generator: torch.tensor(values)[torch.randint(0, len(values), (NUM_ROWS,), generator=generator)]


def normal(generator, mean, spread):
    return mean + spread * torch.randn(NUM_ROWS, generator=generator)


def put(value, share, others):
    """A column of `others`, made of a generator, of which a share is one value."""
    return lambda generator: torch.where(torch.rand(NUM_ROWS, generator=generator) < share, value, others(generator))


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
    "doses": choose(0.0, 1.0, 5.0, 10.0, 50.0, 100.0),
    "most in one of two groups": put(98.0, 0.4, lambda generator: normal(generator, 50, 6)),
    "probabilities of 1": put(1.0, 0.05, lambda generator: torch.rand(NUM_ROWS, generator=generator) * 0.6),
    "correlations of -1": put(-1.0, 0.05, lambda generator: torch.rand(NUM_ROWS, generator=generator) - 0.5),
    "percentages of 100": put(100.0, 0.05, lambda generator: normal(generator, 20, 8)),
    "a range limit": put(80.0, 0.2, lambda generator: normal(generator, 3, 1).abs()),
    "a time-out": put(60.0, 0.03, lambda generator: normal(generator, 3, 1).abs()),
    "differences of -1": put(-1.0, 0.05, lambda generator: 4 * normal(generator, 0, 1).abs()),
    "marks": put(6.0, 0.05, choose(1.0, 1.3, 1.7, 2.0, 2.3, 2.7, 3.0, 3.3, 3.7, 4.0)),
    "an ordinal": put(10.0, 0.05, choose(1.0, 2.0, 3.0, 4.0)),
    "powers of two": put(64.0, 0.02, choose(2.0, 4.0, 6.0, 8.0, 12.0, 16.0)),
    "limits of bits": put(
        255.0, 0.05, lambda generator: torch.randint(40, 65, (NUM_ROWS,), generator=generator).float()
    ),
    "powers of ten, less one": choose(9.0, 99.0, 999.0, 9999.0),
    "prices": put(999.0, 0.05, choose(19.0, 29.0, 49.0, 99.0, 199.0)),
    "ports": put(8080.0, 0.05, choose(22.0, 25.0, 53.0, 80.0, 443.0)),
    "odds": put(-110.0, 0.03, lambda generator: normal(generator, 150, 10).round()),
    "a rare second mode": put(60.0, 0.02, put(61.0, 0.02, put(59.0, 0.02, lambda generator: normal(generator, 20, 3)))),
    "a year before all others": put(1900.0, 0.03, lambda generator: normal(generator, 1990, 8).round()),
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
