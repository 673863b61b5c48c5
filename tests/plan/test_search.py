"""The largest size that fits, found in few tries wherever the room shrinks, in whatever way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffstream.plan.search import find_most
from tests.plan.plans import PLENTY, plan, with_less


@given(most=st.integers(1, 3000), limit=st.integers(-5, 4000), power=st.sampled_from([0.3, 1, 2]))
def test_it_is_what_halving_finds(most, limit, power):
    def room_bytes(num):
        tried.append(num)
        return int(1000 * (limit**power if limit > 0 else limit) - 1000 * num**power)

    tried: list[int] = []
    found = find_most(room_bytes, most)
    fitting = [num for num in range(1, most) if room_bytes(num) >= 0]
    assert found == max(fitting, default=1)


@pytest.mark.parametrize("limit", [1, 17, 500, 2047])
def test_a_straight_line_takes_few_tries(limit):
    tried = []
    assert find_most(lambda num: tried.append(num) or limit - num, 2048) == limit
    assert len(tried) <= 5


@pytest.mark.parametrize("resource", ["host_bytes", "disk_bytes"])
def test_a_host_or_a_disk_that_is_too_small_makes_the_device_no_slower(resource):
    """The plan that comes nearest has the sizes of a machine with room."""
    changes = {"layers": 40, "width": 2000, "cache.tier": "disk"}
    roomy = plan(**changes)
    cramped = plan(with_less(PLENTY, **{resource: 300 << 20}), must_fit=False, **changes)
    assert not cramped.fits
    assert cramped.sizes == roomy.sizes
    assert cramped.device == roomy.device
