"""Layer-local objectives: a loss per sample from the goodness of its positive and its K negatives.

Every objective reads `logits` = scale * (goodness - threshold), shape (n, 1 + K), the positive in column 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ffstream.ground.registry import Registry


class Objective(ABC):
    """A differentiable objective. A subclass needs `loss`; `loss_and_gradient` may be overridden by a closed form."""

    @abstractmethod
    def loss(self, logits: Tensor) -> Tensor:
        """Loss of each sample: (n, 1 + K) -> (n,)."""

    def loss_and_gradient(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (n,) and its gradient with respect to the logits (n, 1 + K)."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = self.loss(leaf)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient


class Logistic(Objective):
    """-log sigmoid(positive) - mean_k log sigmoid(-negative_k): goodness against a threshold (Hinton 2022, eq. 1)."""

    def loss(self, logits: Tensor) -> Tensor:
        """Loss of each sample: (n, 1 + K) -> (n,)."""
        return F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1:]).mean(dim=1)

    def loss_and_gradient(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is sigmoid(positive) - 1 and, for each negative, sigmoid(negative) / K."""
        gradient = torch.sigmoid(logits)
        gradient[:, 0].sub_(1)
        gradient[:, 1:].div_(logits.shape[1] - 1)
        return self.loss(logits), gradient


class Pairwise(Objective):
    """mean_k log(1 + exp(negative_k - positive)): the order alone, no threshold (SymBa, Lee and Song 2023, eq. 3)."""

    def loss(self, logits: Tensor) -> Tensor:
        """Loss of each sample: (n, 1 + K) -> (n,)."""
        return F.softplus(logits[:, 1:] - logits[:, :1]).mean(dim=1)

    def loss_and_gradient(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is sigmoid(negative - positive) / K for each negative, and minus their sum for the positive."""
        negative = torch.sigmoid(logits[:, 1:] - logits[:, :1]).div_(logits.shape[1] - 1)
        return self.loss(logits), torch.cat([-negative.sum(dim=1, keepdim=True), negative], dim=1)


class CrossEntropy(Objective):
    """-log softmax at the true label, over the true label and K wrong ones, which may be all of them."""

    def loss(self, logits: Tensor) -> Tensor:
        """Loss of each sample: (n, 1 + K) -> (n,)."""
        return -torch.log_softmax(logits, dim=1)[:, 0]

    def loss_and_gradient(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is the softmax, minus one at the positive."""
        log_probability = torch.log_softmax(logits, dim=1)
        gradient = log_probability.exp()
        gradient[:, 0].sub_(1)
        return -log_probability[:, 0], gradient


OBJECTIVES: Registry[Objective] = Registry("objective", "objective.name")
OBJECTIVES.register("logistic", Logistic())
OBJECTIVES.register("pairwise", Pairwise())
OBJECTIVES.register("cross_entropy", CrossEntropy())
