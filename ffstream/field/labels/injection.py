"""Label injection: every layer is told the label by a vector of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ffstream.data.shape import DataShape
from ffstream.device.row_sums import sum_by_label
from ffstream.device.workspace import ACTIVITIES, Workspace
from ffstream.field.goodness import Goodness
from ffstream.field.labels.base import LabelFreeRows, ShownLabels, label_embedding_of, read_num_negatives
from ffstream.field.layers import Layer
from ffstream.field.negatives import NEGATIVE_SAMPLERS, InformedSampler, NegativeSampler
from ffstream.settings.config import Config


class LabelInjection(ShownLabels, LabelFreeRows):
    """h = relu(W x + b + U[label]) at every layer: one label-free row a sample, candidates are labels."""

    uses_embedding = adds_embedding = True

    def __init__(self, num_classes: int, sampler: NegativeSampler, num_negatives: int) -> None:
        self._num_classes = num_classes
        self._sampler = sampler
        self.informed = sampler if isinstance(sampler, InformedSampler) else None
        self._num_negatives = num_negatives
        self.num_candidates = 1 + num_negatives
        self.num_values = num_classes

    @classmethod
    def make(cls, config: Config, data: DataShape) -> LabelInjection:
        """With the negatives of a configuration. Raises ConfigError for more of them than there are wrong labels."""
        sampler = NEGATIVE_SAMPLERS[config.negatives.sampler]
        return cls(data.num_classes, sampler, read_num_negatives(config, data.num_classes))

    def draw_candidates(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Labels, the true one first: (n, 1 + K)."""
        wrong = self._sampler(labels, self._num_classes, self._num_negatives, generator)
        return torch.cat([labels.unsqueeze(1), wrong], dim=1)

    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """The activities of z + U[label] for each candidate label."""
        embedding = label_embedding_of(layer)
        shape = (candidates.shape[1], *preactivations.shape)
        activities = workspace.take(ACTIVITIES, shape, embedding.dtype)
        for activity, column in zip(activities, candidates.unbind(1), strict=True):
            layer.activate_(torch.index_select(embedding, 0, column, out=activity).add_(preactivations))
        return [activities]

    def collect(self, gradients: Tensor, candidates: Tensor, *, embedding: bool) -> tuple[Tensor, Tensor | None]:
        """dz is the sum over candidates; dU[c] the sum over the samples with candidate c."""
        embedding_gradient = sum_by_label(gradients, candidates, self._num_classes) if embedding else None
        total, *rest = gradients
        for gradient in rest:
            total.add_(gradient)
        return total, embedding_gradient

    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Every label's goodness from one matrix product: z + U[c] for every c."""
        embedding = label_embedding_of(layer)
        if layer.workspace is None:
            return torch.stack([goodness.value(layer.activate(preactivations + u)) for u in embedding.unbind()], dim=1)
        room = layer.workspace.take(ACTIVITIES, tuple(preactivations.shape), preactivations.dtype)
        activities = (layer.activate_(torch.add(preactivations, u, out=room)) for u in embedding)
        return torch.stack([goodness.value(h) for h in activities], dim=1)
