"""Augmentation of training images: by shifts, or by a list of transforms, with what each sample gets drawn by the seed.

A sample has fixed views, which are cached (`draw_view`), or is drawn anew for each epoch (`draw_fresh`). Without
transforms, images are shifted: a shift is (down, right) in pixels, each from -max_shift to max_shift, and shifts are
numbered row by row. Pixels that are moved in from outside are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.plane import find_plane
from ffstream.data.transforms import make_transform, take_windows
from ffstream.errors import ConfigError
from ffstream.ground import seeding
from ffstream.settings.sections import AugmentationConfig
from ffstream.settings.transform_list import list_transforms

_DRAW_BYTES = 4  # of one draw
_DRAWS = 2**31 - 1  # a draw of a transform is an integer below


def check_augmentation(
    settings: AugmentationConfig, image_shape: tuple[int, ...] | None, image_dtype: torch.dtype | None = None
) -> None:
    """Raise ConfigError for settings that are impossible, by themselves or for such images (None: unknown)."""
    if settings.views == 1 and not settings.restream:
        if settings.transforms:
            raise ConfigError(
                f"config augmentation.transforms: found {' '.join(settings.transforms)}, but each image is read as it "
                "is; add --restream, which changes images anew for every epoch, or --views N, which caches N of each"
            )
        return
    if settings.views > 1 and settings.restream:
        raise ConfigError(
            f"config augmentation.views: found {settings.views} together with augmentation.restream, allowed one of "
            "them; leave --views or --restream out"
        )
    num_shifts = count_shifts(settings.max_shift)
    if settings.views > num_shifts and not settings.transforms:
        raise ConfigError(
            f"config augmentation.views: found {settings.views}, allowed at most {num_shifts}, the distinct shifts by "
            f"up to {settings.max_shift} pixels; use fewer --views or a larger --max-shift"
        )
    if image_shape is None:
        return
    plane = find_plane(image_shape)
    if plane is None:
        raise ConfigError(
            f"config augmentation: shifts and transforms need images, found samples of shape {image_shape}, allowed "
            "(height, width), (height, width, channels) or (channels, height, width); leave --views and --restream out"
        )
    for line in list_transforms(settings.transforms):
        make_transform(line).check(plane, image_dtype)
    _, height, width, _ = plane
    if settings.max_shift >= min(height, width) and not settings.transforms:
        raise ConfigError(
            f"config augmentation.max_shift: found {settings.max_shift}, allowed at most {min(height, width) - 1} for "
            f"images of {height} x {width} pixels; use a smaller --max-shift"
        )


class Augmentation:
    """Draws what training images get, and changes images by it."""

    def __init__(self, settings: AugmentationConfig) -> None:
        self._max_shift = settings.max_shift
        self._transforms = [make_transform(line) for line in list_transforms(settings.transforms)]
        self._num_draws = sum(transform.num_draws for transform in self._transforms)
        self.is_there = settings.restream or settings.views > 1

    @property
    def bytes_per_sample(self) -> int:
        """Of what is drawn for a sample."""
        return _DRAW_BYTES * (self._num_draws if self._transforms else 1)

    def draw_view(self, num_samples: int, view: int, seed: int, layer: int) -> Tensor:
        """What each sample gets in `view`, 1 or more; view 0 is the image itself: (num_samples, draws) int32."""
        if not self._transforms:
            return draw_view(num_samples, view, self._max_shift, seed, layer).unsqueeze(1)
        return self._draw(num_samples, seeding.generator(seed, layer, view, "transforms of a view"))

    def draw_fresh(self, num_samples: int, seed: int, layer: int, epoch: int) -> Tensor:
        """What each sample gets in one epoch of one layer: (num_samples, draws) int32."""
        if not self._transforms:
            return draw_fresh(num_samples, self._max_shift, seed, layer, epoch).unsqueeze(1)
        return self._draw(num_samples, seeding.generator(seed, layer, epoch, "transforms of an epoch"))

    def _draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return torch.randint(_DRAWS, (num_samples, self._num_draws), generator=generator, dtype=torch.int32)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images (n, *image_shape), changed as their draws (n, draws) say, as a new tensor of the same shape."""
        if not self._transforms:
            return shift_images(images, draws[:, 0], self._max_shift)
        plane = find_plane(images.shape[1:])
        assert plane is not None, "checked before a run starts"
        changed, start = images.reshape(len(images), *plane), 0
        for transform in self._transforms:
            own = draws[:, start : start + transform.num_draws]
            changed, start = transform.apply(changed, own.to(images.device)), start + transform.num_draws
        return changed.reshape(images.shape)


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
    return take_windows(images.reshape(len(images), *plane), shifts, max_shift).reshape(images.shape)
