"""Rows in eight bits: integers, and one scale for each row.

A row (..., F) becomes F + 1 int8, the last of which says the scale in eighths of an octave, so that it fits in a byte.
Rows of unit RMS have their largest feature between 1 and sqrt(F): well within its range.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_DTYPE = torch.bfloat16  # of rows as they are worked on: any of the integers is exact in it

_LARGEST = 126  # that the scale is chosen for; rounded as a bfloat16 it may be a little small, and 127 is still there
_STEPS_IN_OCTAVE = 8
_CODED_ROWS = 1024  # whose scales exist at once
_SCALE_BYTES = 12  # of a row, meanwhile


def encode_(stored: Tensor, rows: Tensor) -> None:
    """Fill `stored` (..., F + 1) int8 from rows (..., F) bfloat16, which are overwritten."""
    for part, found in zip(_cut(stored), _cut(rows), strict=True):
        largest = torch.maximum(found.amax(dim=1), found.amin(dim=1).neg_()).float()
        steps = largest.div_(_LARGEST).log2_().mul_(_STEPS_IN_OCTAVE).ceil_().clamp_(-128, 127)
        part[:, -1] = steps
        part[:, :-1] = found.div_(_scale(part)).round_()


def decode_(rows: Tensor, stored: Tensor) -> Tensor:
    """Fill rows (..., F) bfloat16 from what `encode_` stored."""
    for found, part in zip(_cut(rows), _cut(stored), strict=True):
        found.copy_(part[:, :-1]).mul_(_scale(part))
    return rows


def as_coded(rows: Tensor) -> Tensor:
    """Rows (..., F) bfloat16 as `decode_` gives back what `encode_` has stored of them. Nothing is overwritten."""
    largest = rows.abs().amax(dim=-1, keepdim=True).float()
    steps = ((largest / _LARGEST).log2() * _STEPS_IN_OCTAVE).ceil().clamp(-128, 127)
    scale = (steps / _STEPS_IN_OCTAVE).exp2().to(ROWS_DTYPE)
    return (rows / scale).round() * scale


def coding_bytes(num_rows: int) -> int:
    """That either takes beside both tensors."""
    return _SCALE_BYTES * min(num_rows, _CODED_ROWS)


def _cut(tensor: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = tensor.flatten(0, -2).split(_CODED_ROWS)
    return parts


def _scale(part: Tensor) -> Tensor:
    return part[:, -1:].float().div_(_STEPS_IN_OCTAVE).exp2_().to(ROWS_DTYPE)
