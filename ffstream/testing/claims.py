"""What a check claims: it raises AssertionError with a sentence where that does not hold."""

from __future__ import annotations

import torch
from torch import Tensor

# Tolerances for float32 computed in another order. What is left where large terms cancel is a share of the largest sum.
_RELATIVE, _ABSOLUTE, _OF_LARGEST = 1e-4, 1e-5, 1e-6


def same(found: Tensor, expected: Tensor, words: str) -> None:
    """Claim that two tensors are alike up to the order in which float32 is computed."""
    least = _ABSOLUTE + _OF_LARGEST * float(expected.abs().amax()) if expected.numel() else _ABSOLUTE
    is_same = found.shape == expected.shape and torch.allclose(found, expected, rtol=_RELATIVE, atol=least)
    claim(is_same, words)


def claim(holds: bool, words: str) -> None:
    """Raise AssertionError with `words` unless it holds."""
    if not holds:
        raise AssertionError(words)
