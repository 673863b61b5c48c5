"""Learning without labels: images are contrasted with hybrids of two images (Hinton 2022, section 3.2)."""

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
    """Row 0 of a sample is its image, all other rows are hybrids of it and other images; candidates are cached rows.

    Instead of labels, validation compares the goodness of each image with that of one hybrid: it is an error if the
    hybrid has more. Raises ConfigError if fewer hybrids are cached than a step sees, and DataError if images have no
    plane (height and width).
    """
    settings = config.negatives
    num_cached = settings.per_sample
    if isinstance(num_cached, str) or num_cached < settings.per_step:
        raise ConfigError(
            f"config negatives.per_sample: found {num_cached!r}, allowed {settings.per_step} (negatives.per_step) "
            "or more hybrids, with labels.method=none"
        )
    return LabelMethod(
        _HybridRows(num_cached, settings.blurs, data.mixed_shape),
        _HybridCandidates(num_cached, settings.per_step),
        ReadingOfRows(num_sweep_rows=1),
    )


class _HybridRows(LabelFreeRows):
    """The image, followed by hybrids in the training and validation caches."""

    mixes_samples = True

    def __init__(self, num_cached: int, num_blurs: int, image_shape: Sequence[int] | None) -> None:
        self._num_blurs = num_blurs
        self._plane = check_plane(image_shape) if image_shape is not None else None
        self.num_training_rows = 1 + num_cached

    @property
    def num_validation_rows(self) -> int:
        """The image and one hybrid."""
        return 2

    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (n, 1 + R, features), from images (n, 1 + R, features): the sample's own and R of other samples."""
        assert self._plane is not None, "the shape of images is known where rows are made of them"
        own = images[:, 0]
        hybrids = make_hybrids(own, images[:, 1:], self._plane, self._num_blurs, generator)
        return length_normalise(torch.cat([own.unsqueeze(1), hybrids], dim=1))

    def validation_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (n, 2, features), from images (n, 2, features): the sample's own and that of another sample."""
        return self.training_rows(images, labels, generator)

    def targets(self, labels: Tensor) -> Tensor:
        """Row 0, the image, should have the most goodness."""
        return torch.zeros_like(labels)


class _HybridCandidates(RowCandidates):
    """The image and some of its hybrids."""

    def __init__(self, num_cached: int, num_negatives: int) -> None:
        self._num_cached, self._num_negatives = num_cached, num_negatives
        self.num_candidates = 1 + num_negatives
        self.num_values = 1 + num_cached

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The rows of the image and of K of its hybrids: (n, 1 + K)."""
        hybrids = distinct_offsets(len(labels), self._num_cached, self._num_negatives, generator)
        return torch.cat([torch.zeros(len(labels), 1, dtype=torch.int64), hybrids], dim=1)
