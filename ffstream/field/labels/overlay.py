"""Label overlay: the label is a part of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.shape import DataShape
from ffstream.errors import ConfigError
from ffstream.field.labels.base import CachedCandidates, read_num_negatives
from ffstream.field.negatives import NEGATIVE_SAMPLERS, InformedSampler, NegativeSampler, distinct_offsets
from ffstream.field.normalisation import length_normalise
from ffstream.settings.config import Config


class LabelOverlay(CachedCandidates):
    """The label replaces the first C features of the image (Hinton 2022, section 3.3); candidates are cached rows.

    With all wrong labels cached, row c of a sample carries label c; with R of them, row 0 carries the true label.
    """

    overlays = True

    def __init__(
        self,
        num_classes: int,
        sampler: NegativeSampler,
        num_negatives: int,
        num_cached: int,
        num_in_pool: int | None = None,
    ) -> None:
        self._num_classes = num_classes
        self._sampler = sampler
        self.informed = sampler if isinstance(sampler, InformedSampler) else None
        self._num_negatives = num_negatives
        self._num_cached = num_cached
        self.num_candidates = 1 + num_negatives
        self.num_in_pool = num_in_pool
        self.num_training_rows = self.num_values = 1 + num_cached
        self.num_sweep_rows = num_classes

    @classmethod
    def make(cls, config: Config, data: DataShape) -> LabelOverlay:
        """With the negatives of a configuration. Raises ConfigError for too few features, or too many negatives."""
        num_classes, sampler = data.num_classes, NEGATIVE_SAMPLERS[config.negatives.sampler]
        num_negatives, num_wrong = read_num_negatives(config, num_classes), num_classes - 1
        if num_classes > data.num_features:
            raise ConfigError(
                f"config labels.method: overlay needs a feature for each of the {num_classes} classes, found "
                f"{data.num_features} features; use labels.method=injection"
            )
        per_sample, pool = config.negatives.per_sample, config.negatives.pool
        num_cached = num_wrong if isinstance(per_sample, str) else per_sample
        if not num_negatives <= num_cached <= num_wrong:
            raise ConfigError(
                f"config negatives.per_sample: found {num_cached}, allowed {num_negatives} (negatives.per_step) to "
                f"{num_wrong} (the wrong labels of {num_classes} classes), or 'all'"
            )
        num_in_pool = None if isinstance(pool, str) or pool >= num_cached else max(pool, num_negatives)
        return cls(num_classes, sampler, num_negatives, num_cached, num_in_pool)

    @property
    def _caches_all(self) -> bool:
        return self._num_cached == self._num_classes - 1

    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """(n, 1 + R, features)."""
        if self._caches_all:
            return self.sweep_rows(images)
        wrong = self._sampler(labels, self._num_classes, self._num_cached, generator)
        shown = torch.cat([labels.unsqueeze(1), wrong], dim=1)
        return self._overlay(images, torch.nn.functional.one_hot(shown, self._num_classes).to(images.dtype))

    def sweep_rows(self, images: Tensor) -> Tensor:
        """(n, num_classes, features)."""
        codes = torch.eye(self._num_classes, dtype=images.dtype, device=images.device)
        return self._overlay(images, codes.expand(images.shape[0], -1, -1))

    def neutral_rows(self, images: Tensor) -> Tensor:
        """(n, 1, features), every label pixel at 1/C (the neutral label of the paper)."""
        codes = images.new_full((images.shape[0], 1, self._num_classes), 1 / self._num_classes)
        return self._overlay(images, codes)

    def draw_candidates(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the sample, the positive one first: (n, 1 + K)."""
        positive = labels.unsqueeze(1) if self._caches_all else torch.zeros(len(labels), 1, dtype=torch.int64)
        return torch.cat([positive, self._draw_wrong(labels, self._num_negatives, generator)], dim=1)

    def draw_pool(self, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """Rows of the sample that show wrong labels: (n, num_in_pool)."""
        return None if self.num_in_pool is None else self._draw_wrong(labels, self.num_in_pool, generator)

    def _draw_wrong(self, labels: Tensor, num_drawn: int, generator: torch.Generator) -> Tensor:
        if self._caches_all:
            return self._sampler(labels, self._num_classes, num_drawn, generator)
        return distinct_offsets(len(labels), self._num_cached, num_drawn, generator)

    def _overlay(self, images: Tensor, codes: Tensor) -> Tensor:
        rows = images.unsqueeze(1).repeat(1, codes.shape[1], 1)
        rows[:, :, : self._num_classes] = codes
        return length_normalise(rows)
