"""Augmentation by shifted images: draws the shifts of training images, and shifts images.

A shift is (down, right) in pixels, each from -max_shift to max_shift; shifts are numbered row by row. Pixels that are
shifted in from outside are zero. A sample's shifts are drawn from the seed: fixed views of each image (`draw_view`), or
fresh shifts for each epoch (`draw_fresh`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.plane import find_plane
from ffstream.errors import ConfigError
from ffstream.ground import seeding
from ffstream.settings.sections import AugmentationConfig

SHIFT_BYTES = 4  # per sample, for the number of its shift


def check_augmentation(settings: AugmentationConfig, image_shape: tuple[int, ...] | None) -> None:
    """Raise ConfigError for settings that are impossible, by themselves or for images of this shape (None: unknown)."""
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
    """The number of distinct shifts, including the one by zero pixels."""
    return (2 * max_shift + 1) ** 2


def draw_view(num_samples: int, view: int, max_shift: int, seed: int, layer: int = 0) -> Tensor:
    """Draw the shift number of each sample in `view`, 1 or more (view 0 is the image itself): (num_samples,) int32.

    The shifts of one sample are distinct: all shifts but the one by zero are put into one shuffled order, from which a
    sample takes consecutive ones from a random start of its own. In every view, each shift is thus equally likely.
    `layer` is the layer that reads the views.
    """
    num_shifts = count_shifts(max_shift)
    generator = seeding.generator(seed, layer, 0, "views")
    order = torch.randperm(num_shifts - 1, generator=generator, dtype=torch.int32)
    order += order >= num_shifts // 2  # skips the shift by zero
    place = torch.randint(num_shifts - 1, (num_samples,), generator=generator, dtype=torch.int32)
    return order.index_select(0, (place + (view - 1)) % (num_shifts - 1))


def draw_fresh(num_samples: int, max_shift: int, seed: int, layer: int, epoch: int) -> Tensor:
    """Draw the shift number of each sample in one epoch of one layer, all equally likely: (num_samples,) int32."""
    num_shifts = count_shifts(max_shift)
    generator = seeding.generator(seed, layer, epoch, "shifts")
    return torch.randint(num_shifts, (num_samples,), generator=generator, dtype=torch.int32)


def shift_images(images: Tensor, shifts: Tensor, max_shift: int) -> Tensor:
    """Move images (n, *image_shape) by the shifts with the numbers (n,), into a new tensor of the same shape.

    Each result is a window of the padded image; all windows are gathered at once.
    """
    plane = find_plane(images.shape[1:])
    assert plane is not None, "checked before a run starts"
    num_images, (before, height, width, after) = len(images), plane
    planes = images.reshape(num_images, *plane)
    padded = planes.new_zeros(num_images, before, height + 2 * max_shift, width + 2 * max_shift, after)
    padded[:, :, max_shift : max_shift + height, max_shift : max_shift + width] = planes
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, before, top, left, after, height, width)
    shifts = shifts.long().to(images.device)
    top = 2 * max_shift - shifts // (2 * max_shift + 1)  # an image moves down where its window begins further up
    left = 2 * max_shift - shifts % (2 * max_shift + 1)
    taken = windows.permute(0, 2, 3, 1, 5, 6, 4)[torch.arange(num_images, device=images.device), top, left]
    return taken.reshape(images.shape)
