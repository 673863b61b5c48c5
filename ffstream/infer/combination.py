"""Probabilities from goodness: p = softmax(sum_k w_k g_k / T), with w_k and T fitted on held-out goodness.

Goodness is given layer by layer, (n, C) each. A layer's weight is relative to the plain sum, in which each counted
layer has 1. Everything here is a function of its arguments, computed in float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NUM_BINS = 15  # bins of the expected calibration error

# Ridge strengths that a fit chooses from, the strongest first: with that one the fit is the plain sum within a percent
# or so.
RIDGES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
_NUM_FOLDS = 5

_MAX_ITERATIONS = 200
_GRADIENT_TOLERANCE = 1e-6  # of the gradient of the mean cross-entropy (in nats) by weights of about 1
# The least inverse temperature, relative to the spread of a sum. It is used where the sum says nothing about the label,
# or the opposite of it: all probabilities are then alike.
_LEAST_WEIGHT = 1e-9


@dataclass(frozen=True)
class Combination:
    """A weight for each layer from the first on, 0 for one that is left out, and the temperature of their sum."""

    weights: tuple[float, ...]
    temperature: float
    ridge: float | None = None  # with which the weights were fitted; None if they were not fitted

    def logits(self, goodness_by_layer: Iterable[Tensor]) -> Tensor:
        """sum_k w_k g_k / T: (n, C) float64 from as many (n, C) as there are weights, one in memory at a time.

        Where the weights are 0 and 1, the largest logit is that of the same label as in the plain sum, bit for bit.
        """
        return _weighted_sum(self.weights, goodness_by_layer).double() / self.temperature


@dataclass(frozen=True)
class ProbabilityFigures:
    """How far probabilities can be trusted on a split."""

    negative_log_likelihood: float  # mean over samples, in nats
    expected_calibration_error: float  # in [0, 1]


def is_counted(index: int, first_layer: int, stack_layers: int) -> bool:
    """Whether layer `index` (from 0) counts in the sum: it is layer `first_layer` (from 1) of its stack, or above.

    Hinton 2022, section 3.3, leaves out the first layer. In stacks with fewer layers than `first_layer`, the last layer
    counts. `stack_layers` is 0 where all layers are one stack.
    """
    place, first = (index % stack_layers, min(first_layer, stack_layers)) if stack_layers else (index, first_layer)
    return place + 1 >= first


def find_uncounted(num_layers: int, stack_layers: int, first_layer: int = 2) -> str | None:
    """A warning if the last stack has no layer that counts in the sum of all stacks; None otherwise."""
    num_last = num_layers % stack_layers if stack_layers else 0
    if num_layers < stack_layers or not num_last:
        return None
    if any(is_counted(index, first_layer, stack_layers) for index in range(num_layers - num_last, num_layers)):
        return None
    least, num_before = min(first_layer, stack_layers), num_layers - num_last
    layers = f"layer {num_layers}" if num_last == 1 else f"layers {num_before + 1} to {num_layers}"
    return (
        f"in stacks of {stack_layers}, only layer {least} of a stack and those above it count in the sum that "
        f"predicts, so that {layers} of {num_layers} would be trained for nothing; ask for {num_before} layers, or for "
        f"{num_before + least}"
    )


def plain_sum(num_layers: int, first_layer: int, temperature: float, stack_layers: int = 0) -> Combination:
    """The combination with weight 1 for each layer that counts or, while none does, for the newest layer."""
    weights = [float(is_counted(index, first_layer, stack_layers)) for index in range(num_layers)]
    if not any(weights):
        weights[-1] = 1.0
    return Combination(tuple(weights), temperature)


def fit_temperature(combination: Combination, goodness_by_layer: Iterable[Tensor], labels: Tensor) -> Combination:
    """The same weights with the temperature of maximum likelihood (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    One more sample is counted, spread evenly over all labels, so that there is an optimum even when no sample is wrong.
    """
    total = _weighted_sum(combination.weights, goodness_by_layer).double()
    return replace(combination, temperature=1.0 / _fit_inverse_temperature(total, labels))


def fit_weights(
    goodness_by_layer: Sequence[Tensor],
    labels: Tensor,
    first_layer: int,
    ridge: float | None = None,
    stack_layers: int = 0,
) -> Combination:
    """Weights w_k >= 0 of the layers that count, and the temperature, by cross-entropy on `labels` (n,).

    The penalty `ridge * sum_k (w_k - 1)^2` keeps the convex problem from fitting noise: it draws the weights to the
    calibrated plain sum. If `ridge` is None, cross-validation chooses it. Weights are scaled to a mean of 1 over the
    layers that count.
    """
    plain = plain_sum(len(goodness_by_layer), first_layer, 1.0, stack_layers).weights
    counted = [index for index, weight in enumerate(plain) if weight]
    goodness = torch.stack([goodness_by_layer[index].double() for index in counted])
    ridge = choose_ridge(goodness, labels) if ridge is None else ridge
    start = _fit_inverse_temperature(goodness.sum(dim=0), labels)
    found = start * _minimise(goodness * start, labels, ridge)
    mean = float(found.mean())
    weights = dict(zip(counted, (found / mean).tolist(), strict=True))
    return Combination(tuple(weights.get(index, 0.0) for index in range(len(plain))), 1.0 / mean, ridge)


def choose_ridge(goodness: Tensor, labels: Tensor) -> float:
    """The strongest ridge whose held-out cross-entropy is as good as the best, for goodness (layers, n, C).

    As good means worse by no more than one standard error of the mean difference (Breiman et al. 1984, section 3.4.3).
    Sample i is held out in fold i modulo 5; samples must be in random order, as those of a validation split are.
    """
    num_folds = min(_NUM_FOLDS, len(labels))
    if num_folds < 2 or len(goodness) == 1:  # nothing to hold out, or nothing to choose
        return RIDGES[0]
    fold = torch.arange(len(labels)) % num_folds
    losses = torch.empty(len(RIDGES), len(labels), dtype=torch.float64)
    for number in range(num_folds):
        held_out = fold == number
        scaled = goodness * _fit_inverse_temperature(goodness[:, ~held_out].sum(dim=0), labels[~held_out])
        for row, ridge in zip(losses, RIDGES, strict=True):
            weights = _minimise(scaled[:, ~held_out], labels[~held_out], ridge)
            logits = _weighted_sum(weights.tolist(), scaled[:, held_out])
            row[held_out] = torch.nn.functional.cross_entropy(logits, labels[held_out], reduction="none")
    worse = losses - losses[losses.mean(dim=1).argmin()]
    is_as_good = worse.mean(dim=1) <= worse.std(dim=1) / len(labels) ** 0.5
    return RIDGES[int(is_as_good.int().argmax())]


def measure_probabilities(logits: Tensor, labels: Tensor) -> ProbabilityFigures:
    """Figures of softmax(logits), (n, C), for the true labels (n,).

    The expected calibration error is that of the predicted label, in 15 bins of equal width (Guo et al. 2017,
    section 2).
    """
    log_probabilities = torch.log_softmax(logits.double(), dim=1)
    loss = torch.nn.functional.nll_loss(log_probabilities, labels)
    confidence, predicted = log_probabilities.exp().max(dim=1)
    bins = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    excess = confidence - (predicted == labels).double()
    error = torch.bincount(bins, weights=excess, minlength=NUM_BINS).abs().sum() / len(labels)
    return ProbabilityFigures(float(loss), float(error))


def _weighted_sum(weights: Sequence[float], goodness_by_layer: Iterable[Tensor]) -> Tensor:
    """The sum in the dtype of the goodness, from the first layer on, in the order in which every plain sum is taken."""
    total: Tensor | None = None
    for weight, goodness in zip(weights, goodness_by_layer, strict=True):
        if weight != 0 or total is None:
            part = goodness * weight
            total = part if total is None else total + part
    assert total is not None, "a network has a layer"
    return total


def _fit_inverse_temperature(total: Tensor, labels: Tensor) -> float:
    """The inverse temperature of maximum likelihood for a sum (n, C)."""
    spread = float((total - total.mean(dim=1, keepdim=True)).square().mean().sqrt())
    scale = 1.0 / spread if spread > 0 and math.isfinite(1.0 / spread) else 1.0  # a dead network: equal goodness
    return scale * max(float(_minimise((total * scale).unsqueeze(0), labels, 0.0)[0]), _LEAST_WEIGHT)


def _minimise(goodness: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """The weights (layers,) >= 0 of least cross-entropy + ridge * sum_k (w_k - 1)^2, for goodness (layers, n, C).

    Each weight is the square of a root, so that L-BFGS needs no bounds. It starts from roots of 1, as the gradient by a
    root of 0 would be 0, and ends at the only minimum of the convex problem.
    """
    num_layers, num_samples, num_classes = goodness.shape
    features = goodness.reshape(num_layers, -1)
    targets = torch.full((num_samples, num_classes), 1.0 / num_classes / num_samples, dtype=torch.float64)
    targets[torch.arange(num_samples), labels] += 1.0
    targets /= num_samples + 1
    roots = torch.ones(num_layers, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [roots],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def loss() -> float:
        weights = roots.square()
        log_probabilities = torch.log_softmax((weights @ features).view(num_samples, num_classes), dim=1)
        residual = log_probabilities.exp() * targets.sum(dim=1, keepdim=True) - targets
        gradient = features @ residual.flatten() + 2 * ridge * (weights - 1)
        roots.grad = 2 * roots * gradient
        return float(-(targets * log_probabilities).sum() + ridge * (weights - 1).square().sum())

    optimiser.step(loss)
    return roots.detach().square()
