"""Negative samplers: which wrong labels a sample is contrasted with.

A negative sampler is a function (labels (n,), num_classes, num_negatives, generator) -> wrong labels (n, K), int64,
distinct within a row and never the true one. One that reads goodness is an `InformedSampler`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ffstream.registry import Registry

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
    """A negative sampler that is also told what a layer makes of each label. A subclass needs `draw`.

    Before a layer's first epoch there is nothing to tell: then every wrong label is as likely as any other.
    """

    def __call__(self, labels: Tensor, num_classes: int, num_negatives: int, generator: torch.Generator) -> Tensor:
        """(n,) -> (n, K)."""
        return uniform(labels, num_classes, num_negatives, generator)

    def draw(self, labels: Tensor, logits: Tensor, num_negatives: int, generator: torch.Generator) -> Tensor:
        """(n,), scale * goodness of every label (n, num_classes) -> (n, K)."""
        raise NotImplementedError


class Hard(InformedSampler):
    """Wrong labels that the layer took for likely before this epoch: by the softmax of their goodness."""

    def draw(self, labels: Tensor, logits: Tensor, num_negatives: int, generator: torch.Generator) -> Tensor:
        """Without replacement: the largest logits, each with Gumbel noise (Kool, van Hoof and Welling 2019, sec. 2)."""
        keys = torch.empty_like(logits).exponential_(generator=generator).log_().neg_().add_(logits)
        return keys.scatter_(1, labels.unsqueeze(1), -torch.inf).topk(num_negatives, dim=1).indices


NEGATIVE_SAMPLERS: Registry[NegativeSampler] = Registry("negative sampler")
NEGATIVE_SAMPLERS.register("uniform", uniform)
NEGATIVE_SAMPLERS.register("hard", Hard())
