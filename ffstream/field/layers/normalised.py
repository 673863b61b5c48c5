"""How layers normalise what they hand on: parts that are the same for all kinds, and the layers that have one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ffstream.device.workspace import Workspace
from ffstream.errors import ConfigError
from ffstream.field.layers.base import Layer
from ffstream.field.layers.shape import Activations, LayerShape
from ffstream.field.normalisation import length_normalise, length_normalise_

LENGTH, SAMPLES, CHANNELS, GROUPS = NORMALISATIONS = ("length", "samples", "channels", "groups")

_LEAST_SPREAD = 1e-5  # added to a spread that is divided by
_LEAST_SHARE = 0.1  # of the mean spread of a layer's units: what is handed on of one that is hardly ever active


class Normalisation(ABC):
    """Makes rows (n, features) of activities, which may be pooled, into those that a layer hands on."""

    num_known: int | None = None  # numbers that have a mean and a spread over the training samples, if any

    @abstractmethod
    def apply(self, rows: Tensor, mean: Tensor | None, spread: Tensor | None, room: Workspace | None) -> Tensor:
        """(n, features) to the same; with a workspace, the rows may be overwritten.

        `mean` and `spread` (num_known,) are those that `settle` found.
        """


class Length(Normalisation):
    """Each sample divided by its root mean square, which is not centred (Hinton 2022, section 2)."""

    def apply(self, rows: Tensor, mean: Tensor | None, spread: Tensor | None, room: Workspace | None) -> Tensor:
        """Rows of unit length."""
        if room is not None and rows.dtype == torch.float32:
            return length_normalise_(rows, room)
        return length_normalise(_widen(rows)).to(rows.dtype)


class BySample(Normalisation):
    """Each sample, or each group of a sample's units, with a mean of 0 and a spread of 1.

    With one group, this is a layer norm (Ba et al. 2016) without weights; with a group for each class, it is the group
    norm of DeeperForward (Sun et al. 2025), after which no class is louder than another, so that what is handed on does
    not tell the next layer which class won. Unit u is of group u mod `num_groups`.
    """

    def __init__(self, num_groups: int = 1) -> None:
        self._num_groups = num_groups

    def apply(self, rows: Tensor, mean: Tensor | None, spread: Tensor | None, room: Workspace | None) -> Tensor:
        """Rows whose groups are centred and have a spread of 1, or are zero where all units of a group are equal."""
        wide = _widen(rows)
        grouped = wide.unflatten(1, (-1, self._num_groups)) if self._num_groups > 1 else wide
        if grouped.requires_grad:  # a spread of zero has no derivative, and nothing flows into what has no direction
            grouped = torch.where((grouped != grouped[:, :1]).any(dim=1, keepdim=True), grouped, grouped.detach())
        own_spread, own_mean = torch.std_mean(grouped, dim=1, correction=0, keepdim=True)
        made = (grouped - own_mean) / (own_spread + _LEAST_SPREAD)
        return (made.flatten(1) if self._num_groups > 1 else made).to(rows.dtype)


class ByChannel(Normalisation):
    """Each channel with a mean of 0 and a spread of 1 over all places of all training samples."""

    num_known: int
    _added = _LEAST_SPREAD

    def __init__(self, num_channels: int) -> None:
        self.num_known = num_channels

    def apply(self, rows: Tensor, mean: Tensor | None, spread: Tensor | None, room: Workspace | None) -> Tensor:
        """Rows in the type of the statistics, with all channels of a place side by side."""
        assert mean is not None, "a layer has them where there are `num_known` numbers"
        assert spread is not None
        places: Tensor = rows.unflatten(1, (-1, self.num_known)).to(mean.dtype)
        if room is None:
            return ((places - mean) / (spread + self._added)).flatten(1)
        return places.sub_(mean).div_(spread + self._added).flatten(1)

    def count(self, rows: Tensor) -> Tensor:
        """Number, sum and sum of squares by channel, (3, num_known), of rows (n, features)."""
        wide = _widen(rows.view(-1, self.num_known))
        return torch.stack([wide.new_full((self.num_known,), len(wide)), wide.sum(dim=0), self._sum_squares(wide)])

    def _sum_squares(self, wide: Tensor) -> Tensor:
        return wide.square().sum(dim=0)

    def find_spread(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread by channel, from sums (3, num_known) over all training samples, in float64."""
        number, total, squares = counts.double()
        mean = total / number
        return mean, (squares / number - mean.square()).clamp(min=0).sqrt()


