"""Length normalisation: what a layer hands on is the direction of its activities, not their goodness."""

from __future__ import annotations

from torch import Tensor

_EPSILON = 1e-5


def length_normalise(rows: Tensor) -> Tensor:
    """Divide each row (..., features) by its root mean square (Hinton 2022, section 2; RMS as in his program).

    A row of zeros stays zero.
    """
    return rows / (rows.square().mean(dim=-1, keepdim=True).sqrt() + _EPSILON)
