"""Transforms of training images whose parameters are drawn for each sample: crop, flip, cutout and RandAugment.

What a sample gets depends on its own draws alone, not on the samples beside it. A draw is an integer from 0 to 2^31 - 1
of which a transform takes remainders. Images are (n, channels before, height, width, channels after), as they lie in
the data set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ffstream.data.plane import Plane
from ffstream.errors import ConfigError
from ffstream.settings.transform_list import TransformLine


class Transform(ABC):
    """One step that changes an image in a way that is drawn for it."""

    num_draws = 1  # for each sample

    @abstractmethod
    def check(self, plane: Plane, image_dtype: torch.dtype | None) -> None:
        """Raise ConfigError if images of this plane, or of this type where it is known, cannot be changed so."""

    @abstractmethod
    def apply(self, planes: Tensor, draws: Tensor) -> Tensor:
        """Images (n, before, height, width, after), each changed as its draws (n, num_draws) say; the same shape."""


class Crop(Transform):
    """A window of the image, which is padded by zeros: it moves by up to `most` pixels in each direction."""

    def __init__(self, most: int) -> None:
        self._most = most

    def check(self, plane: Plane, image_dtype: torch.dtype | None) -> None:
        """Something of the image has to be left."""
        _check_size("crop", self._most, min(plane[1:3]) - 1, plane)

    def apply(self, planes: Tensor, draws: Tensor) -> Tensor:
        """All positions of the window are equally likely."""
        return take_windows(planes, draws[:, 0] % (2 * self._most + 1) ** 2, self._most)


class Flip(Transform):
    """Left and right are exchanged in half of the images."""

    def check(self, plane: Plane, image_dtype: torch.dtype | None) -> None:
        """Every image can be flipped."""

    def apply(self, planes: Tensor, draws: Tensor) -> Tensor:
        """An odd draw exchanges them."""
        return torch.where((draws[:, 0] % 2 == 1).view(-1, 1, 1, 1, 1), planes.flip(3), planes)


class Cutout(Transform):
    """A square of zeros, whose centre is any pixel (DeVries and Taylor 2017, section 3.1)."""

    def __init__(self, side: int) -> None:
        self._side = side

    def check(self, plane: Plane, image_dtype: torch.dtype | None) -> None:
        """Something of the image has to be left, wherever the square lies."""
        _check_size("cutout", self._side, max(plane[1:3]) - 1, plane)

    def apply(self, planes: Tensor, draws: Tensor) -> Tensor:
        """The square is cut off where it reaches beyond the image."""
        height, width = planes.shape[2:4]
        centre = draws[:, 0] % (height * width)
        is_row, is_column = (
            _is_within(number, length, self._side)
            for number, length in ((centre // width, height), (centre % width, width))
        )
        hidden = is_row.unsqueeze(2) & is_column.unsqueeze(1)
        return planes.masked_fill(hidden.view(-1, 1, height, width, 1), 0)


class RandAugment(Transform):
    """Two transforms of a list of fourteen, one after the other, at one magnitude (Cubuk et al. 2020, section 3)."""

    num_draws = 2

    def __init__(self, magnitude: int) -> None:
        self._magnitude = magnitude

    def check(self, plane: Plane, image_dtype: torch.dtype | None) -> None:
        """Colours are those of bytes, of grey or RGB images."""
        num_channels = plane[0] * plane[3]
        if num_channels not in (1, 3):
            raise _refuse(f"randaugment{self._magnitude}", f"images of {num_channels} channels, allowed 1 or 3")
        if image_dtype is not None and image_dtype != torch.uint8:
            raise _refuse(
                f"randaugment{self._magnitude}",
                f"images of {str(image_dtype).removeprefix('torch.')}, allowed bytes (uint8), whose colours are known",
            )

    def apply(self, planes: Tensor, draws: Tensor) -> Tensor:
        """Images that drew the same are changed together, a few at a time."""
        num, before, height, width, after = planes.shape
        steps = _list_steps(self._magnitude, width, height)
        images = planes.permute(0, 1, 4, 2, 3).reshape(num, before * after, height, width)
        for column in draws.unbind(1):
            images = self._step(images, column % len(steps), steps)
        return images.view(num, before, after, height, width).permute(0, 1, 3, 4, 2)

    @staticmethod
    def _step(images: Tensor, which: Tensor, steps: list[Callable[[Tensor], Tensor]]) -> Tensor:
        if images.device.type == "meta":  # which image drew what is not known on paper: each step changes the most
            for change in steps:
                change(images[:_MOST_TOGETHER])
            return torch.empty_like(images)
        changed = images.clone()
        for number, change in enumerate(steps):
            for index in (which == number).nonzero().flatten().split(_MOST_TOGETHER):
                if len(index):
                    changed[index] = change(images[index])
        return changed


_MOST_TOGETHER = 64  # images that a step of RandAugment changes at once, which bounds the memory that it takes
_MAKERS: dict[str, Callable[[int], Transform]] = {
    "crop": Crop,
    "flip": lambda _: Flip(),
    "cutout": Cutout,
    "randaugment": RandAugment,
}


def make_transform(line: TransformLine) -> Transform:
    """The transform of a name and a number."""
    return _MAKERS[line.name](line.number)


def take_windows(planes: Tensor, shifts: Tensor, most: int) -> Tensor:
    """Images (n, before, height, width, after) moved by up to `most` pixels; zeros are moved in from outside.

    A shift is (down, right), each from -most to most; `shifts` (n,) holds their numbers, which count row by row.
    """
    num_images, before, height, width, after = planes.shape
    padded = planes.new_zeros(num_images, before, height + 2 * most, width + 2 * most, after)
    padded[:, :, most : most + height, most : most + width] = planes
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, before, top, left, after, height, width)
    shifts = shifts.long().to(planes.device)
    top = 2 * most - shifts // (2 * most + 1)  # an image moves down where its window begins further up
    left = 2 * most - shifts % (2 * most + 1)
    return windows.permute(0, 2, 3, 1, 5, 6, 4)[torch.arange(num_images, device=planes.device), top, left]


def _is_within(centre: Tensor, length: int, side: int) -> Tensor:
    """Which of `length` numbers lie within a side around each centre (n,): (n, length) bool."""
    start = (centre - side // 2).unsqueeze(1)
    numbers = torch.arange(length, device=centre.device)
    return (numbers >= start) & (numbers < start + side)


def _list_steps(magnitude: int, width: int, height: int) -> list[Callable[[Tensor], Tensor]]:
    """The transforms from which RandAugment draws, those with a direction in both.

    Their strengths are those of torchvision's class of the same name, with 31 magnitudes.
    """
    import torchvision.transforms.v2.functional as functional  # takes a second to import

    share = magnitude / 30

    def affine(**changes: Any) -> Callable[[Tensor], Tensor]:
        given: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        return partial(functional.affine, **given | changes)

    steps: list[Callable[[Tensor], Tensor]] = [
        lambda images: images,
        partial(functional.posterize, bits=8 - round(4 * share)),
        partial(functional.solarize, threshold=255.0 * (1 - share)),
        functional.autocontrast,
        functional.equalize,
    ]
    shear = torch.tensor(0.3 * share).atan().rad2deg().item()
    for sign in (1, -1):
        steps += [
            affine(shear=[sign * shear, 0.0]),
            affine(shear=[0.0, sign * shear]),
            affine(translate=[sign * int(150 / 331 * width * share), 0]),
            affine(translate=[0, sign * int(150 / 331 * height * share)]),
            affine(angle=sign * 30.0 * share),
        ]
        factor = 1 + sign * 0.9 * share
        steps += [
            partial(functional.adjust_brightness, brightness_factor=factor),
            partial(functional.adjust_saturation, saturation_factor=factor),
            partial(functional.adjust_contrast, contrast_factor=factor),
            partial(functional.adjust_sharpness, sharpness_factor=factor),
        ]
    return steps


def _check_size(name: str, found: int, most: int, plane: Plane) -> None:
    if found > most:
        raise _refuse(
            f"{name}{found}", f"images of {plane[1]} x {plane[2]} pixels, allowed {name} and a number up to {most}"
        )


def _refuse(found: str, reason: str) -> ConfigError:
    return ConfigError(f"config augmentation.transforms: found {found} for {reason}")
