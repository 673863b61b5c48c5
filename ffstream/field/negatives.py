"""Negative samplers: which wrong labels a sample is contrasted with.

A negative sampler is a function (labels (n,), num_classes, num_negatives, generator) -> wrong labels (n, K), int64,
distinct within a row and never the true one. One that reads goodness is an `InformedSampler`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ffstream.ground.registry import Registry

NegativeSampler = Callable[[Tensor, int, int, torch.Generator], Tensor]


def distinct_offsets(num_samples: int, num_wrong: int, num_drawn: int, generator: torch.Generator) -> Tensor:
    """Uniform draws without replacement from 1..num_wrong: (num_samples, num_drawn), int64."""
    if num_drawn == 1:
        return torch.randint(1, num_wrong + 1, (num_samples, 1), generator=generator)
    keys = torch.rand(num_samples, num_wrong, generator=generator)
    return keys.topk(num_drawn, dim=1).indices + 1


def uniform(labels: Tensor, num_classes: int, num_negatives: int, generator: torch.Generator) -> Tensor:
    """Every wrong label is as likely as any other (Hinton 2022, section 3.3)."""
    offsets = distinct_offsets(len(labels), num_classes - 1, num_negatives, generator)
    return (labels.unsqueeze(1) + offsets) % num_classes


class InformedSampler:
    """A negative sampler that is also told what a layer makes of each candidate. A subclass needs the two below.

    In a layer's first epoch there is little to tell: then every wrong label is as likely as any other.
    """

    def __call__(self, labels: Tensor, num_classes: int, num_negatives: int, generator: torch.Generator) -> Tensor:
        """(n,) -> (n, K)."""
        return uniform(labels, num_classes, num_negatives, generator)

    def draw_noise(self, num_samples: int, num_values: int, generator: torch.Generator) -> Tensor:
        """All that is random in what `choose` does, drawn before there is anything to tell: (n, values)."""
        raise NotImplementedError

    def choose(self, logits: Tensor, noise: Tensor, num_negatives: int) -> Tensor:
        """Scale * goodness of all that may be chosen (n, values), -inf for what may not, (n, values) -> which (n, K).

        May reuse the memory of `logits`.
        """
        raise NotImplementedError


class Hard(InformedSampler):
    """Wrong labels that the layer takes for likely in this very step: by the softmax of their goodness."""

    def draw_noise(self, num_samples: int, num_values: int, generator: torch.Generator) -> Tensor:
        """Of the Gumbel distribution."""
        return torch.empty(num_samples, num_values).exponential_(generator=generator).log_().neg_()

    def choose(self, logits: Tensor, noise: Tensor, num_negatives: int) -> Tensor:
        """Without replacement: the largest logits with their noise (Kool, van Hoof and Welling 2019, section 2)."""
        return logits.add_(noise).topk(num_negatives, dim=1).indices


NEGATIVE_SAMPLERS: Registry[NegativeSampler] = Registry("negative sampler", "negatives.sampler")
NEGATIVE_SAMPLERS.register("uniform", uniform)
NEGATIVE_SAMPLERS.register("hard", Hard())
