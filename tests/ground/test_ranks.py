"""Ranks, beside their definition."""

from __future__ import annotations

import torch

from ffstream.ground.ranks import rank


def test_equal_values_share_the_mean_of_their_ranks():
    values = torch.randint(6, (40,), generator=torch.Generator().manual_seed(0)).double() - 2.5
    for value, found in zip(values, rank(values), strict=True):
        assert float(found) == int((values < value).sum()) + (int((values == value).sum()) + 1) / 2
    assert float(rank(values).sum()) == 40 * 41 / 2
    assert torch.equal(rank(-values), 41 - rank(values))
