"""How the goodness of candidates, and of all labels, is read off a layer, and differentiated."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ffstream.device.workspace import Workspace
from ffstream.errors import ConfigError
from ffstream.field.goodness import Goodness
from ffstream.field.layers import Layer


class Reading(ABC):
    """Reads goodness off a layer's preactivations."""

    uses_embedding: bool  # of labels, a parameter of every layer
    adds_embedding: bool = False  # to preactivations, so that its gradients add up to that of the bias
    num_groups: int = 1  # of units, each of which makes a goodness

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


class ReadingOfShown(Reading):
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
        """Through each candidate's activities, whose memory the gradients take."""
        (gradients,) = activities
        for h, g in zip(gradients, upstream.unbind(1), strict=True):
            layer.through_goodness_(goodness, h, g)
        if pull is not None:
            gradients[0] += pull
        return self.collect(gradients, candidates, embedding=embedding)

    @abstractmethod
    def collect(self, gradients: Tensor, candidates: Tensor, *, embedding: bool) -> tuple[Tensor, Tensor | None]:
        """What `differentiate` gives, from the gradients (1 + K, n, num_units)."""


class ReadingOfRows(ReadingOfShown):
    """Each candidate is a row of its own."""

    uses_embedding = False

    def __init__(self, num_sweep_rows: int) -> None:
        self._num_sweep_rows = num_sweep_rows

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
        if num_samples == 0:  # a reshape cannot tell the number of rows per sample
            return found.view(0, self._num_sweep_rows)
        by_sample: Tensor = found.unflatten(0, (num_samples, -1))
        return by_sample


def label_embedding_of(layer: Layer) -> Tensor:
    """The layer's row for every label, (num_classes, num_units). Raises ConfigError if it has none.

    Without a graph where the layer has a workspace: what makes gradients there is written out.
    """
    if layer.label_embedding is None:
        raise ConfigError(
            f"this label method needs a layer with a label embedding, found {type(layer).__name__} without"
        )
    return layer.label_embedding if layer.workspace is None else layer.label_embedding.detach()
