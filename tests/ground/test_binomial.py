"""The binomial law, beside its formula written out."""

from __future__ import annotations

import math

import pytest

from ffstream.ground.binomial import sum_upper_tail


def test_the_tail_is_the_sum_of_the_binomial_law():
    for num, least, chance in ((7, 3, 0.2), (40, 39, 0.9), (12, 0, 0.5), (5, 5, 1.0), (5, 1, 0.0)):
        ways = [math.comb(num, k) * chance**k * (1 - chance) ** (num - k) for k in range(least, num + 1)]
        assert sum_upper_tail(least, num, chance) == pytest.approx(sum(ways))
