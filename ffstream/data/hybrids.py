"""Hybrid images: one image in some regions, another one in the rest (Hinton 2022, section 3.2).

Hybrids resemble real images over short distances but not over long ones, so telling them apart takes the shapes of
things. All results depend on the arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffstream.data.plane import Plane, find_plane
from ffstream.errors import DataError


def check_plane(image_shape: Sequence[int]) -> Plane:
    """Find the plane of images for hybrids, of 2 x 2 pixels or more. Raises DataError where there is none."""
    plane = find_plane(image_shape)
    if plane is None or min(plane[1:3]) < 2:
        raise DataError(
            f"data of shape {tuple(image_shape)}: hybrid images need a plane, (height, width) of 2 or more, before or "
            "after up to 4 channels; reshape the data, or train with labels (--recipe inject)"
        )
    return plane


def draw_with_others(samples: slice, num_samples: int, num_others: int, generator: torch.Generator) -> Tensor:
    """The number of each of `samples`, then numbers of others drawn from all samples: (n, 1 + num_others) int64.

    A sample is never drawn for itself. The draws do not depend on how the samples are cut into consecutive slices.
    Raises DataError when there is no other sample.
    """
    if num_samples < 2:
        raise DataError(f"data: found {num_samples} image in a split, allowed 2 or more; a hybrid is made of two")
    own = torch.arange(samples.start, min(samples.stop, num_samples)).unsqueeze(1)
    steps = torch.randint(1, num_samples, (len(own), num_others), generator=generator)
    return torch.cat([own, (own + steps) % num_samples], dim=1)


def draw_masks(num_masks: int, plane: Plane, num_blurs: int, generator: torch.Generator) -> Tensor:
    """Draw masks of random regions, (num_masks, features) bool, the same in every channel.

    Random bits are blurred `num_blurs` times by [1/4, 1/2, 1/4] in both directions and thresholded at 0.5. A mask that
    would then have one value only, as happens now and then where the plane is small, is thresholded at its own mean
    instead. It then has both values, unless its bits were all the same.
    """
    before, height, width, after = plane
    num_words = -(-height * width // 64)
    words = torch.empty(num_masks, num_words, dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    bits = (words.view(torch.uint8).unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    image = bits.view(num_masks, -1)[:, : height * width].reshape(-1, height, width).double()
    # All sums are of multiples of 16^-num_blurs, hence exact up to 13 blurs, whatever the order of addition.
    image = _blur_matrix(height, num_blurs) @ image @ _blur_matrix(width, num_blurs)
    least, most = image.flatten(1).aminmax(dim=1)
    level = torch.where((least > 0.5) | (most <= 0.5), image.mean(dim=(1, 2)), 0.5)
    mask = image > level.view(-1, 1, 1)
    return mask.view(-1, 1, height, width, 1).expand(-1, before, -1, -1, after).reshape(num_masks, -1)


def make_hybrids(
    images: Tensor,
    others: Tensor,
    plane: Plane,
    num_blurs: int,
    generator: torch.Generator,
) -> Tensor:
    """Mix images (n, features) with each of their `others` (n, R, features) by random masks: (n, R, features).

    Where a mask is True, a hybrid has the values of the image; elsewhere, those of the other image.
    """
    masks = draw_masks(others.shape[0] * others.shape[1], plane, num_blurs, generator)
    return torch.where(masks.view(others.shape).to(images.device), images.unsqueeze(1), others)


def _blur_matrix(size: int, num_blurs: int) -> Tensor:
    """All blurs along one axis as one matrix, (size, size) float64; beyond its ends, an axis repeats its end value."""
    own = torch.arange(size)
    once = 0.5 * torch.eye(size, dtype=torch.float64)
    for neighbour in (own - 1, own + 1):
        once[own, neighbour.clamp(0, size - 1)] += 0.25
    blurs: Tensor = torch.linalg.matrix_power(once, num_blurs)
    return blurs
