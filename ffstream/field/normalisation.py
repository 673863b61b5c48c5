"""Length normalisation: a layer hands on the direction of its activities, but not their goodness."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.device.workspace import ACTIVITIES, Workspace

_EPSILON = 1e-5


def length_normalise(rows: Tensor) -> Tensor:
    """Divide each row (..., features) by its root mean square (Hinton 2022, section 2; RMS as in his program).

    A row of zeros stays zero. No gradient flows into it, as it has no direction: the derivative there, 1 / epsilon,
    would drown those of all other rows of a batch.
    """
    if rows.requires_grad:  # only then, as this copies the rows
        rows = torch.where(rows.any(dim=-1, keepdim=True), rows, rows.detach())
    return rows / (_root_mean_square(rows) + _EPSILON)


def _root_mean_square(rows: Tensor) -> Tensor:
    """That of each row, (..., 1). Where it is zero its derivative is too, and not infinite as that of any root is."""
    mean_squares = rows.square().mean(dim=-1, keepdim=True)
    is_zero = mean_squares == 0
    return mean_squares.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0)


def length_normalise_(rows: Tensor, workspace: Workspace) -> Tensor:
    """`length_normalise` in place, with bit-identical results, for rows (n, features)."""
    squares = torch.square(rows, out=workspace.take(ACTIVITIES, tuple(rows.shape), rows.dtype))
    return divide_by_length_(rows, squares.mean(dim=-1, keepdim=True))


def divide_by_length_(rows: Tensor, mean_squares: Tensor) -> Tensor:
    """`length_normalise` in place for rows (n, features), or some of their features, given the mean squares (n, 1).

    The mean squares are those of the whole rows, and are overwritten.
    """
    return rows.div_(mean_squares.sqrt_().add_(_EPSILON))
