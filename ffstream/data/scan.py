"""What one pass over a split finds: the ends of its values, the first that is not finite, and the digest of all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ffstream.data.fit import find_not_finite, is_finite
from ffstream.data.image_access import Images, count_values, read_parts

SCANNED_VALUES = 1 << 20  # values that are looked at at once


@dataclass(frozen=True)
class Scan:
    """What is known of all images of a split, once they were read part by part."""

    low: float
    high: float
    digest: str  # SHA-256 of all values, and of the images' type and shape; of images that are not finite, nothing
    not_finite: int | None = None  # the number of the first image with a value that is not finite in float32

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value."""
        return self.low, self.high

    @classmethod
    def of(cls, arrays: Sequence[Images]) -> Scan:
        """Read arrays (n, ...), of which the first holds the images."""
        images, *others = arrays
        digest = hashlib.sha256(str((images.dtype, torch.Size(images.shape))).encode())
        low, high, start = math.inf, -math.inf, 0
        for part in read_parts(images, max(SCANNED_VALUES // count_values(images), 1)):
            ends = torch.aminmax(part)
            low, high = min(float(ends.min), low), max(float(ends.max), high)  # which keep a first that is NaN
            if not is_finite(low, high):
                return cls(low, high, "", start + (find_not_finite(part) or 0))
            start += len(part)
            digest.update(part.contiguous().numpy().data)
        for array in others:
            for part in read_parts(array, max(SCANNED_VALUES // count_values(array), 1)):
                digest.update(part.contiguous().numpy().data)
        return cls(low, high, digest.hexdigest())
