"""Which rows the caches hold for a sample. Rows have shape (samples, rows per sample, features)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ffstream.field.normalisation import length_normalise


class SampleRows(ABC):
    """Makes the rows of the first caches. `images` are (n, features), scaled already; `labels` are (n,) int64.

    With `mixes_samples`, training and validation rows are made from images (n, rows per sample, features): the sample's
    own image, followed by images of other samples.
    """

    mixes_samples: bool = False
    overlays: bool = False  # whether labels are written over the first features of an image
    num_training_rows: int  # per sample, in the training cache
    num_sweep_rows: int  # per sample, in a cache from which the goodness of all labels is read

    @property
    def num_validation_rows(self) -> int:
        """Rows per sample in the validation cache."""
        return self.num_sweep_rows

    @abstractmethod
    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the first training cache: (n, num_training_rows, features)."""

    @abstractmethod
    def sweep_rows(self, images: Tensor) -> Tensor:
        """Rows of the first cache of a label sweep: (n, num_sweep_rows, features)."""

    def validation_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the first validation cache, (n, num_validation_rows, features): those of a label sweep."""
        return self.sweep_rows(images)

    def targets(self, labels: Tensor) -> Tensor:
        """The index of the value that should be the largest among those read off each validation sample: (n,) int64."""
        return labels

    @abstractmethod
    def neutral_rows(self, images: Tensor) -> Tensor:
        """Rows that favour no label, for the softmax readout: (n, 1, features)."""


class LabelFreeRows(SampleRows):
    """One row per sample, the normalised image: (n, 1, features)."""

    num_training_rows = 1
    num_sweep_rows = 1

    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The normalised image."""
        return self.sweep_rows(images)

    def sweep_rows(self, images: Tensor) -> Tensor:
        """The normalised image."""
        return length_normalise(images).unsqueeze(1)

    def neutral_rows(self, images: Tensor) -> Tensor:
        """The normalised image."""
        return self.sweep_rows(images)
