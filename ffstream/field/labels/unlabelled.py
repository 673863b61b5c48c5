"""Learning without labels: images are contrasted with what is mixed of two images.

These are hybrids, which have regions of either (Hinton 2022, section 3.2), or sums of both (SCFF, Chen et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffstream.data.hybrids import check_plane, make_hybrids
from ffstream.data.shape import DataShape
from ffstream.errors import ConfigError
from ffstream.field.labels.candidates import RowCandidates
from ffstream.field.labels.method import LabelMethod
from ffstream.field.labels.reading import ReadingOfRows
from ffstream.field.labels.rows import LabelFreeRows
from ffstream.field.negatives import distinct_offsets
from ffstream.field.normalisation import length_normalise
from ffstream.settings.config import Config


def make_unlabelled(config: Config, data: DataShape) -> LabelMethod:
    """Row 0 of a sample is its image, all other rows are mixed of it and other images; candidates are cached rows.

    Instead of labels, validation compares the goodness of each image with that of one mixed image: it is an error if
    that has more. Raises ConfigError if fewer mixed images are cached than a step sees, and DataError for hybrids of
    images that have no plane (height and width).
    """
    settings = config.negatives
    num_cached = settings.per_sample
    if isinstance(num_cached, str) or num_cached < settings.per_step:
        raise ConfigError(
            f"config negatives.per_sample: found {num_cached!r}, allowed {settings.per_step} (negatives.per_step) "
            "or more hybrids, with labels.method=none"
        )
    return LabelMethod(
        _MixedRows(num_cached, None if settings.images == "sums" else settings.blurs, data.mixed_shape),
        _MixedCandidates(num_cached, settings.per_step),
        ReadingOfRows(num_sweep_rows=1),
    )


class _MixedRows(LabelFreeRows):
    """The image, followed by mixed ones in the training and validation caches.

    `num_blurs` is that of the masks of hybrids; None makes sums. A sum of an image with itself, the positive of SCFF,
    is the image once all rows are brought to one length.
    """

    mixes_samples = True

    def __init__(self, num_cached: int, num_blurs: int | None, image_shape: Sequence[int] | None) -> None:
        self._num_blurs = num_blurs
        self._plane = check_plane(image_shape) if image_shape is not None and num_blurs is not None else None
        self.num_training_rows = 1 + num_cached

    @property
    def num_validation_rows(self) -> int:
        """The image and one that is mixed."""
        return 2

    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (n, 1 + R, features), from images (n, 1 + R, features): the sample's own and R of other samples."""
        own, others = images[:, 0], images[:, 1:]
        if self._num_blurs is None:
            mixed = own.unsqueeze(1) + others
        else:
            assert self._plane is not None, "the shape of images is known where rows are made of them"
            mixed = make_hybrids(own, others, self._plane, self._num_blurs, generator)
        return length_normalise(torch.cat([own.unsqueeze(1), mixed], dim=1))

    def validation_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (n, 2, features), from images (n, 2, features): the sample's own and that of another sample."""
        return self.training_rows(images, labels, generator)

    def targets(self, labels: Tensor) -> Tensor:
        """Row 0, the image, should have the most goodness."""
        return torch.zeros_like(labels)


class _MixedCandidates(RowCandidates):
    """The image and some of those that are mixed of it."""

    def __init__(self, num_cached: int, num_negatives: int) -> None:
        self._num_cached, self._num_negatives = num_cached, num_negatives
        self.num_candidates = 1 + num_negatives
        self.num_values = 1 + num_cached

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The rows of the image and of K of those mixed of it: (n, 1 + K)."""
        mixed = distinct_offsets(len(labels), self._num_cached, self._num_negatives, generator)
        return torch.cat([torch.zeros(len(labels), 1, dtype=torch.int64), mixed], dim=1)
