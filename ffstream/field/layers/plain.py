"""Modules of torch's own that have given weights, of which a loaded layer is made, and how it calls them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def as_linear(weight: Tensor) -> nn.Linear:
    """The linear module, without a bias, of a weight (outputs, inputs).

    A parameter becomes the module's own; a part of one is copied, so that no two parameters share memory.
    """
    num_outputs, num_inputs = weight.shape
    made = nn.Linear(num_inputs, num_outputs, bias=False, device="meta")  # where no random numbers are drawn
    made.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach().clone())
    return made


def call(module: nn.Module, rows: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """What a module makes of rows, with products in `compute_dtype`, in the type of the rows.

    A network that was converted to another type than float32 computes in that.
    """
    device = rows.device.type
    if rows.dtype != torch.float32 or compute_dtype == rows.dtype or not torch.amp.is_autocast_available(device):
        found = module(rows)
    else:  # no cache: a traced network would keep the weights that it was traced with
        with torch.autocast(device, dtype=compute_dtype, cache_enabled=False):
            found = module(rows)
    made: Tensor = found.to(rows.dtype)
    return made
