"""Windows: what passes through all layers before the next one does, a part of a round's samples or all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.ground import seeding


@dataclass(frozen=True)
class Window:
    """One of the `num` windows of a round, which differ in size by at most one sample.

    If it `repeats`, all of them hold the same samples: those of one window of a stream.
    """

    number: int = 0  # from 0
    num: int = 1
    repeats: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the round ends with this window."""
        return self.number + 1 == self.num

    def count_before(self, epoch: int) -> int:
        """The number of windows before this one, in all epochs: what is drawn for a window depends on it."""
        return epoch * self.num + self.number

    def size(self, num_samples: int) -> int:
        """How many of the samples are in it. The first window is as large as any."""
        if self.repeats:
            return num_samples
        return num_samples // self.num + (self.number < num_samples % self.num)

    def select(self, num_samples: int, seed: int, epoch: int) -> Tensor | None:
        """The numbers of its samples (size,) in ascending order; None if it holds all samples.

        Every epoch draws anew which samples come together.
        """
        if self.num == 1 or self.repeats:
            return None
        order = torch.randperm(num_samples, generator=seeding.generator(seed, 0, epoch, "windows"))
        return order.tensor_split(self.num)[self.number].sort().values


WHOLE = Window()
