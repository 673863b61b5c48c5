"""What a check claims: it raises AssertionError with a sentence where that does not hold."""

from __future__ import annotations

import torch
from torch import Tensor

_RELATIVE, _ABSOLUTE = 1e-4, 1e-5  # tolerances for float32 computed in another order


def same(found: Tensor, expected: Tensor, words: str) -> None:
    """Claim that two tensors are alike up to the order in which float32 is computed."""
    is_same = found.shape == expected.shape and torch.allclose(found, expected, rtol=_RELATIVE, atol=_ABSOLUTE)
    claim(is_same, words)


def claim(holds: bool, words: str) -> None:
    """Raise AssertionError with `words` unless it holds."""
    if not holds:
        raise AssertionError(words)
