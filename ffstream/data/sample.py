"""A sample of images, by which a data set of any size is judged, and the size of the parts in which it is read."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_IMAGES = 4096  # images, at most, from which means and spreads are taken
PART_VALUES = 1 << 16  # values of images that are computed with at once; few, as new memory costs page faults


def draw_sample(num: int, most: int = MOST_IMAGES, seed: int = 0) -> Tensor:
    """Numbers of up to `most` of `num` images, or features; random, as images may come in an order of their own."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed))[:most]
