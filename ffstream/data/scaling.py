"""How images become numbers of about one: divided by the largest, or each feature or channel standardised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        """Of training images (n, *shape), in passes over parts of them. `standardise` is one of STANDARDISE.

        A channel is the first axis of images of three, and all of images with fewer.
        """
        if standardise == NONE:
            return cls(scale)
        num_features = images[0].numel()
        num_channels = images.shape[1] if images.dim() == 4 else 1
        num_places = 1 if standardise == FEATURES else num_features // num_channels
        mean = _average(images, num_places, lambda values: values)
        # Of the deviations: a difference of two large averages would lose what varies little about a large mean.
        variance = _average(images, num_places, lambda values: (values - mean).square_())
        spread = variance.sqrt()
        spread[spread <= mean.abs() * torch.finfo(torch.float32).eps] = torch.inf
        return cls(scale, mean.float(), spread.float())

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Scaling:
        """From the description of a run's data."""
        found = data.get("standardised")
        if found is None:
            return cls(data["scale"])
        num_places = data["num_features"] // len(found["mean"])
        mean, spread = (_repeat(found[name], num_places) for name in ("mean", "spread"))
        spread[spread == 0] = torch.inf  # which JSON has no number for
        return cls(data["scale"], mean, spread)

    def to_mapping(self, standardise: str, image_shape: tuple[int, ...]) -> dict[str, Any]:
        """For the description of a run's data: mean and spread of each feature or channel, 0 for infinity."""
        if self.mean is None or self.spread is None:
            return {"scale": self.scale}
        num_channels = image_shape[0] if len(image_shape) == 3 else 1
        step = 1 if standardise == FEATURES else len(self.mean) // num_channels
        mean, spread = self.mean[::step], self.spread[::step].masked_fill(self.spread[::step] == torch.inf, 0.0)
        return {"scale": self.scale, "standardised": {"mean": mean.tolist(), "spread": spread.tolist()}}

    def apply(self, images: Tensor) -> Tensor:
        """(n, *shape) in any type to (n, features) float32; without standardising, of magnitude <= 1 in training."""
        rows = images.flatten(1).float()
        if self.mean is None or self.spread is None:
            return rows / self.scale
        return (rows - self.mean.to(rows.device)).div_(self.spread.to(rows.device))


def _repeat(values: list[float], num_places: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(num_places)


def _average(images: Tensor, num_places: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The average over samples, and over `num_places` places of each, of a function of double-precision values."""
    total = torch.zeros(images[0].numel(), dtype=torch.float64)
    for values in _parts(images):
        total += of(values).sum(dim=0)
    total /= len(images)
    return total.view(-1, num_places).mean(dim=1).repeat_interleave(num_places)


def _parts(images: Tensor) -> Iterator[Tensor]:
    num_samples = max(_PART_VALUES // images[0].numel(), 1)
    return (part.flatten(1).double() for part in images.split(num_samples))
