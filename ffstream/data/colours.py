"""Whether images show colours."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values
from ffstream.data.sample import PART_VALUES

WHITE = 255  # the value of white in a picture, whose values are bytes
_NUM_COLOURS = 3
_TINT = 0.04  # the largest difference of the channels of a grey image, as a share of white


def is_coloured(images: Tensor) -> Tensor:
    """Which of images (n, height, width, 3) or (n, 3, height, width) show colours: (n,) bool.

    White is 255 for bytes, else the largest value of all these images. Floats whose channels were each brought to units
    of their own show no colours either if one and the same line leads from a channel's values to another's.
    """
    channels = images if images.shape[-1] == _NUM_COLOURS else images.movedim(1, -1)
    channels = channels.float().flatten(1, 2)  # (n, pixels, 3)
    most = (channels.amax(dim=-1) - channels.amin(dim=-1)).amax(dim=1)
    found = most > _TINT * (WHITE if images.dtype == torch.uint8 else float(channels.abs().amax()))
    if not images.dtype.is_floating_point or not bool(found.any()):
        return found
    first, *others = channels.double().unbind(dim=-1)
    centred = first - first.mean()
    for other in others:
        slope = float((centred * other).mean() / centred.square().mean().clamp(min=1e-300))
        rest = (other - other.mean() - slope * centred).abs().amax(dim=1)
        if slope <= 0 or bool((rest > _TINT * float(other.max() - other.min())).any()):
            return found
    return torch.zeros_like(found)


def find_coloured(images: Images, index: Tensor) -> Tensor | None:
    """Which of the images `index` show colours; None if the images have no three channels."""
    if len(images.shape) != 4 or _NUM_COLOURS not in (images.shape[-1], images.shape[1]):
        return None
    parts = index.split(max(PART_VALUES // count_values(images), 1))
    return torch.cat([is_coloured(images[part]) for part in parts])
