"""What is known of an epoch: means over its samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochFigures:
    """Means over the samples of an epoch so far, each sample measured in the step that trains on it."""

    loss: float
    goodness_positive: float
    goodness_negative: float
    separation: float  # P(g_pos > g_neg)
    num_samples: int
    elapsed_s: float

    @classmethod
    def of(cls, totals: Tensor, num_samples: int, elapsed_s: float) -> EpochFigures:
        """From the sums (4,) that `sum_figures` gives."""
        loss, positive, negative, wins = (totals / num_samples).tolist()
        return cls(loss, positive, negative, wins, num_samples, elapsed_s)


def sum_figures(loss: Tensor, goodness: Tensor) -> Tensor:
    """From loss (n,) and goodness (n, 1 + K), sums over samples: loss, goodness (positive, negative), wins."""
    positive, negatives = goodness[:, 0], goodness[:, 1:]
    wins = (positive.unsqueeze(1) > negatives).float().mean(dim=1)
    return torch.stack([loss, positive, negatives.mean(dim=1), wins]).sum(dim=1)
