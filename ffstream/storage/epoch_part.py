"""Where a layer is within an epoch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EpochPart:
    """All that a process needs to go on within an epoch, beside the layer and its optimiser.

    A part ends between two groups of shards, of which each is one batch or holds whole batches. The generators have
    drawn all that these batches needed by then, and nothing else.
    """

    num_groups: int  # of shards, that were trained on
    num_samples: int
    elapsed_s: float
    totals: Tensor  # (4,) float32: sums of loss, goodness (positive, negative) and wins
    host_state: Tensor  # (bytes,) uint8, of the generator that draws batches and negatives
    device_state: Tensor  # (bytes,) uint8, of the generator that draws dropout