class ByUnit(ByChannel):
    """Each unit with a mean of 0 and a spread of 1 over the training samples.

    One that is hardly ever active keeps a smaller spread, as noise would be made loud.
    """

    _added = 0.0

    def _sum_squares(self, wide: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(wide, dim=0)  # writes no squared copy of them
        return lengths.square()

    def find_spread(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The same by unit; a spread is at least a tenth of their mean."""
        mean, spread = super().find_spread(counts)
        return mean, spread.clamp(min=float(spread.mean()) * _LEAST_SHARE or 1.0)


class NormalisedLayer(Layer):
    """A layer whose kind has an option that says how what it hands on is normalised.

    A subclass says which by `name_normalisation`. Where this needs statistics of the training samples, they are the
    buffers `handed_mean` and `handed_spread`, fixed by one more pass when the layer is trained.
    """

    handed_mean: Tensor  # (num_known,) of the activities that are handed on, before they are normalised
    handed_spread: Tensor
    shares_weights: ClassVar[bool] = False  # whether all places of a channel have one mean and one spread

    def __init__(self, shape: LayerShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shape, compute_dtype)
        self.normalisation = self._make_normalisation(shape)
        if self.normalisation.num_known is not None:
            zeros = torch.zeros(self.normalisation.num_known, dtype=torch.float32)
            self.register_buffer("handed_mean", zeros)
            self.register_buffer("handed_spread", torch.ones_like(zeros))

    @classmethod
    @abstractmethod
    def name_normalisation(cls, shape: LayerShape) -> str:
        """One of `NORMALISATIONS`."""

    @classmethod
    def hands_on_by_unit(cls, shape: LayerShape) -> bool:
        """Whether each channel, or unit, is standardised by its own statistics."""
        return cls.name_normalisation(shape) == CHANNELS

    @classmethod
    def _make_normalisation(cls, shape: LayerShape) -> Normalisation:
        name, handed_on = cls.name_normalisation(shape), cls.handed_on_by(shape)
        if name == LENGTH:
            return Length()
        if name == CHANNELS:
            return ByChannel(handed_on.num_channels) if cls.shares_weights else ByUnit(handed_on.num_features)
        return BySample(shape.num_groups if name == GROUPS else 1)

    def collect_handed(self, preactivations: Tensor) -> Tensor:
        """The activities (n, features) of what is handed on, which a kind may pool, before they are normalised.

        If the layer has a workspace, `preactivations` is overwritten.
        """
        return self.activate(preactivations) if self.workspace is None else self.activate_(preactivations)

    def hand_on(self, preactivations: Tensor) -> Tensor:
        """The normalised activities of what is handed on."""
        mean, spread = (self.handed_mean, self.handed_spread) if self.has_statistics else (None, None)
        return self.normalisation.apply(self.collect_handed(preactivations), mean, spread, self.workspace)

    @property
    def has_statistics(self) -> bool:
        """Whether what is handed on is standardised by statistics of the training samples."""
        return self.normalisation.num_known is not None

    def statistics_of(self, preactivations: Tensor) -> Tensor:
        """Number, sum and sum of squares of what is handed on before it is normalised, (3, num_known)."""
        assert isinstance(self.normalisation, ByChannel), "only these have statistics"
        return self.normalisation.count(self.collect_handed(preactivations))

    def settle(self, statistics: Tensor) -> None:
        """Take means and spreads from statistics that were summed over all training samples, in float64."""
        assert isinstance(self.normalisation, ByChannel), "only these have statistics"
        mean, spread = self.normalisation.find_spread(statistics)
        self.handed_mean.copy_(mean)
        self.handed_spread.copy_(spread)


def check_normalisation(kind: str, name: str, shape: LayerShape, handed_on: Activations) -> Activations:
    """What is handed on, if it can be normalised so. Raises ConfigError for groups where there are none."""
    if name != GROUPS:
        return handed_on
    if shape.num_groups == 1:
        raise ConfigError(
            f"config network: a {kind} layer has normalise=groups, allowed with labels.method=groups only, which gives "
            f"each class units of its own; use {_list_others()}"
        )
    if handed_on.num_features % shape.num_groups:
        nearest = max(shape.width // shape.num_groups, 1) * shape.num_groups
        raise ConfigError(
            f"config width: found {shape.width}, allowed a multiple of {shape.num_groups} in a {kind} layer with "
            f"normalise=groups, such as {nearest}: each class has as many units as the others"
        )
    return handed_on


def _list_others() -> str:
    *most, last = (f"normalise={name}" for name in NORMALISATIONS if name != GROUPS)
    return f"{', '.join(most)} or {last}"


def _widen(rows: Tensor) -> Tensor:
    """Rows in float32, or in a wider type if they have it."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
