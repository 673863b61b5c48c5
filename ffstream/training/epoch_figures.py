"""What is known of an epoch: means over its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_MEANS = ("loss", "goodness_positive", "goodness_negative", "separation")


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

    @classmethod
    def from_mapping(cls, values: Mapping[str, float]) -> EpochFigures:
        """From what `dataclasses.asdict` gives. Raises KeyError for a name that is missing."""
        found = {name: float(values[name]) for name in _MEANS}
        return cls(num_samples=int(values["num_samples"]), elapsed_s=float(values["elapsed_s"]), **found)

    @property
    def means(self) -> dict[str, float]:
        """The means by name."""
        return {name: getattr(self, name) for name in _MEANS}

    def add(self, other: EpochFigures) -> EpochFigures:
        """The means over the samples of both, which are parts of one epoch."""
        num_samples = self.num_samples + other.num_samples
        own = self.num_samples / num_samples
        means = {name: own * value + (1 - own) * other.means[name] for name, value in self.means.items()}
        return EpochFigures(num_samples=num_samples, elapsed_s=self.elapsed_s + other.elapsed_s, **means)


def sum_figures(loss: Tensor, goodness: Tensor) -> Tensor:
    """From loss (n,) and goodness (n, 1 + K), sums over samples: loss, goodness (positive, negative), wins."""
    positive, negatives = goodness[:, 0], goodness[:, 1:]
    wins = (positive.unsqueeze(1) > negatives).float().mean(dim=1)
    return torch.stack([loss, positive, negatives.mean(dim=1), wins]).sum(dim=1)
