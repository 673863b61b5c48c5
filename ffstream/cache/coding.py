"""Codes rows in eight bits: as integers, with one scale per row.

A row (..., F) becomes F + 1 int8. The last one is the logarithm of the scale, in eighths of an octave, so that it fits
in a byte. Rows of unit RMS have their largest feature between 1 and sqrt(F), well within the range of the scale.

Where the end of a row is carried for later layers, each part that is carried is coded as a row by itself, with a scale
behind it. So how the rest is rounded does not depend on what else is carried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ffstream.device.parts import part_sizes

ROWS_DTYPE = torch.bfloat16  # of decoded rows; it holds each of the integers exactly

_LARGEST = 126  # integer for a row's largest feature: not 127, as a scale rounded to bfloat16 may be a little small
_STEPS_IN_OCTAVE = 8
_SCALE_BYTES = 12  # temporary memory per row


def encode_(stored: Tensor, rows: Tensor, carried: Sequence[int] = ()) -> None:
    """Fill `stored` (..., F + 1 + parts) int8 from rows (..., F) bfloat16, which are overwritten.

    `carried` are the features of each part that is carried.
    """
    for part, found in _cut(stored, rows, carried):
        largest = torch.maximum(found.amax(dim=1), found.amin(dim=1).neg_()).float()
        steps = largest.div_(_LARGEST).log2_().mul_(_STEPS_IN_OCTAVE).ceil_().clamp_(-128, 127)
        part[:, -1] = steps
        part[:, :-1] = found.div_(_scale(part)).round_()


def decode_(rows: Tensor, stored: Tensor, carried: Sequence[int] = ()) -> Tensor:
    """Fill rows (..., F) bfloat16 from what `encode_` stored."""
    for part, found in _cut(stored, rows, carried):
        found.copy_(part[:, :-1]).mul_(_scale(part))
    return rows


def as_coded(rows: Tensor, carried: Sequence[int] = ()) -> Tensor:
    """Rows (..., F) bfloat16 as they are after `encode_` and `decode_`. Nothing is overwritten."""
    if carried:
        sizes = [rows.shape[-1] - sum(carried), *carried]
        return torch.cat([as_coded(part) for part in rows.split(sizes, dim=-1)], dim=-1)
    largest = rows.abs().amax(dim=-1, keepdim=True).float()
    steps = ((largest / _LARGEST).log2() * _STEPS_IN_OCTAVE).ceil().clamp(-128, 127)
    scale = (steps / _STEPS_IN_OCTAVE).exp2().to(ROWS_DTYPE)
    return (rows / scale).round() * scale


def coding_bytes(num_rows: int, coded_rows: int) -> int:
    """Temporary bytes that `encode_` or `decode_` takes, beside its two tensors, with so many rows coded at once."""
    return _SCALE_BYTES * min(num_rows, coded_rows)


def _cut(stored: Tensor, rows: Tensor, carried: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time, each part by itself: as it is stored, with its scale, and as it is used; both are views."""
    sizes = [rows.shape[-1] - sum(carried), *carried]
    num_rows = part_sizes(rows.device.type).coded_rows
    for some, used in zip(stored.flatten(0, -2).split(num_rows), rows.flatten(0, -2).split(num_rows), strict=True):
        yield from zip(some.split([size + 1 for size in sizes], dim=1), used.split(sizes, dim=1), strict=True)


def _scale(part: Tensor) -> Tensor:
    return part[:, -1:].float().div_(_STEPS_IN_OCTAVE).exp2_().to(ROWS_DTYPE)
