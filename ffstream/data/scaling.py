"""Scales images to values of about 1: divides by the largest magnitude, or standardises each feature or channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffstream.data.image_access import Images, count_values, read_parts
from ffstream.data.plane import find_plane

NONE, FEATURES, CHANNELS = "none", "features", "channels"
STANDARDISE = (NONE, FEATURES, CHANNELS)  # the allowed values of the setting `standardise`
_PART_VALUES = 1 << 20  # values that are in memory in double precision at once


@dataclass(frozen=True)
class Scaling:
    """Divides images by `scale`; or, where `mean` and `spread` are given, subtracts `mean` and divides by `spread`.

    `mean` and `spread` are float32 (features,), computed from the training images. A feature that never varies has an
    infinite spread, so that it becomes zero.
    """

    scale: float
    mean: Tensor | None = None
    spread: Tensor | None = None

    @classmethod
    def of(cls, images: Images, scale: float, standardise: str = NONE) -> Scaling:
        """Compute the scaling of training images (n, *shape), part by part. `standardise` is one of STANDARDISE."""
        if standardise == NONE:
            return cls(scale)
        parts = find_parts(tuple(images.shape[1:]), standardise)
        mean = _average(images, parts, lambda values: values)
        # From the deviations: the difference of two large averages would lose a small variance about a large mean.
        variance = _average(images, parts, lambda values: (values - mean).square_())
        spread = variance.sqrt()
        spread[spread == 0] = torch.inf
        return cls(scale, mean.float(), spread.float())

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Scaling:
        """Read the scaling from the description of a run's data."""
        found = data.get("standardised")
        if found is None:
            return cls(data["scale"])
        parts = parts_of(data)
        mean, spread = (torch.tensor(found[name], dtype=torch.float32)[parts] for name in ("mean", "spread"))
        spread[spread == 0] = torch.inf  # written as 0, as JSON has no infinity
        return cls(data["scale"], mean, spread)

    def to_mapping(self, standardise: str, image_shape: tuple[int, ...]) -> dict[str, Any]:
        """Entries for the description of a run's data: mean and spread of each feature or channel, 0 for infinity."""
        if self.mean is None or self.spread is None:
            return {"scale": self.scale}
        parts = find_parts(image_shape, standardise)
        num_parts = int(parts.max()) + 1
        first = torch.argsort(parts, stable=True)[:: len(parts) // num_parts]  # feature of each part; sizes are equal
        mean, spread = self.mean[first], self.spread[first].masked_fill(self.spread[first] == torch.inf, 0.0)
        found = {"mean": mean.tolist(), "spread": spread.tolist()}
        return {"scale": self.scale, "standardised": found | ({} if standardise == FEATURES else {"by_plane": True})}

    def apply(self, images: Tensor) -> Tensor:
        """Scale images (n, *shape) of any type to (n, features) float32.

        Without standardising, training images then have magnitudes of at most 1.
        """
        rows = images.flatten(1).float()
        if self.mean is None or self.spread is None:
            return rows / self.scale
        return (rows - self.mean.to(rows.device)).div_(self.spread.to(rows.device))


def find_parts(image_shape: tuple[int, ...], standardise: str) -> Tensor:
    """The number of the part that each feature of an image belongs to, from 0: (features,) int64.

    With FEATURES, each feature is a part of its own; with CHANNELS, each channel is a part. The channels are an axis of
    four or fewer before or after height and width, or the first axis of any other image of three axes. All features of
    any other image are one channel.
    """
    features = torch.arange(math.prod(image_shape))
    if standardise == FEATURES:
        return features
    plane = find_plane(image_shape)
    if plane is not None:
        before, _, _, behind = plane
        channels: Tensor = torch.arange(before * behind).view(before, 1, 1, behind).expand(plane).flatten()
        return channels
    num_channels = image_shape[0] if len(image_shape) == 3 else 1
    return features.div(len(features) // num_channels, rounding_mode="floor")


def parts_of(data: Mapping[str, Any]) -> Tensor:
    """The part of each feature by which the description of a run's data standardises images: (features,) int64."""
    found, num_features = data["standardised"], data["num_features"]
    if found.get("by_plane"):
        return find_parts(tuple(data["image_shape"]), CHANNELS)
    in_order: Tensor = torch.arange(num_features) // (num_features // len(found["mean"]))
    return in_order  # single features, or channels as earlier versions numbered them


def _average(images: Images, parts: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The average of the function `of` over all samples and over the features of a part.

    `of` gets values (n, features) in double precision. The result, (features,) float64, has the average of its part for
    each feature.
    """
    total = torch.zeros(count_values(images), dtype=torch.float64)
    for values in _parts(images):
        total += of(values).sum(dim=0)
    total /= len(images)
    sums, counts = torch.zeros(2, int(parts.max()) + 1, dtype=torch.float64)
    sums.index_add_(0, parts, total)
    counts.index_add_(0, parts, torch.ones_like(total))
    average: Tensor = (sums / counts)[parts]
    return average


def _parts(images: Images) -> Iterator[Tensor]:
    num_samples = max(_PART_VALUES // count_values(images), 1)
    return (part.flatten(1).double() for part in read_parts(images, num_samples))
