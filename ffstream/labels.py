"""How the label reaches a layer: by overlay on the input, or by injection into every layer.

A label method decides which rows the cache holds for a sample, which of them a step reads, and how the goodness of all
C labels is read off. Rows have shape (samples, rows a sample, features).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ffstream.config import Config
from ffstream.errors import ConfigError
from ffstream.goodness import Goodness
from ffstream.layers import Layer
from ffstream.negatives import NEGATIVE_SAMPLERS, NegativeSampler, distinct_offsets
from ffstream.normalisation import length_normalise
from ffstream.workspace import Workspace


class LabelMethod(ABC):
    """How the label reaches a layer. `images` are (n, features), scaled to at most 1; `labels` are (n,) int64."""

    uses_embedding: bool
    num_training_rows: int  # a sample, in the training cache
    num_sweep_rows: int  # a sample, in a cache that all labels are read off

    @abstractmethod
    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the first training cache: (n, num_training_rows, features)."""

    @abstractmethod
    def sweep_rows(self, images: Tensor) -> Tensor:
        """Rows of the first cache of a label sweep: (n, num_sweep_rows, features)."""

    @abstractmethod
    def neutral_rows(self, images: Tensor) -> Tensor:
        """Rows that favour no label, for the softmax readout: (n, 1, features)."""

    @abstractmethod
    def draw_candidates(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The positive and K negatives of each sample, as this method counts them: (n, 1 + K) int64."""

    @abstractmethod
    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """A copy of the rows that a step multiplies by the weights: (m, features), for the samples `index`."""

    @abstractmethod
    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """Activities of each candidate, 1 + K tensors (n, num_units). May reuse the memory of `preactivations`."""

    @abstractmethod
    def collect(
        self, gradients: list[Tensor], candidates: Tensor, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None]:
        """dL/dpreactivations from that of each candidate, and that of the label embedding where there is one."""

    @abstractmethod
    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Goodness of all labels, (n, num_classes), from the preactivations of n samples' sweep rows.

        Of training rows likewise: (n, the number of values that a candidate takes). With a workspace of the layer's,
        `preactivations` may be overwritten by their activities.
        """


class LabelInjection(LabelMethod):
    """h = relu(W x + b + U[label]) at every layer: one label-free row a sample, candidates are labels."""

    uses_embedding = True
    num_training_rows = 1
    num_sweep_rows = 1

    def __init__(self, num_classes: int, sampler: NegativeSampler, num_negatives: int) -> None:
        self._num_classes = num_classes
        self._sampler = sampler
        self._num_negatives = num_negatives

    def training_rows(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The normalised image: (n, 1, features)."""
        return self.sweep_rows(images)

    def sweep_rows(self, images: Tensor) -> Tensor:
        """The normalised image: (n, 1, features)."""
        return length_normalise(images).unsqueeze(1)

    def neutral_rows(self, images: Tensor) -> Tensor:
        """The normalised image: (n, 1, features)."""
        return self.sweep_rows(images)

    def draw_candidates(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Labels, the true one first: (n, 1 + K)."""
        wrong = self._sampler(labels, self._num_classes, self._num_negatives, generator)
        return torch.cat([labels.unsqueeze(1), wrong], dim=1)

    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """One row a sample: (n, features), shared by all candidates."""
        return _take_rows(block, index, workspace)

    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """relu(z + U[label]) for each candidate label."""
        embedding = _embedding(layer)
        shape = (candidates.shape[1], *preactivations.shape)
        activities = list(workspace.take("activities", shape, embedding.dtype).unbind(0))
        for activity, column in zip(activities, candidates.unbind(1), strict=True):
            torch.index_select(embedding, 0, column, out=activity).add_(preactivations).relu_()
        return activities

    def collect(
        self, gradients: list[Tensor], candidates: Tensor, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None]:
        """dz is the sum over candidates; dU[c] the sum over the samples with candidate c.

        dU is a product with one-hot rows: index_add_ would add in an order of its own on CUDA.
        """
        shape, dtype = (self._num_classes, gradients[0].shape[1]), gradients[0].dtype
        embedding_gradient = workspace.take("embedding gradient", shape, dtype).zero_()
        for column, gradient in zip(candidates.unbind(1), gradients, strict=True):
            shown = torch.nn.functional.one_hot(column, self._num_classes).to(dtype)
            embedding_gradient.addmm_(shown.t(), gradient)
        total = gradients[0]
        for gradient in gradients[1:]:
            total.add_(gradient)
        return total, embedding_gradient

    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Every label's goodness from one matrix product: z + U[c] for every c."""
        room = None
        if layer.workspace is not None:
            room = layer.workspace.take("activities", tuple(preactivations.shape), preactivations.dtype)
        activities = (torch.add(preactivations, u, out=room).relu_() for u in _embedding(layer))
        return torch.stack([goodness.value(h) for h in activities], dim=1)


class LabelOverlay(LabelMethod):
    """The label replaces the first C features of the image (Hinton 2022, section 3.3); candidates are cached rows.

    With all wrong labels cached, row c of a sample carries label c; with R of them, row 0 carries the true label.
    """

    uses_embedding = False

    def __init__(self, num_classes: int, sampler: NegativeSampler, num_negatives: int, num_cached: int) -> None:
        self._num_classes = num_classes
        self._sampler = sampler
        self._num_negatives = num_negatives
        self._num_cached = num_cached
        self.num_training_rows = 1 + num_cached
        self.num_sweep_rows = num_classes

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
        codes = torch.eye(self._num_classes, dtype=images.dtype)
        return self._overlay(images, codes.expand(len(images), -1, -1))

    def neutral_rows(self, images: Tensor) -> Tensor:
        """(n, 1, features), every label pixel at 1/C (the neutral label of the paper)."""
        codes = torch.full((len(images), 1, self._num_classes), 1 / self._num_classes, dtype=images.dtype)
        return self._overlay(images, codes)

    def draw_candidates(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the sample, the positive one first: (n, 1 + K)."""
        if self._caches_all:
            positive = labels.unsqueeze(1)
            wrong = self._sampler(labels, self._num_classes, self._num_negatives, generator)
        else:
            positive = torch.zeros(len(labels), 1, dtype=torch.int64)
            wrong = distinct_offsets(len(labels), self._num_cached, self._num_negatives, generator)
        return torch.cat([positive, wrong], dim=1)

    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """((1 + K) n, features): all positives, then all first negatives, and so on."""
        return _take_rows(block, (index.unsqueeze(1) * block.shape[1] + candidates).t().reshape(-1), workspace)

    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """relu(z), in place, cut into candidates."""
        return list(preactivations.relu_().chunk(candidates.shape[1]))

    def collect(
        self, gradients: list[Tensor], candidates: Tensor, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None]:
        """The candidates' gradients one above the other, as the rows were."""
        shape = (sum(len(gradient) for gradient in gradients), gradients[0].shape[1])
        return torch.cat(gradients, out=workspace.take("gradient", shape, gradients[0].dtype)), None

    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Every row's goodness, those of a sample side by side; row c of its sweep rows carries label c."""
        activities = torch.relu(preactivations) if layer.workspace is None else preactivations.relu_()
        return goodness.value(activities).view(num_samples, -1)

    def _overlay(self, images: Tensor, codes: Tensor) -> Tensor:
        rows = images.unsqueeze(1).repeat(1, codes.shape[1], 1)
        rows[:, :, : self._num_classes] = codes
        return length_normalise(rows)


def make_label_method(config: Config, num_classes: int, num_features: int) -> LabelMethod:
    """The label method of a configuration. Raises ConfigError when it does not fit the data."""
    sampler = NEGATIVE_SAMPLERS[config.negatives.sampler]
    num_wrong = num_classes - 1
    num_negatives = config.negatives.per_step
    if num_negatives > num_wrong:
        raise ConfigError(
            f"config negatives.per_step: found {num_negatives}, allowed at most {num_wrong}, "
            f"the wrong labels of {num_classes} classes"
        )
    if config.labels.method == "injection":
        return LabelInjection(num_classes, sampler, num_negatives)
    if num_classes > num_features:
        raise ConfigError(
            f"config labels.method: overlay needs a feature for each of the {num_classes} classes, found "
            f"{num_features} features; use labels.method=injection"
        )
    per_sample = config.negatives.per_sample
    num_cached = num_wrong if isinstance(per_sample, str) else per_sample
    if not num_negatives <= num_cached <= num_wrong:
        raise ConfigError(
            f"config negatives.per_sample: found {num_cached}, allowed {num_negatives} (negatives.per_step) to "
            f"{num_wrong} (the wrong labels of {num_classes} classes), or 'all'"
        )
    return LabelOverlay(num_classes, sampler, num_negatives, num_cached)


def _take_rows(block: Tensor, rows: Tensor, workspace: Workspace) -> Tensor:
    taken = workspace.take("rows", (len(rows), block.shape[2]), block.dtype)
    return torch.index_select(block.flatten(0, 1), 0, rows, out=taken)


def _embedding(layer: Layer) -> Tensor:
    if layer.label_embedding is None:
        raise ConfigError(f"label injection needs a layer with a label embedding, found {type(layer).__name__} without")
    return layer.label_embedding.detach()
