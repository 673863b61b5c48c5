"""Samples that a layer works on at once, with what is drawn for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.field.labels import Candidates


@dataclass(frozen=True)
class MicroBatch:
    """Samples of a block, and for each of them a positive and K negatives, or what chooses these in the step."""

    block: Tensor  # (samples, rows, features)
    index: Tensor  # (n,), of the samples in it
    candidates: Tensor  # (n, 1 + K)
    others: Tensor | None = None  # goodness of the other tiles for each candidate, (n, 1 + K)
    # While the negatives are still to be chosen: what is random in that, (n, choices), and what they are chosen from,
    # likewise; without a pool, all that a candidate may be. `others` are then of all these, (n, values).
    noise: Tensor | None = None
    pool: Tensor | None = None

    def cut(self, num_parts: int) -> list[MicroBatch]:
        """In parts that differ by at most one sample, none of them empty."""
        num_parts = min(num_parts, len(self.index))
        columns = (
            tensor.tensor_split(num_parts) if tensor is not None else [None] * num_parts
            for tensor in (self.index, self.candidates, self.others, self.noise, self.pool)
        )
        return [MicroBatch(self.block, *part) for part in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Draw:
    """What is drawn for all samples of a block, as a micro-batch holds it, on the device."""

    candidates: Tensor
    others: Tensor | None = None
    noise: Tensor | None = None
    pool: Tensor | None = None

    def take(self, block: Tensor, index: Tensor) -> MicroBatch:
        """Some samples of the block, with copies of what is drawn for them."""
        others, noise, pool = (
            tensor.index_select(0, index) if tensor is not None else None
            for tensor in (self.others, self.noise, self.pool)
        )
        return MicroBatch(block, index, self.candidates.index_select(0, index), others, noise, pool)


def draw_for(
    labels: Tensor,
    candidates: Candidates,
    others: Tensor | None,
    generator: torch.Generator,
    device: torch.device,
    *,
    informed: bool,
) -> Draw:
    """For samples with these labels (n,), whose goodness of the other tiles is `others` (n, values), on the host.

    `informed` is true once the goodness of the layer can rank negatives, from its second epoch on; an informed sampler
    chooses by it.
    """
    drawn, noise, pool = candidates.draw(labels, generator), None, None
    if candidates.informed is not None and informed:
        pool = candidates.draw_pool(labels, generator)
        noise = candidates.informed.draw_noise(len(labels), candidates.num_choices, generator)
    elif others is not None:
        others = others.gather(1, drawn)
    rest = (tensor.to(device) if tensor is not None else None for tensor in (others, noise, pool))
    return Draw(drawn.to(device), *rest)


def samples_in_sweep(num_samples: int, num_candidates: int, num_rows: int) -> int:
    """Samples whose rows, all of them, are measured at once to choose negatives: as many rows as a step then takes."""
    return max(1, num_samples * num_candidates // num_rows)
