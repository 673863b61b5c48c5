"""Samples that a layer works on at once, with the candidates and the noise that are drawn for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.cache.pinned import to_device
from ffstream.field.labels import Candidates


@dataclass(frozen=True)
class MicroBatch:
    """Samples of a block, each with a positive and K negatives, or with what the step needs to choose the negatives."""

    block: Tensor  # (samples, rows, features)
    index: Tensor  # (n,), which samples of the block
    candidates: Tensor  # (n, 1 + K)
    others: Tensor | None = None  # goodness that earlier tiles give each candidate, (n, 1 + K)
    # While the negatives are still to be chosen: the noise of that choice, (n, choices), and the values to choose from,
    # (n, choices), or None for all that a candidate may take. `others` is then that of all values, (n, values).
    noise: Tensor | None = None
    pool: Tensor | None = None

    def cut(self, num_parts: int) -> list[MicroBatch]:
        """Cut into at most `num_parts` parts that differ by at most one sample; none is empty."""
        num_parts = min(num_parts, len(self.index))
        columns = (
            tensor.tensor_split(num_parts) if tensor is not None else [None] * num_parts
            for tensor in (self.index, self.candidates, self.others, self.noise, self.pool)
        )
        return [MicroBatch(self.block, *part) for part in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Draw:
    """What is drawn for all samples of a block, on the device; the fields are those of `MicroBatch`."""

    candidates: Tensor
    others: Tensor | None = None
    noise: Tensor | None = None
    pool: Tensor | None = None

    def list_bytes(self) -> tuple[int, ...]:
        """The bytes of each tensor, and of the order of the samples that is drawn with them."""
        tensors = (self.candidates, self.others, self.noise, self.pool)
        order = len(self.candidates) * torch.int64.itemsize
        return order, *(tensor.nbytes for tensor in tensors if tensor is not None)

    def take(self, block: Tensor, index: Tensor) -> MicroBatch:
        """A micro-batch of some samples of the block, with copies of what is drawn for them."""
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
    """Draw for the samples that have these labels (n,).

    `others` (n, values) is the goodness that earlier tiles give every value that a candidate may take; both tensors are
    on the host. `informed` is true after the layer's first epoch, when its goodness can rank negatives: an informed
    sampler then chooses by it.
    """
    drawn, noise, pool = candidates.draw(labels, generator), None, None
    if candidates.informed is not None and informed:
        pool = candidates.draw_pool(labels, generator)
        noise = candidates.informed.draw_noise(len(labels), candidates.num_choices, generator)
    elif others is not None:
        others = others.gather(1, drawn)
    rest = (to_device(tensor, device) if tensor is not None else None for tensor in (others, noise, pool))
    return Draw(to_device(drawn, device), *rest)


def samples_in_sweep(num_samples: int, num_candidates: int, num_rows: int) -> int:
    """How many samples are measured at once, all `num_rows` rows of each, to choose their negatives.

    They have at most as many rows as the step then multiplies, except that one sample is always allowed.
    """
    return max(1, num_samples * num_candidates // num_rows)
