"""Learning without labels: images against hybrids of two (Hinton 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffstream.data.hybrids import check_plane, make_hybrids
from ffstream.data.shape import DataShape
from ffstream.errors import ConfigError
from ffstream.field.labels.base import CachedCandidates
from ffstream.field.negatives import distinct_offsets
from ffstream.field.normalisation import length_normalise
from ffstream.settings.config import Config


class Unlabelled(CachedCandidates):
    """Row 0 of a sample is its image, the others are hybrids of it and of other samples; candidates are cached rows.

    In place of labels, the goodness of an image and of one hybrid is read off a validation sample: an error is a hybrid
    that has more.
    """

    mixes_samples = True
    num_sweep_rows = 1
    num_validation_rows = 2

    def __init__(self, num_negatives: int, num_cached: int, num_blurs: int, image_shape: Sequence[int] | None) -> None:
        self._num_negatives = num_negatives
        self._num_cached = num_cached
        self._num_blurs = num_blurs
        self._plane = check_plane(image_shape) if image_shape is not None else None
        self.num_candidates = 1 + num_negatives
        self.num_training_rows = self.num_values = 1 + num_cached

    @classmethod
    def make(cls, config: Config, data: DataShape) -> Unlabelled:
        """Raises ConfigError for fewer cached hybrids than a step sees, DataError where images have no plane."""
        settings = config.negatives
        num_cached = settings.per_sample
        if isinstance(num_cached, str) or num_cached < settings.per_step:
            raise ConfigError(
                f"config negatives.per_sample: found {num_cached!r}, allowed {settings.per_step} (negatives.per_step) "
                "or more hybrids, with labels.method=none"
            )
        return cls(settings.per_step, num_cached, settings.blurs, data.mixed_shape)

    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """(n, 1 + R, features), of images (n, 1 + R, features): the sample's own and R others."""
        assert self._plane is not None, "the shape of images is known where rows are made of them"
        own = images[:, 0]
        hybrids = make_hybrids(own, images[:, 1:], self._plane, self._num_blurs, generator)
        return length_normalise(torch.cat([own.unsqueeze(1), hybrids], dim=1))

    def validation_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """(n, 2, features), of images (n, 2, features): the sample's own and another."""
        return self.training_rows(images, labels, generator)

    def targets(self, labels: Tensor) -> Tensor:
        """Row 0, the image."""
        return torch.zeros_like(labels)

    def sweep_rows(self, images: Tensor) -> Tensor:
        """The normalised image: (n, 1, features)."""
        return length_normalise(images).unsqueeze(1)

    def neutral_rows(self, images: Tensor) -> Tensor:
        """The normalised image: (n, 1, features)."""
        return self.sweep_rows(images)

    def draw_candidates(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the sample, the image and K of its hybrids: (n, 1 + K)."""
        hybrids = distinct_offsets(len(labels), self._num_cached, self._num_negatives, generator)
        return torch.cat([torch.zeros(len(labels), 1, dtype=torch.int64), hybrids], dim=1)
