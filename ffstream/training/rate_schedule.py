"""The learning rate in the course of a layer's epochs, and when a layer that learns nothing more is done early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RateSchedule:
    """A constant learning rate, which falls linearly to 0 after `decay_start` of `num_epochs` epochs."""

    num_epochs: int
    decay_start: float  # share of the epochs, in [0, 1]
    start: int = 0  # epochs that were taken before the first of them

    def factor(self, epochs_taken: float) -> float:
        """What the learning rate is multiplied by after so many epochs, in [start, start + num_epochs)."""
        progress = (epochs_taken - self.start) / self.num_epochs
        return 1.0 if progress < self.decay_start else (1.0 - progress) / max(1.0 - self.decay_start, 1e-12)

    def shorten(self, errors: Sequence[float], patience: int) -> RateSchedule:
        """The schedule after epochs with these validation errors: shorter, if they have ceased to fall.

        They have if the last `patience` of them are no lower than the lowest before. The rate then falls at once, and
        as it would have if the epochs taken were the share `decay_start` of all: most of what a layer can still gain
        comes as the rate falls, so that it does not just stop. With a patience of 0, nothing is shortened, nor is what
        has begun to fall.
        """
        lowest, num_since = math.inf, 0
        for taken, error in enumerate(errors, start=1):
            if taken >= self.decay_start * self.num_epochs:
                break
            num_since = 0 if error < lowest else num_since + 1
            lowest = min(lowest, error)
            if patience and num_since >= patience:
                num_epochs = min(math.ceil(taken / self.decay_start), self.num_epochs)
                return RateSchedule(num_epochs, taken / num_epochs, self.start)
        return self
