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

    uses_embedding: bool  # whether every layer has a label embedding, as a parameter
    adds_embedding: bool = False  # whether it is added to preactivations: its gradients then sum to that of the bias
    reads_summary: bool = False  # whether it reads what a layer summarises, as a local classifier does
    num_groups: int = 1  # groups of units, each with a goodness of its own

    def count_embedded(self, layer: Layer) -> int:
        """How many numbers a label has in the layer's label embedding, if there is one."""
        return layer.width

    def make_plain(self, layer: Layer) -> None:  # noqa: B027 - most have no module that multiplies by an embedding
        """Hand the label embedding of a loaded layer over to a module of torch's own, if it is the weight of one."""

    @abstractmethod
    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """The tensors from which goodness is measured; the first holds the activities, (1 + K, n, num_units).

        The positive's activities come first. Where a layer is not shown the candidates, all of them share activities of
        shape (1, n, num_units). May reuse the memory of `preactivations`.
        """

    @abstractmethod
    def measure(self, layer: Layer, goodness: Goodness, activities: list[Tensor], candidates: Tensor) -> Tensor:
        """Goodness of each candidate, (n, 1 + K), from what `activities` returned."""

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
        parameters: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """dL/dpreactivations, and the gradients of parameters that goodness reads, by name, if `parameters` is true.

        These are the label embedding, and what a layer's local head has; each gradient is that of a whole parameter.
        `upstream` is dL/dgoodness, (n, 1 + K). `pull`, (num_units,), is added to the gradient through every sample's
        first activities. May reuse the memory of `activities`, which `measure` has read.
        """

    @abstractmethod
    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Goodness of all labels, (n, num_classes), from the preactivations of n samples' sweep rows.

        From training rows, it is the goodness of all values that a candidate may take, (n, num_values). If the layer
        has a workspace, `preactivations` may be overwritten by their activities, unless an informed sampler chooses
        among candidates that share a row: the step then uses them again. Without a workspace, nothing is written in
        place: gradients flow to all parameters, and a compiler can trace the code for any n.
        """


class ReadingOfShown(Reading):
    """A layer is shown each candidate and has activities for each, in one tensor (1 + K, n, num_units)."""

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
        parameters: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Differentiate through each candidate's activities, which the gradients overwrite."""
        (gradients,) = activities
        for h, g in zip(gradients, upstream.unbind(1), strict=True):
            layer.through_goodness_(goodness, h, g)
        if pull is not None:
            gradients[0] += pull
        return self.collect(layer, gradients, candidates, parameters=parameters)

    @abstractmethod
    def collect(
        self, layer: Layer, gradients: Tensor, candidates: Tensor, *, parameters: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What `differentiate` returns, from the gradients (1 + K, n, num_units) of the candidates."""


class ReadingOfRows(ReadingOfShown):
    """Each candidate is a separate row."""

    uses_embedding = False

    def __init__(self, num_sweep_rows: int) -> None:
        self._num_sweep_rows = num_sweep_rows

    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """The activities, computed in place and split by candidate."""
        return [layer.activate_(preactivations).unflatten(0, (candidates.shape[1], -1))]

    def collect(
        self, layer: Layer, gradients: Tensor, candidates: Tensor, *, parameters: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradients in the order of the rows, ((1 + K) n, num_units); there is no embedding."""
        return gradients.flatten(0, 1), {}

    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """The goodness of every row, (n, rows per sample), in the order of a sample's rows."""
        activities = layer.activate(preactivations) if layer.workspace is None else layer.activate_(preactivations)
        found = goodness.value(activities)
        if num_samples == 0:  # unflatten cannot infer the number of rows per sample
            return found.view(0, self._num_sweep_rows)
        by_sample: Tensor = found.unflatten(0, (num_samples, -1))
        return by_sample


def label_embedding_of(layer: Layer) -> Tensor:
    """The layer's label embedding, (num_classes, `count_embedded`). Raises ConfigError if it has none.

    It is detached if the layer has a workspace, as its gradient is then computed without autograd.
    """
    if layer.label_embedding is None:
        raise ConfigError(
            f"this label method needs a layer with a label embedding, found {type(layer).__name__} without"
        )
    return layer.label_embedding if layer.workspace is None else layer.label_embedding.detach()
