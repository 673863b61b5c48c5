"""The factor of the loss where products are in float16, whose range is small."""

from __future__ import annotations

import math

_SCALED = 16.0  # the bound of a scaled gradient by an activity of 1, summed over a batch of at least so many samples


def scale_loss(num_samples: int, steepest: float) -> float:
    """The power of two by which a batch's mean loss is multiplied.

    The gradient of the mean loss by an activity is at most `steepest` / `num_samples` times that activity. Scaled, it
    is far above the smallest number of float16 (6e-8), and its sums over the batch are far below the largest (65504).
    The objective bounds it, so that nothing has to be adapted while a layer trains (as in Micikevicius et al. 2018,
    section 3.2, where nothing bounds gradients).
    """
    if not 0 < steepest < math.inf:
        return 1.0
    return float(2.0 ** math.floor(math.log2(min(num_samples, _SCALED) / steepest)))
