"""Dropout of what a layer reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.device.workspace import BESIDE_ROWS, Buffer, Workspace

_DROPOUT_WORDS = Buffer("dropout words", "rows")


def drop_features_(
    rows: Tensor, rate: float, num_candidates: int, generator: torch.Generator, workspace: Workspace
) -> Tensor:
    """Dropout in place on rows (num_candidates * n, features): one mask per sample, so that candidates differ by label.

    The rate is rounded to a multiple of 1/256: a random byte per feature, drawn eight at a time, costs a tenth of
    `Tensor.bernoulli_` on a CPU.
    """
    threshold, num_features = round(rate * 256), rows.shape[1]
    for part in rows.view(num_candidates, -1, num_features).split(workspace.parts.dropped_rows, dim=1):
        shape = part.shape[1:]
        words = workspace.take(_DROPOUT_WORDS, ((shape.numel() + 7) // 8,), torch.int64)
        words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
        drawn = words.view(torch.uint8)[: shape.numel()].view(shape)
        kept = torch.ge(drawn, threshold, out=drawn)  # bytes: bools take five times as long to make and to read
        part.mul_(workspace.take(BESIDE_ROWS, shape, rows.dtype).copy_(kept).mul_(256 / (256 - threshold)))
    return rows
