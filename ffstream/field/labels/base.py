"""What every label method is.

It decides which rows the cache holds for a sample, which of them a step reads, and how the goodness of all C labels is
read off. Rows have shape (samples, rows a sample, features).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ffstream.data.shape import DataShape
from ffstream.device.workspace import Buffer, Workspace
from ffstream.errors import ConfigError
from ffstream.field.goodness import Goodness
from ffstream.field.layers import Layer
from ffstream.field.negatives import InformedSampler
from ffstream.field.normalisation import length_normalise
from ffstream.settings.config import Config

_ROWS = Buffer("rows", "rows")


class LabelMethod(ABC):
    """How labels and a layer meet. `images` are (n, features), scaled to at most 1; `labels` are (n,) int64.

    A method that `mixes_samples` makes cached rows from (n, rows a sample, features): images of the sample and others.
    """

    mixes_samples: bool = False
    overlays: bool = False  # labels on the first features of an image
    uses_embedding: bool  # of labels, a parameter of every layer
    adds_embedding: bool = False  # to preactivations, so that its gradients add up to that of the bias
    shares_row: bool  # candidates are labels, and share one label-free row
    informed: InformedSampler | None = None  # which draws negatives by what the layer makes of them
    num_groups: int = 1  # of units, each of which makes a goodness
    num_candidates: int  # of a sample in a step, 1 + K
    num_values: int  # that a candidate may take
    num_in_pool: int | None = None  # of them, drawn at random, that negatives are chosen from; None: all
    num_training_rows: int  # a sample, in the training cache
    num_sweep_rows: int  # a sample, in a cache that all labels are read off

    @classmethod
    @abstractmethod
    def make(cls, config: Config, data: DataShape) -> LabelMethod:
        """The method as a configuration sets it. Raises ConfigError or DataError where it does not fit the data.

        The shape of an image may be unknown where no training or validation rows are made.
        """

    @property
    def num_choices(self) -> int:
        """Values that negatives are chosen from, the positive's among them where they are all."""
        return self.num_values if self.num_in_pool is None else self.num_in_pool

    @property
    def num_validation_rows(self) -> int:
        """Rows a sample, in the validation cache."""
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
        """Which of the values that are read off a validation sample should be the largest: (n,) int64."""
        return labels

    @abstractmethod
    def neutral_rows(self, images: Tensor) -> Tensor:
        """Rows that favour no label, for the softmax readout: (n, 1, features)."""

    @abstractmethod
    def draw_candidates(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The positive and K negatives of each sample, as this method counts them: (n, 1 + K) int64.

        Of an informed sampler's, those that it draws while there is nothing to tell.
        """

    def draw_pool(self, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """What the negatives of each sample are chosen from, (n, num_in_pool) int64; None where that is everything."""
        return None

    @abstractmethod
    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """A copy of the rows that a step multiplies by the weights: (m, features), for the samples `index`."""

    @abstractmethod
    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """What goodness is measured on, first the activities: (1 + K, n, num_units), the positive's first, or (1, ...).

        One for all candidates where a layer is not shown them. May reuse the memory of `preactivations`.
        """

    @abstractmethod
    def measure(self, layer: Layer, goodness: Goodness, activities: list[Tensor], candidates: Tensor) -> Tensor:
        """Goodness of each candidate, (n, 1 + K), from what `activities` gave."""

    @abstractmethod
    def differentiate(
        self,
        layer: Layer,
        goodness: Goodness,
        activities: list[Tensor],
        candidates: Tensor,
        upstream: Tensor,
        pull: Tensor | None,
        workspace: Workspace,
        *,
        embedding: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """dL/dpreactivations, and that of the label embedding where there is one and `embedding` asks for it.

        `upstream` is dL/dgoodness, (n, 1 + K); `pull`, (num_units,), is added for every sample's first activities. May
        reuse the memory of `activities`, which `measure` has read.
        """

    @abstractmethod
    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Goodness of all labels, (n, num_classes), from the preactivations of n samples' sweep rows.

        Of training rows likewise: (n, num_values). With a workspace of the layer's, `preactivations` may be overwritten
        by their activities, but where candidates share a row. Without one, nothing is written in place: gradients flow
        through it to all parameters, and a compiler can follow it for any n.
        """


class ShownLabels(LabelMethod):
    """A layer is shown each candidate, and has activities for it: in one tensor, one candidate above the other."""

    def measure(self, layer: Layer, goodness: Goodness, activities: list[Tensor], candidates: Tensor) -> Tensor:
        """Goodness of each candidate's activities."""
        return torch.stack([goodness.value(h) for h in activities[0]], dim=1)

    def differentiate(
        self,
        layer: Layer,
        goodness: Goodness,
        activities: list[Tensor],
        candidates: Tensor,
        upstream: Tensor,
        pull: Tensor | None,
        workspace: Workspace,
        *,
        embedding: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Through each candidate's activities, whose place the gradients take."""
        (gradients,) = activities
        for h, g in zip(gradients, upstream.unbind(1), strict=True):
            layer.through_goodness_(goodness, h, g)
        if pull is not None:
            gradients[0] += pull
        return self.collect(gradients, candidates, embedding=embedding)

    @abstractmethod
    def collect(self, gradients: Tensor, candidates: Tensor, *, embedding: bool) -> tuple[Tensor, Tensor | None]:
        """What `differentiate` gives, from the gradients (1 + K, n, num_units)."""


class CachedCandidates(ShownLabels):
    """Candidates are cached rows of the sample, so that a row says by itself what it stands for."""

    uses_embedding = False
    shares_row = False

    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """((1 + K) n, features): all positives, then all first negatives, and so on."""
        return take_rows(block, (index.unsqueeze(1) * block.shape[1] + candidates).t().reshape(-1), workspace)

    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """The activities, in place, cut into candidates."""
        return [layer.activate_(preactivations).unflatten(0, (candidates.shape[1], -1))]

    def collect(self, gradients: Tensor, candidates: Tensor, *, embedding: bool) -> tuple[Tensor, Tensor | None]:
        """One above the other, as the rows were."""
        return gradients.flatten(0, 1), None

    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Every row's goodness, those of a sample side by side, in the order of its rows."""
        activities = layer.activate(preactivations) if layer.workspace is None else layer.activate_(preactivations)
        found = goodness.value(activities)
        if num_samples == 0:  # of which a reshape could not tell the rows
            return found.view(0, self.num_sweep_rows)
        by_sample: Tensor = found.unflatten(0, (num_samples, -1))
        return by_sample


class LabelFreeRows(LabelMethod):
    """One label-free row a sample."""

    shares_row = True
    num_training_rows = 1
    num_sweep_rows = 1

    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The normalised image: (n, 1, features)."""
        return self.sweep_rows(images)

    def sweep_rows(self, images: Tensor) -> Tensor:
        """The normalised image: (n, 1, features)."""
        return length_normalise(images).unsqueeze(1)

    def neutral_rows(self, images: Tensor) -> Tensor:
        """The normalised image: (n, 1, features)."""
        return self.sweep_rows(images)

    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """One row a sample: (n, features), shared by all candidates."""
        return take_rows(block, index, workspace)


def read_num_negatives(config: Config, num_classes: int) -> int:
    """The wrong labels that a step contrasts with the true one. Raises ConfigError for more than there are."""
    num_negatives, num_wrong = config.negatives.per_step, num_classes - 1
    if num_negatives > num_wrong:
        raise ConfigError(
            f"config negatives.per_step: found {num_negatives}, allowed at most {num_wrong}, "
            f"the wrong labels of {num_classes} classes"
        )
    return num_negatives


def take_rows(block: Tensor, rows: Tensor, workspace: Workspace) -> Tensor:
    """A copy of some of the rows of a block, counted through its samples: (m, features)."""
    taken = workspace.take(_ROWS, (len(rows), block.shape[2]), block.dtype)
    return torch.index_select(block.flatten(0, 1), 0, rows, out=taken)


def label_embedding_of(layer: Layer) -> Tensor:
    """The layer's row for every label, (num_classes, num_units). Raises ConfigError if it has none.

    Without a graph where the layer has a workspace: what makes gradients there is written out.
    """
    if layer.label_embedding is None:
        raise ConfigError(
            f"this label method needs a layer with a label embedding, found {type(layer).__name__} without"
        )
    return layer.label_embedding if layer.workspace is None else layer.label_embedding.detach()
