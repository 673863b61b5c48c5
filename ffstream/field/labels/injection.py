"""Label injection: every layer adds a learnt vector of the label to its preactivations."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.shape import DataShape
from ffstream.device.row_sums import sum_by_label
from ffstream.device.workspace import ACTIVITIES, Workspace
from ffstream.field.goodness import Goodness
from ffstream.field.labels.candidates import DrawnLabels
from ffstream.field.labels.method import LabelMethod
from ffstream.field.labels.reading import ReadingOfShown, label_embedding_of
from ffstream.field.labels.rows import LabelFreeRows
from ffstream.field.layers import Layer
from ffstream.settings.config import Config


def make_injection(config: Config, data: DataShape) -> LabelMethod:
    """h = relu(W x + b + U[label]) at every layer: one label-free row per sample; candidates are labels.

    Raises ConfigError for more negatives than there are wrong labels.
    """
    return LabelMethod(LabelFreeRows(), DrawnLabels(data.num_classes, config), _ReadingOfInjected(data.num_classes))


class _ReadingOfInjected(ReadingOfShown):
    """Each candidate's vector is added to the preactivations that all candidates of a sample share."""

    uses_embedding = adds_embedding = True

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes

    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """The activities of z + U[label] for each candidate label."""
        embedding = layer.spread(label_embedding_of(layer))
        shape = (candidates.shape[1], *preactivations.shape)
        activities = workspace.take(ACTIVITIES, shape, embedding.dtype)
        for activity, column in zip(activities, candidates.unbind(1), strict=True):
            layer.activate_(torch.index_select(embedding, 0, column, out=activity).add_(preactivations))
        return [activities]

    def collect(
        self, layer: Layer, gradients: Tensor, candidates: Tensor, *, parameters: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """dz is the sum over candidates; dU[c] is the sum over the samples that have candidate c."""
        found = {}
        if parameters:
            found["label_embedding"] = sum_by_label(layer.collect(gradients), candidates, self._num_classes)
        total, *rest = gradients
        for gradient in rest:
            total.add_(gradient)
        return total, found

    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Every label's goodness from one matrix product: z + U[c] for every c."""
        embedding = layer.spread(label_embedding_of(layer))
        if layer.workspace is None:
            return torch.stack([goodness.value(layer.activate(preactivations + u)) for u in embedding.unbind()], dim=1)
        room = layer.workspace.take(ACTIVITIES, tuple(preactivations.shape), preactivations.dtype)
        activities = (layer.activate_(torch.add(preactivations, u, out=room)) for u in embedding)
        return torch.stack([goodness.value(h) for h in activities], dim=1)
