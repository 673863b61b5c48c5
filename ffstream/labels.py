"""How labels and a layer meet: by overlay on the input, by injection into every layer, or at its output alone.

A label method decides which rows the cache holds for a sample, which of them a step reads, and how the goodness of all
C labels is read off. Rows have shape (samples, rows a sample, features).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ffstream.config import Config
from ffstream.errors import ConfigError
from ffstream.goodness import GOODNESSES, Goodness, LinearGoodness
from ffstream.layers import Layer
from ffstream.negatives import NEGATIVE_SAMPLERS, InformedSampler, NegativeSampler, distinct_offsets
from ffstream.normalisation import length_normalise
from ffstream.registry import Registry
from ffstream.workspace import Workspace


class LabelMethod(ABC):
    """How labels and a layer meet. `images` are (n, features), scaled to at most 1; `labels` are (n,) int64."""

    uses_embedding: bool  # of labels, a parameter of every layer
    shares_row: bool  # candidates are labels, and share one label-free row
    reads_goodness: bool = False  # to draw negatives
    num_groups: int = 1  # of units, each of which makes a goodness
    num_candidates: int  # of a sample in a step, 1 + K
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
    def draw_candidates(self, labels: Tensor, generator: torch.Generator, logits: Tensor | None = None) -> Tensor:
        """The positive and K negatives of each sample, as this method counts them: (n, 1 + K) int64.

        `logits`, for a sampler that reads goodness: scale * goodness of all that a candidate may be, (n, values).
        """

    @abstractmethod
    def select(self, block: Tensor, index: Tensor, candidates: Tensor, workspace: Workspace) -> Tensor:
        """A copy of the rows that a step multiplies by the weights: (m, features), for the samples `index`."""

    @abstractmethod
    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """What goodness is measured on, first the activities (n, num_units) of the positive, or of all candidates.

        May reuse the memory of `preactivations`.
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
    ) -> tuple[Tensor, Tensor | None]:
        """dL/dpreactivations, and that of the label embedding where there is one.

        `upstream` is dL/dgoodness, (n, 1 + K); `pull`, (num_units,), is added for every sample's first activities. May
        reuse the memory of `activities`, which `measure` has read.
        """

    @abstractmethod
    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Goodness of all labels, (n, num_classes), from the preactivations of n samples' sweep rows.

        Of training rows likewise: (n, the number of values that a candidate takes). With a workspace of the layer's,
        `preactivations` may be overwritten by their activities.
        """


class _ShownLabels(LabelMethod):
    """A layer is shown each candidate, and has activities for it."""

    def measure(self, layer: Layer, goodness: Goodness, activities: list[Tensor], candidates: Tensor) -> Tensor:
        """Goodness of each candidate's activities."""
        return torch.stack([goodness.value(h) for h in activities], dim=1)

    def differentiate(
        self,
        layer: Layer,
        goodness: Goodness,
        activities: list[Tensor],
        candidates: Tensor,
        upstream: Tensor,
        pull: Tensor | None,
        workspace: Workspace,
    ) -> tuple[Tensor, Tensor | None]:
        """Through each candidate's activities."""
        gradients = [goodness.gradient_(h, g) for h, g in zip(activities, upstream.unbind(1), strict=True)]
        if pull is not None:
            gradients[0] += pull
        return self.collect(gradients, candidates, workspace)

    @abstractmethod
    def collect(
        self, gradients: list[Tensor], candidates: Tensor, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None]:
        """dL/dpreactivations from that of each candidate, and that of the label embedding where there is one."""


class _LabelFreeRows(LabelMethod):
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
        return _take_rows(block, index, workspace)


class LabelInjection(_ShownLabels, _LabelFreeRows):
    """h = relu(W x + b + U[label]) at every layer: one label-free row a sample, candidates are labels."""

    uses_embedding = True

    def __init__(self, num_classes: int, sampler: NegativeSampler, num_negatives: int) -> None:
        self._num_classes = num_classes
        self._sampler = sampler
        self.reads_goodness = isinstance(sampler, InformedSampler)
        self._num_negatives = num_negatives
        self.num_candidates = 1 + num_negatives

    def draw_candidates(self, labels: Tensor, generator: torch.Generator, logits: Tensor | None = None) -> Tensor:
        """Labels, the true one first: (n, 1 + K)."""
        if logits is not None and isinstance(self._sampler, InformedSampler):
            wrong = self._sampler.draw(labels, logits, self._num_negatives, generator)
        else:
            wrong = self._sampler(labels, self._num_classes, self._num_negatives, generator)
        return torch.cat([labels.unsqueeze(1), wrong], dim=1)

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


