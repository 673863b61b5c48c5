"""Reads a file of images or labels in the IDX format, in which MNIST and its relatives are published."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from ffstream.data.room import Room
from ffstream.ground.files import open_regular

_UINT8 = 8  # the format's code for bytes, the only type in the published files


def read_idx(path: Path, num_axes: int, room: Room) -> Tensor:
    """Read a whole IDX file of bytes as uint8. Raises ValueError for any other file, OSError, BudgetError."""
    with open_regular(path) as file:
        num_bytes, head_bytes = os.fstat(file.fileno()).st_size, 4 + 4 * num_axes
        head = file.read(head_bytes)
        if len(head) != head_bytes or head[:4] != bytes([0, 0, _UINT8, num_axes]):
            raise ValueError(f"{path} is no IDX file of bytes on {num_axes} axes")
        shape = [int.from_bytes(head[start : start + 4], "big") for start in range(4, head_bytes, 4)]
        if num_bytes != head_bytes + math.prod(shape):
            raise ValueError(f"{path} has {num_bytes} bytes, allowed {head_bytes + math.prod(shape)}, as its head says")
        values = room.allocate(f"data {path}", shape, torch.uint8)
        left = values.view(-1).numpy().data
        while len(left):
            num_read = file.readinto(left)
            if not num_read:
                raise ValueError(f"{path} was cut short while it was read")
            left = left[num_read:]
    return values
