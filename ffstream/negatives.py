"""Negative samplers: which wrong labels a sample is contrasted with.

A negative sampler is a function (labels (n,), num_classes, num_negatives, generator) -> wrong labels (n, K), int64,
distinct within a row and never the true one.
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


NEGATIVE_SAMPLERS: Registry[NegativeSampler] = Registry("negative sampler")
NEGATIVE_SAMPLERS.register("uniform", uniform)
