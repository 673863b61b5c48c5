"""Negative samplers: which wrong labels a sample is contrasted with.

A negative sampler is a function (labels (n,), num_classes, num_negatives, generator) -> wrong labels (n, K), int64,
distinct within a row and never the true one. A sampler that reads goodness is an `InformedSampler`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    """All wrong labels are equally likely (Hinton 2022, section 3.3)."""
    offsets = distinct_offsets(len(labels), num_classes - 1, num_negatives, generator)
    return (labels.unsqueeze(1) + offsets) % num_classes


class InformedSampler(ABC):
    """A negative sampler that reads the goodness of each candidate. A subclass needs `draw_noise` and `choose`.

    In a layer's first epoch, goodness says little. The sampler is then called like any other, and all wrong labels are
    equally likely.
    """

    def __call__(self, labels: Tensor, num_classes: int, num_negatives: int, generator: torch.Generator) -> Tensor:
        """Draw without goodness, all wrong labels being equally likely: (n,) -> (n, K)."""
        return uniform(labels, num_classes, num_negatives, generator)

    @abstractmethod
    def draw_noise(self, num_samples: int, num_values: int, generator: torch.Generator) -> Tensor:
        """All random numbers that `choose` uses, drawn before any goodness is known: (n, values)."""

    @abstractmethod
    def choose(self, logits: Tensor, noise: Tensor, num_negatives: int) -> Tensor:
        """Choose K values of each sample: (n, values), (n, values) -> their indices (n, K).

        `logits` is scale * goodness, or -inf where a value may not be chosen. May reuse the memory of `logits`.
        """


class Hard(InformedSampler):
    """Wrong labels drawn by the softmax of the goodness that the layer gives them in this step."""

    def draw_noise(self, num_samples: int, num_values: int, generator: torch.Generator) -> Tensor:
        """Noise of the Gumbel distribution: (n, values)."""
        return torch.empty(num_samples, num_values).exponential_(generator=generator).log_().neg_()

    def choose(self, logits: Tensor, noise: Tensor, num_negatives: int) -> Tensor:
        """Draw without replacement: the K largest noisy logits (Kool, van Hoof and Welling 2019, section 2)."""
        return logits.add_(noise).topk(num_negatives, dim=1).indices


NEGATIVE_SAMPLERS: Registry[NegativeSampler] = Registry("negative sampler", "negatives.sampler")
NEGATIVE_SAMPLERS.register("uniform", uniform)
NEGATIVE_SAMPLERS.register("hard", Hard())
