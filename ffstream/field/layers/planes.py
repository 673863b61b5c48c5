"""What layers of channels at places share: their layout, and the gradient through a ReLU in 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def by_place(planes: Tensor) -> Tensor:
    """Planes (n, channels, height, width) as (n, height, width, channels).

    Devices lay the result of a convolution out as its input. On paper torch says otherwise, and a copy would be counted
    that no device makes.
    """
    found = planes.permute(0, 2, 3, 1)
    if found.device.type != "meta" or found.is_contiguous():
        return found
    _, height, width, channels = found.shape
    return found.as_strided(found.shape, (height * width * channels, width * channels, channels, 1))


def in_channels_last(planes: Tensor) -> Tensor:
    """The same planes with all channels of a place side by side, as convolutions are fastest; a copy if need be."""
    if planes.device.type == "meta":  # on paper, no copy is counted that devices do not make
        return by_place(planes).permute(0, 3, 1, 2)
    return planes.contiguous(memory_format=torch.channels_last)


def keep_where_active_(activities: Tensor, gradient: Tensor) -> Tensor:
    """The gradient where activities h >= 0 are not 0, else 0, written over the activities; it may be broadcast.

    In 16 bits, a mask of all ones or of zeros is made by operations on integers, and the gradient is kept by it:
    on a CPU, the sign and the product of such floats take four times as long, as each is widened to 32 bits and back.
    """
    if activities.dtype.itemsize != 2:
        return activities.sign_().mul_(gradient)
    activities.view(torch.int16).sign_().neg_().bitwise_and_(gradient.to(activities.dtype).view(torch.int16))
    return activities
