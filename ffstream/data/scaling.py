"""How images become numbers of about one: divided by the largest, or each feature or channel standardised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffstream.data.plane import find_plane

NONE, FEATURES, CHANNELS = "none", "features", "channels"
STANDARDISE = (NONE, FEATURES, CHANNELS)  # what the setting of that name may be
_PART_VALUES = 1 << 20  # of images that exist in double precision at once


@dataclass(frozen=True)
class Scaling:
    """Images are divided by `scale`; or `mean` is taken off them, and they are divided by `spread`.

    `mean` and `spread` are float32 (features,), of the training images; a feature that never varies has a spread of
    infinity, so that it becomes zero.
    """

    scale: float
    mean: Tensor | None = None
    spread: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, scale: float, standardise: str = NONE) -> Scaling:
        """Of training images (n, *shape), in passes over parts of them. `standardise` is one of STANDARDISE."""
        if standardise == NONE:
            return cls(scale)
        parts = find_parts(tuple(images.shape[1:]), standardise)
        mean = _average(images, parts, lambda values: values)
        # Of the deviations: a difference of two large averages would lose what varies little about a large mean.
        variance = _average(images, parts, lambda values: (values - mean).square_())
        spread = variance.sqrt()
        spread[spread == 0] = torch.inf
        return cls(scale, mean.float(), spread.float())

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Scaling:
        """From the description of a run's data."""
        found = data.get("standardised")
        if found is None:
            return cls(data["scale"])
        parts = parts_of(data)
        mean, spread = (torch.tensor(found[name], dtype=torch.float32)[parts] for name in ("mean", "spread"))
        spread[spread == 0] = torch.inf  # which JSON has no number for
        return cls(data["scale"], mean, spread)

    def to_mapping(self, standardise: str, image_shape: tuple[int, ...]) -> dict[str, Any]:
        """For the description of a run's data: mean and spread of each feature or channel, 0 for infinity."""
        if self.mean is None or self.spread is None:
            return {"scale": self.scale}
        parts = find_parts(image_shape, standardise)
        num_parts = int(parts.max()) + 1
        first = torch.argsort(parts, stable=True)[:: len(parts) // num_parts]  # feature of each, as all have as many
        mean, spread = self.mean[first], self.spread[first].masked_fill(self.spread[first] == torch.inf, 0.0)
        found = {"mean": mean.tolist(), "spread": spread.tolist()}
        return {"scale": self.scale, "standardised": found | ({} if standardise == FEATURES else {"by_plane": True})}

    def apply(self, images: Tensor) -> Tensor:
        """(n, *shape) in any type to (n, features) float32; without standardising, of magnitude <= 1 in training."""
        rows = images.flatten(1).float()
        if self.mean is None or self.spread is None:
            return rows / self.scale
        return (rows - self.mean.to(rows.device)).div_(self.spread.to(rows.device))


def find_parts(image_shape: tuple[int, ...], standardise: str) -> Tensor:
    """Which feature, or which channel, each feature of an image is a part of: (features,) int64, numbered from 0.

    A channel is an axis of four or fewer before or behind height and width; of other images of three axes the first
    one; all features of any other.
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
    """The parts by which the description of a run's data standardises images: (features,) int64."""
    found, num_features = data["standardised"], data["num_features"]
    if found.get("by_plane"):
        return find_parts(tuple(data["image_shape"]), CHANNELS)
    in_order: Tensor = torch.arange(num_features) // (num_features // len(found["mean"]))
    return in_order  # as earlier versions took channels too


def _average(images: Tensor, parts: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The average over samples and over the features of a part of a function of double-precision values.

    For each feature: (features,) float64.
    """
    total = torch.zeros(images[0].numel(), dtype=torch.float64)
    for values in _parts(images):
        total += of(values).sum(dim=0)
    total /= len(images)
    sums, counts = torch.zeros(2, int(parts.max()) + 1, dtype=torch.float64)
    sums.index_add_(0, parts, total)
    counts.index_add_(0, parts, torch.ones_like(total))
    average: Tensor = (sums / counts)[parts]
    return average


def _parts(images: Tensor) -> Iterator[Tensor]:
    num_samples = max(_PART_VALUES // images[0].numel(), 1)
    return (part.flatten(1).double() for part in images.split(num_samples))
