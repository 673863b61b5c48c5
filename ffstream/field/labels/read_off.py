"""Labels at a layer's output only: one label-free pass gives every label's goodness, and no negatives are drawn."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ffstream.data.shape import DataShape
from ffstream.device.workspace import ACTIVITIES, Buffer, Workspace
from ffstream.errors import ConfigError
from ffstream.field.goodness import GOODNESSES, Goodness, LinearGoodness
from ffstream.field.labels.candidates import AllLabels
from ffstream.field.labels.method import LabelMethod
from ffstream.field.labels.reading import Reading, label_embedding_of
from ffstream.field.labels.rows import LabelFreeRows
from ffstream.field.layers import LAYER_KINDS, Layer
from ffstream.field.layers.plain import as_linear
from ffstream.field.network import compute_layer_specs, read_lines
from ffstream.settings.config import Config

_EMBEDDING_GRADIENT = Buffer("embedding gradient", "gradient")


def make_groups(config: Config, data: DataShape) -> LabelMethod:
    """Unit u belongs to class u mod C; the goodness of a label is that of its units (CwComp, Papachristodoulou 2024).

    Raises ConfigError for fewer units than classes, or for channels that the number of classes does not divide.
    """
    num_classes, lines = data.num_classes, list(dict.fromkeys(read_lines(config)))
    if any(num_classes > line.width for line in lines):
        for spec in compute_layer_specs(config, data.num_features, data.image_shape, num_classes):
            num_places = 1 if LAYER_KINDS[spec.kind].has_places else spec.units.num_places
            least = -(-num_classes // num_places)
            if spec.width < least:
                raise ConfigError(
                    f"config width: found {spec.width}, allowed {least} or more with labels.method=groups, which gives "
                    "units to each class"
                )
    for line in lines:
        if LAYER_KINDS[line.kind].has_places and line.width % num_classes:
            nearest = max(line.width // num_classes, 1) * num_classes
            raise ConfigError(
                f"config width: found {line.width}, allowed a multiple of {num_classes} with labels.method=groups and "
                f"layers of kind {line.kind}, such as {nearest}: each class has as many channels as the others"
            )
    return LabelMethod(LabelFreeRows(), AllLabels(data.num_classes), _ReadingOfGroups(data.num_classes))


def make_classifier(config: Config, data: DataShape) -> LabelMethod:
    """The goodness of label c is a product of the activities and M[c], learnt with the layer (Mono-Forward, Gong 2025).

    This is a local classifier, as in Nokland and Eidnes 2019 (prediction loss). Raises ConfigError for a goodness that
    is neither a sum nor a mean of activities.
    """
    if not isinstance(GOODNESSES.of(config), LinearGoodness):
        raise ConfigError(
            f"config objective.goodness: found {config.objective.goodness!r}, allowed mean or sum with "
            "labels.method=classifier, whose goodness is a product of activities and learnt weights"
        )
    return LabelMethod(LabelFreeRows(), AllLabels(data.num_classes), _ReadingByClassifier())


class _ReadingOfAll(Reading):
    """The candidates of a sample share one set of activities, from which the goodness of all labels is read at once."""

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
        *,
        parameters: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Differentiate through the activities that all candidates share."""
        by_label = torch.empty_like(upstream).scatter_(1, candidates, upstream)  # candidates hold each label once
        found = {}
        if parameters and self.uses_embedding:
            embedding_gradient = self._differentiate_embedding(layer, goodness, activities, by_label, workspace)
            found["label_embedding"] = embedding_gradient
        gradient, others = self._differentiate(layer, goodness, activities, by_label, workspace)
        if parameters:
            found |= others
        if pull is not None:
            gradient += pull
        return gradient, found

    def sweep(self, layer: Layer, goodness: Goodness, preactivations: Tensor, num_samples: int) -> Tensor:
        """Every label's goodness from one matrix product."""
        room = layer.workspace
        activities = layer.activate(preactivations) if room is None else layer.activate_(preactivations)
        return self._read(layer, goodness, self._split(layer, activities, room, keep=False))

    def activities(
        self, layer: Layer, preactivations: Tensor, candidates: Tensor, workspace: Workspace
    ) -> list[Tensor]:
        """The activities, computed in place, and any further tensors from which goodness is read."""
        return self._split(layer, layer.activate_(preactivations), workspace, keep=True)

    @abstractmethod
    def _split(self, layer: Layer, activities: Tensor, workspace: Workspace | None, *, keep: bool) -> list[Tensor]:
        """The activities (n, num_units) as (1, n, num_units), and any further tensors from which goodness is read.

        To `keep`, those that `_differentiate` needs follow. Without a workspace, new memory is allocated.
        """

    @abstractmethod
    def _read(self, layer: Layer, goodness: Goodness, activities: list[Tensor]) -> Tensor:
        """Goodness of every label, (n, num_classes), from what `_split` returned."""

    @abstractmethod
    def _differentiate(
        self, layer: Layer, goodness: Goodness, activities: list[Tensor], upstream: Tensor, workspace: Workspace
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """dL/dpreactivations, from dL/dgoodness of every label (n, num_classes), and gradients of a local head."""

    def _differentiate_embedding(
        self, layer: Layer, goodness: Goodness, activities: list[Tensor], upstream: Tensor, workspace: Workspace
    ) -> Tensor:
        """The gradient of the label embedding, (num_classes, num_units), if there is one, from the same arguments."""
        raise NotImplementedError


class _ReadingOfGroups(_ReadingOfAll):
    """The goodness of a label is that of the units of its group.

    Groups differ by at most one unit. A mean divides by num_units / C in every group, so that tiles add up to the
    layer; every tile holds its share of each group.
    """

    uses_embedding = False

    def __init__(self, num_classes: int) -> None:
        self.num_groups = num_classes

    def _split(self, layer: Layer, activities: Tensor, workspace: Workspace | None, *, keep: bool) -> list[Tensor]:
        """The activities, then a copy of those in groups with one unit more, and a copy of those in the other groups.

        The copies are (n, groups, units), as a goodness reads the units of a group side by side.
        """
        found = [activities.unsqueeze(0)]
        if workspace is None:
            parts = (torch.cat(rows, dim=1).transpose(1, 2) for _, rows in self._pieces(activities))
            return found + [part.contiguous() for part in parts]
        room = workspace.take(ACTIVITIES, (activities.numel(),), activities.dtype)
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
            goodness.value(part.flatten(0, 1)).unflatten(0, part.shape[:2]) * self._weight(layer, goodness, part)
            for part in activities[1:]
        ]
        missing = self.num_groups - sum(part.shape[1] for part in parts)  # if a tile has fewer units than classes
        if missing:
            parts.append(parts[0].new_zeros(len(parts[0]), missing))
        return torch.cat(parts, dim=1).roll(layer.first_unit, dims=1)

    def _differentiate(
        self, layer: Layer, goodness: Goodness, activities: list[Tensor], upstream: Tensor, workspace: Workspace
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """dL/dpreactivations, which overwrites the activities."""
        gradient, parts = activities[0][0], activities[1:]
        by_group = upstream.roll(-layer.first_unit, dims=1)
        for (groups, rows), part in zip(self._pieces(gradient), parts, strict=True):
            of_part = (by_group[:, groups] * self._weight(layer, goodness, part)).flatten()
            found = layer.through_goodness_(goodness, part.flatten(0, 1), of_part).view(part.shape)
            for piece, place in _aligned(rows, found):
                piece.copy_(place)
        return gradient, {}

    def _pieces(self, activities: Tensor) -> list[tuple[slice, list[Tensor]]]:
        """Ranges of groups with equally many units, each with the views (n, units, groups) that hold these units.

        The group of the tile's first unit counts as the first. Groups without units are left out.
        """
        num_units, num_groups = int(activities.shape[1]), self.num_groups  # a size is a tensor while torch.jit traces
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
        """The factor for the value of a group: a mean divides by the average number of units in a group."""
        return goodness.weight(part.shape[2] * self.num_groups, layer.num_units)


class _ReadingByClassifier(_ReadingOfAll):
    """M is the layer's label embedding; the goodness of label c is a sum or a mean of s * M[c].

    Here s is the layer's summary of its activities: those of a dense layer themselves.
    """

    uses_embedding = reads_summary = True

    def count_embedded(self, layer: Layer) -> int:
        """A number for each feature of a layer's summary."""
        return layer.num_summarised

    def make_plain(self, layer: Layer) -> None:
        """M is the weight of `label_classifier`, an `nn.Linear` without a bias."""
        layer.label_classifier = as_linear(label_embedding_of(layer))
        layer.label_embedding = None

    def _split(self, layer: Layer, activities: Tensor, workspace: Workspace | None, *, keep: bool) -> list[Tensor]:
        return [activities.unsqueeze(0), *layer.summarise(activities, keep=keep)]

    def _read(self, layer: Layer, goodness: Goodness, activities: list[Tensor]) -> Tensor:
        if layer.label_classifier is not None:
            read: Tensor = layer.label_classifier(activities[1])
            return read * _factor(layer, goodness)
        return (activities[1] @ label_embedding_of(layer).t()).mul_(_factor(layer, goodness))

    def _differentiate(
        self, layer: Layer, goodness: Goodness, activities: list[Tensor], upstream: Tensor, workspace: Workspace
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """dz = (g M) through the activation, where g is the gradient of the products; dz overwrites the activities."""
        (activity,), summary, *kept = activities
        back = workspace.take(ACTIVITIES, tuple(summary.shape), summary.dtype)
        torch.mm(upstream * _factor(layer, goodness), label_embedding_of(layer), out=back)
        return layer.through_summary_(activity, back, kept)

    def _differentiate_embedding(
        self, layer: Layer, goodness: Goodness, activities: list[Tensor], upstream: Tensor, workspace: Workspace
    ) -> Tensor:
        """dM = g^T s, where s is the summary."""
        shape = (upstream.shape[1], layer.num_summarised)
        room = workspace.take(_EMBEDDING_GRADIENT, shape, upstream.dtype)
        return torch.mm((upstream * _factor(layer, goodness)).t(), activities[1], out=room)


def _aligned(rows: list[Tensor], part: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair each piece (n, units, groups) with the view of its units in `part`, (n, groups, units of all pieces)."""
    places = part.transpose(1, 2).split([piece.shape[1] for piece in rows], dim=1)
    return zip(rows, places, strict=True)


def _factor(layer: Layer, goodness: Goodness) -> float:
    assert isinstance(goodness, LinearGoodness), "`make_classifier` sees to it"
    return goodness.factor(layer.num_summarised)
