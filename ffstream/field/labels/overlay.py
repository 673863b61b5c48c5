"""Label overlay: the label is written over a part of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.shape import DataShape
from ffstream.errors import ConfigError
from ffstream.field.labels.candidates import RowCandidates, read_num_negatives
from ffstream.field.labels.method import LabelMethod
from ffstream.field.labels.reading import ReadingOfRows
from ffstream.field.labels.rows import SampleRows
from ffstream.field.negatives import NEGATIVE_SAMPLERS, InformedSampler, NegativeSampler, distinct_offsets
from ffstream.field.normalisation import length_normalise
from ffstream.settings.config import Config


def make_overlay(config: Config, data: DataShape) -> LabelMethod:
    """The label replaces the first C features of the image (Hinton 2022, section 3.3); candidates are cached rows.

    If all wrong labels are cached, row c of a sample carries label c; if only R are, row 0 carries the true label.
    Raises ConfigError for too few features or too many negatives.
    """
    num_classes, sampler = data.num_classes, NEGATIVE_SAMPLERS.of(config)
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
    return LabelMethod(
        _OverlaidRows(num_classes, sampler, num_cached),
        _OverlaidCandidates(num_classes, sampler, num_cached, num_negatives, num_in_pool),
        ReadingOfRows(num_classes),
    )


class _OverlaidRows(SampleRows):
    """A copy of the image with each label that is cached."""

    overlays = True

    def __init__(self, num_classes: int, sampler: NegativeSampler, num_cached: int) -> None:
        self._sampler, self._num_cached = sampler, num_cached
        self.num_training_rows = 1 + num_cached
        self.num_sweep_rows = num_classes

    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The image with the true label and with R wrong labels: (n, 1 + R, features)."""
        num_classes = self.num_sweep_rows
        if self._num_cached == num_classes - 1:
            return self.sweep_rows(images)
        wrong = self._sampler(labels, num_classes, self._num_cached, generator)
        shown = torch.cat([labels.unsqueeze(1), wrong], dim=1)
        return _overlay(images, torch.nn.functional.one_hot(shown, num_classes).to(images.dtype))

    def sweep_rows(self, images: Tensor) -> Tensor:
        """The image with every label: (n, num_classes, features)."""
        codes = torch.eye(self.num_sweep_rows, dtype=images.dtype, device=images.device)
        return _overlay(images, codes.expand(images.shape[0], -1, -1))

    def neutral_rows(self, images: Tensor) -> Tensor:
        """The image with every label pixel at 1/C, the neutral label of the paper: (n, 1, features)."""
        num_classes = self.num_sweep_rows
        return _overlay(images, images.new_full((images.shape[0], 1, num_classes), 1 / num_classes))


class _OverlaidCandidates(RowCandidates):
    """The row that shows the true label, and some rows that show wrong ones."""

    def __init__(
        self, num_classes: int, sampler: NegativeSampler, num_cached: int, num_negatives: int, num_in_pool: int | None
    ) -> None:
        self._num_classes, self._sampler = num_classes, sampler
        self._num_cached, self._num_negatives = num_cached, num_negatives
        self._caches_all = num_cached == num_classes - 1
        self.informed = sampler if isinstance(sampler, InformedSampler) else None
        self.num_candidates = 1 + num_negatives
        self.num_values = 1 + num_cached
        self.num_in_pool = num_in_pool

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
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


def _overlay(images: Tensor, codes: Tensor) -> Tensor:
    """Each image once for each of its `codes`, (n, rows per sample, num_classes), which replace its first features."""
    rows = images.unsqueeze(1).repeat(1, codes.shape[1], 1)
    rows[:, :, : codes.shape[2]] = codes
    return length_normalise(rows)
