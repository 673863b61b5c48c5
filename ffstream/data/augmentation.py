"""Augmentation by shifted images: which shift a training image is shown with, and the shifting.

Shifts are (down, right) in pixels, each from -max_shift to max_shift, numbered row by row; what comes in is zero. They
are drawn by (seed, sample): some views of each image once (`draw_view`), or fresh ones for an epoch (`draw_fresh`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.plane import find_plane
from ffstream.errors import ConfigError
from ffstream.ground import seeding
from ffstream.settings.sections import AugmentationConfig

SHIFT_BYTES = 4  # a sample, of its shift's number


def check_augmentation(settings: AugmentationConfig, image_shape: tuple[int, ...] | None) -> None:
    """Raise ConfigError for what cannot be, alone or with images of this shape; None where that is not known."""
    if settings.views == 1 and not settings.restream:
        return
    if settings.views > 1 and settings.restream:
        raise ConfigError(
            f"config augmentation.views: found {settings.views} together with augmentation.restream, allowed one of "
            "them; leave --views or --restream out"
        )
    num_shifts = count_shifts(settings.max_shift)
    if settings.views > num_shifts:
        raise ConfigError(
            f"config augmentation.views: found {settings.views}, allowed at most {num_shifts}, the distinct shifts by "
            f"up to {settings.max_shift} pixels; use fewer --views or a larger --max-shift"
        )
    if image_shape is None:
        return
    plane = find_plane(image_shape)
    if plane is None:
        raise ConfigError(
            f"config augmentation: shifts need images, found samples of shape {image_shape}, allowed (height, width), "
            "(height, width, channels) or (channels, height, width); leave --views and --restream out"
        )
    _, height, width, _ = plane
    if settings.max_shift >= min(height, width):
        raise ConfigError(
            f"config augmentation.max_shift: found {settings.max_shift}, allowed at most {min(height, width) - 1} for "
            f"images of {height} x {width} pixels; use a smaller --max-shift"
        )


def count_shifts(max_shift: int) -> int:
    """How many shifts there are, none included."""
    return (2 * max_shift + 1) ** 2


def draw_view(num_samples: int, view: int, max_shift: int, seed: int, layer: int = 0) -> Tensor:
    """The shift of each sample in a view from 1 on (view 0 is the image itself): (num_samples,), numbers of shifts.

    Those of one sample are distinct: all shifts but none stand in one shuffled order, of which a sample takes those
    that follow a place of its own, so that each shift is as frequent as any other in every view. `layer` is the one
    that reads them.
    """
    num_shifts = count_shifts(max_shift)
    generator = seeding.generator(seed, layer, 0, "views")
    order = torch.randperm(num_shifts - 1, generator=generator, dtype=torch.int32)
    order += order >= num_shifts // 2  # the shift by nothing is left out
    place = torch.randint(num_shifts - 1, (num_samples,), generator=generator, dtype=torch.int32)
    return order.index_select(0, (place + (view - 1)) % (num_shifts - 1))


def draw_fresh(num_samples: int, max_shift: int, seed: int, layer: int, epoch: int) -> Tensor:
    """The shift of each sample in one epoch of one layer: (num_samples,), numbers of shifts, all as likely."""
    num_shifts = count_shifts(max_shift)
    generator = seeding.generator(seed, layer, epoch, "shifts")
    return torch.randint(num_shifts, (num_samples,), generator=generator, dtype=torch.int32)


def shift_images(images: Tensor, shifts: Tensor, max_shift: int) -> Tensor:
    """Images (n, *image_shape) moved by the shifts (n,) that are numbered, into a new tensor of the same shape.

    A window of each padded image, all of them gathered at once.
    """
    plane = find_plane(images.shape[1:])
    assert plane is not None, "checked before a run starts"
    num_images, (before, height, width, after) = len(images), plane
    planes = images.reshape(num_images, *plane)
    padded = planes.new_zeros(num_images, before, height + 2 * max_shift, width + 2 * max_shift, after)
    padded[:, :, max_shift : max_shift + height, max_shift : max_shift + width] = planes
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, before, top, left, after, height, width)
    shifts = shifts.long().to(images.device)
    top = 2 * max_shift - shifts // (2 * max_shift + 1)  # further down: the window begins further up
    left = 2 * max_shift - shifts % (2 * max_shift + 1)
    taken = windows.permute(0, 2, 3, 1, 5, 6, 4)[torch.arange(num_images, device=images.device), top, left]
    return taken.reshape(images.shape)