class LabelOverlay(_ShownLabels):
    """The label replaces the first C features of the image (Hinton 2022, section 3.3); candidates are cached rows.

    With all wrong labels cached, row c of a sample carries label c; with R of them, row 0 carries the true label.
    """

    uses_embedding = False
    shares_row = False

    def __init__(self, num_classes: int, sampler: NegativeSampler, num_negatives: int, num_cached: int) -> None:
        self._num_classes = num_classes
        self._sampler = sampler
        self.reads_goodness = isinstance(sampler, InformedSampler)
        self._num_negatives = num_negatives
        self._num_cached = num_cached
        self.num_candidates = 1 + num_negatives
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

    def draw_candidates(self, labels: Tensor, generator: torch.Generator, logits: Tensor | None = None) -> Tensor:
        """Rows of the sample, the positive one first: (n, 1 + K)."""
        positive = labels.unsqueeze(1) if self._caches_all else torch.zeros(len(labels), 1, dtype=torch.int64)
        if logits is not None and isinstance(self._sampler, InformedSampler):
            wrong = self._sampler.draw(positive.squeeze(1), logits, self._num_negatives, generator)
        elif self._caches_all:
            wrong = self._sampler(labels, self._num_classes, self._num_negatives, generator)
        else:
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


class _ReadLabels(_LabelFreeRows):
    """Every label has a goodness of its own in one label-free pass: candidates are all labels, the true one first.

    No negatives are drawn.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self.num_candidates = num_classes

    def draw_candidates(self, labels: Tensor, generator: torch.Generator, logits: Tensor | None = None) -> Tensor:
        """The true label, and the others in their order from there: (n, num_classes)."""
        return (labels.unsqueeze(1) + torch.arange(self._num_classes)) % self._num_classes

    def measure(self, layer: Layer, goodness: Goodness, activities: list[Tensor], candidates: Tensor) -> Tensor:
        """Goodness of every label, in the order of the candidates."""
        return self._read(layer, goodness, activities).gather(1, candidates)

    def differentiate(
        self,
        layer: Layer,
        goodness: Goodness,
        activities: list[Tensor],
        candidates: Tensor,
        upstream: Tensor,
        pull: Tensor | None,
        workspace: Workspace,
    ) -> tuple[Tensor, Tensor | None]:
        """Through the activities that all candidates share."""
        by_label = torch.empty_like(upstream).scatter_(1, candidates, upstream)  # each place once
        gradient, embedding_gradient = self._differentiate(layer, goodness, activities, by_label, workspace)
        if pull is not None:
            gradient += pull
        return gradient, embedding_gradient

    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Every label's goodness from one matrix product."""
        overwritten = preactivations if layer.workspace is not None else preactivations.clone()
        activities = self._split(layer, overwritten.relu_(), layer.workspace or Workspace(preactivations.device))
        return self._read(layer, goodness, activities)

    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """relu(z), in place, and what else goodness is read off."""
        return self._split(layer, preactivations.relu_(), workspace)

    @abstractmethod
    def _split(self, layer: Layer, activities: Tensor, workspace: Workspace) -> list[Tensor]:
        """The activities (n, num_units), and what else goodness is read off."""

    @abstractmethod
    def _read(self, layer: Layer, goodness: Goodness, activities: list[Tensor]) -> Tensor:
        """Goodness of every label, (n, num_classes), from what `_split` gave."""

    @abstractmethod
    def _differentiate(
        self, layer: Layer, goodness: Goodness, activities: list[Tensor], upstream: Tensor, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients, from those of the goodness of every label (n, num_classes)."""


class LabelGroups(_ReadLabels):
    """Unit u belongs to class u mod C; the goodness of a label is that of its units (CwComp, Papachristodoulou 2024).

    Groups differ by one unit at most. A mean is over num_units / C, so that tiles add up to the layer; every tile has
    its part of each group.
    """

    uses_embedding = False

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.num_groups = num_classes

    def _split(self, layer: Layer, activities: Tensor, workspace: Workspace) -> list[Tensor]:
        """The activities, and copies of them by group: of those that have one unit more, and of the others.

        The copies are (n, groups, units), as goodness wants the units of a group side by side.
        """
        found = [activities]
        room = workspace.take("activities", (activities.numel(),), activities.dtype)
        for groups, rows in self._pieces(activities):
            num_units = sum(piece.shape[1] for piece in rows)
            shape = (len(activities), groups.stop - groups.start, num_units)
            part, room = room[: math.prod(shape)].view(shape), room[math.prod(shape) :]
            for piece, place in _aligned(rows, part):
                place.copy_(piece)
            found.append(part)
        return found

    def _read(self, layer: Layer, goodness: Goodness, activities: list[Tensor]) -> Tensor:
        parts = [
            goodness.value(part.flatten(0, 1)).view(part.shape[:2]) * self._weight(layer, goodness, part)
            for part in activities[1:]
        ]
        missing = self._num_classes - sum(part.shape[1] for part in parts)  # of a tile of fewer units than classes
        if missing:
            parts.append(parts[0].new_zeros(len(parts[0]), missing))
        return torch.cat(parts, dim=1).roll(layer.first_unit, dims=1)

    def _differentiate(
        self, layer: Layer, goodness: Goodness, activities: list[Tensor], upstream: Tensor, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None]:
        """Into the memory of the activities."""
        gradient, *parts = activities
        by_group = upstream.roll(-layer.first_unit, dims=1)
        for (groups, rows), part in zip(self._pieces(gradient), parts, strict=True):
            of_part = (by_group[:, groups] * self._weight(layer, goodness, part)).flatten()
            found = goodness.gradient_(part.flatten(0, 1), of_part).view(part.shape)
            for piece, place in _aligned(rows, found):
                piece.copy_(place)
        return gradient, None

    def _pieces(self, activities: Tensor) -> list[tuple[slice, list[Tensor]]]:
        """Groups of as many units each, with views (n, units, groups) that are theirs. Groups of no unit are left out.

        Counted from the first unit of the tile: its group is the first.
        """
        num_units, num_groups = activities.shape[1], self._num_classes
        least, num_larger = divmod(num_units, num_groups)
        found = []
        whole = activities[:, : least * num_groups].unflatten(1, (least, num_groups)) if least else None
        if num_larger:
            rest = activities[:, least * num_groups :].unsqueeze(1)
            rows = [whole[:, :, :num_larger], rest] if whole is not None else [rest]
            found.append((slice(0, num_larger), rows))
        if whole is not None:
            found.append((slice(num_larger, num_groups), [whole[:, :, num_larger:]]))
        return found

    def _weight(self, layer: Layer, goodness: Goodness, part: Tensor) -> float:
        """By what the value of a group is multiplied: a mean is over as many units as groups have on average."""
        return goodness.weight(part.shape[2] * self._num_classes, layer.num_units)


class LabelClassifier(_ReadLabels):
    """The goodness of label c is the activities' product with M[c], learnt with the layer (Mono-Forward, Gong 2025).

    A local classifier, as in Nokland and Eidnes 2019 (prediction loss). M is the layer's label embedding; the goodness
    is a sum or a mean over units of h * M[c].
    """

    uses_embedding = True

    def _split(self, layer: Layer, activities: Tensor, workspace: Workspace) -> list[Tensor]:
        return [activities]

    def _read(self, layer: Layer, goodness: Goodness, activities: list[Tensor]) -> Tensor:
        return (activities[0] @ _embedding(layer).t()).mul_(_factor(layer, goodness))

    def _differentiate(
        self, layer: Layer, goodness: Goodness, activities: list[Tensor], upstream: Tensor, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None]:
        """dz = (g M) where the ReLU is open, dM = g^T h, with g the gradient of the products."""
        (activity,), embedding = activities, _embedding(layer)
        upstream = upstream * _factor(layer, goodness)
        room = workspace.take("embedding gradient", tuple(embedding.shape), embedding.dtype)
        embedding_gradient = torch.mm(upstream.t(), activity, out=room)
        back = workspace.take("activities", tuple(activity.shape), activity.dtype)
        return activity.sign_().mul_(torch.mm(upstream, embedding, out=back)), embedding_gradient


LABEL_METHODS: Registry[type[LabelMethod]] = Registry("label method")
LABEL_METHODS.register("injection", LabelInjection)
LABEL_METHODS.register("overlay", LabelOverlay)
LABEL_METHODS.register("groups", LabelGroups)
LABEL_METHODS.register("classifier", LabelClassifier)


def make_label_method(config: Config, num_classes: int, num_features: int) -> LabelMethod:
    """The label method of a configuration. Raises ConfigError when it does not fit the data."""
    if config.labels.method == "groups":
        if num_classes > config.width:
            raise ConfigError(
                f"config width: found {config.width}, allowed {num_classes} or more with labels.method=groups, which "
                "gives units to each class"
            )
        return LabelGroups(num_classes)
    if config.labels.method == "classifier":
        if not isinstance(GOODNESSES[config.objective.goodness], LinearGoodness):
            raise ConfigError(
                f"config objective.goodness: found {config.objective.goodness!r}, allowed mean or sum with "
                "labels.method=classifier, whose goodness is a product of activities and learnt weights"
            )
        return LabelClassifier(num_classes)
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


def _aligned(rows: list[Tensor], part: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces (n, units, groups), each with its units of `part`, (n, groups, all their units)."""
    places = part.transpose(1, 2).split([piece.shape[1] for piece in rows], dim=1)
    return zip(rows, places, strict=True)


def _factor(layer: Layer, goodness: Goodness) -> float:
    assert isinstance(goodness, LinearGoodness), "make_label_method sees to it"
    return goodness.factor(layer.num_units)


def _embedding(layer: Layer) -> Tensor:
    if layer.label_embedding is None:
        raise ConfigError(
            f"this label method needs a layer with a label embedding, found {type(layer).__name__} without"
        )
    return layer.label_embedding.detach()
