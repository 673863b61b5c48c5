"""The binomial law, by which a count is told from an accident."""

from __future__ import annotations

import torch


def sum_upper_tail(least: int, num: int, chance: float) -> float:
    """The probability of `least` or more successes in `num` trials that succeed with probability `chance`."""
    if least <= 0:
        return 1.0
    if not 0 < chance < 1:
        return float(chance >= 1)
    hits = torch.arange(least, num + 1, dtype=torch.float64)
    total = torch.tensor(num, dtype=torch.float64)
    ways = torch.lgamma(total + 1) - torch.lgamma(hits + 1) - torch.lgamma(total - hits + 1)
    rates = torch.tensor([chance, 1 - chance], dtype=torch.float64).log()
    return float((ways + hits * rates[0] + (total - hits) * rates[1]).exp().sum())
