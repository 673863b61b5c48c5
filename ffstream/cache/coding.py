"""Codes rows in eight bits: as integers, with one scale per row.

A row (..., F) becomes F + 1 int8. The last one is the logarithm of the scale, in eighths of an octave, so that it fits
in a byte. Rows of unit RMS have their largest feature between 1 and sqrt(F), well within the range of the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.device.parts import part_sizes

ROWS_DTYPE = torch.bfloat16  # of decoded rows; it holds each of the integers exactly

_LARGEST = 126  # integer for a row's largest feature: not 127, as a scale rounded to bfloat16 may be a little small
_STEPS_IN_OCTAVE = 8
_SCALE_BYTES = 12  # temporary memory per row


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
    """Rows (..., F) bfloat16 as they are after `encode_` and `decode_`. Nothing is overwritten."""
    largest = rows.abs().amax(dim=-1, keepdim=True).float()
    steps = ((largest / _LARGEST).log2() * _STEPS_IN_OCTAVE).ceil().clamp(-128, 127)
    scale = (steps / _STEPS_IN_OCTAVE).exp2().to(ROWS_DTYPE)
    return (rows / scale).round() * scale


def coding_bytes(num_rows: int, coded_rows: int) -> int:
    """Temporary bytes that `encode_` or `decode_` takes, beside its two tensors, with so many rows coded at once."""
    return _SCALE_BYTES * min(num_rows, coded_rows)


def _cut(tensor: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = tensor.flatten(0, -2).split(part_sizes(tensor.device.type).coded_rows)
    return parts


def _scale(part: Tensor) -> Tensor:
    return part[:, -1:].float().div_(_STEPS_IN_OCTAVE).exp2_().to(ROWS_DTYPE)
