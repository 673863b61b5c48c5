"""Where a split lies on the line between what training means as it is given, and what it means in another order. Pure.

A point is the mean images of all classes, side by side. Training is one point. Training in another order, with its
pictures mirrored for example, or its classes renumbered, is a second, and the held-out split is a third. On the line
from the first to the second, the split lies at 0 if it means what training means, and at 1 if it has the other order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ffstream.data.mean_images import MeanImages

_NUM_POOLED = 16  # classes, at least, whose errors are compared along one direction
_FEW = 4  # people, or places, of which the images of a class are expected to come at least
_NEAR = 0.25  # place on the line, before the noise of training is subtracted, up to which no more is computed


@dataclass(frozen=True)
class Other:
    """Training in another order: its name, and its mean images (classes, features), around their mean."""

    name: str
    means: Tensor
    find_errors: Callable[[], Tensor]  # of the means, (classes, parts, features), where they are asked for


@dataclass(frozen=True)
class Position:
    """The place of a split on the line from training to another order of it."""

    other: Other
    place: float  # 0 is training, 1 the other order
    error: float  # the standard error of the place
    misfit: float  # the squared distance from the other order
    fits: bool  # whether that is small beside how far the classes of training are apart


@dataclass(frozen=True)
class Pair:
    """The mean images of training and of a split, for the classes that have enough images in both.

    Classes weigh as many images as they have. All means are around the mean of their split, as only the differences
    between the classes are compared: a split may be brighter as a whole.
    """

    mine: Tensor  # (classes, features), of the split
    theirs: Tensor  # the same, of training
    errors: Tensor  # (2, classes, parts, features), of the split and of training, as of a single image
    per_image: Tensor  # (classes,) by which squared errors of a single image become those of mine - theirs
    counts: Tensor  # (2, classes) images

    @classmethod
    def of(cls, split: MeanImages, training: MeanImages, known: Tensor) -> Pair:
        """Compare the classes `known` (n,)."""
        both = split, training
        counts = torch.stack([each.counts[known] for each in both])
        errors = torch.stack([each.errors[known] for each in both]) * counts.sqrt()[:, :, None, None]
        per_image = (1 / counts).sum(dim=0)
        weights = 1 / per_image / (1 / per_image).sum()
        mine, theirs = (each.means[known] - weights @ each.means[known] for each in both)
        return cls(mine, theirs, errors, per_image, counts)

    @cached_property
    def weights(self) -> Tensor:
        """Of the classes, (classes,); their sum is 1."""
        inverse = 1 / self.per_image
        return inverse / inverse.sum()

    @cached_property
    def their_errors(self) -> Tensor:
        """Those of training, (classes, parts, features)."""
        return self.errors[1] / self.counts[1].sqrt()[:, None, None]

    def multiply(self, one: Tensor, other: Tensor) -> float:
        """The product of two points (classes, features)."""
        return float(self.weights @ (one * other).sum(dim=1))

    def multiply_errors(self, one: Tensor, other: Tensor) -> float:
        """What the errors of two points (classes, parts, features) add to their product."""
        return float(self.weights @ torch.einsum("cpf,cpf->c", one, other))

    def centre(self, means: Tensor) -> Tensor:
        """Means (classes, features) around their mean."""
        return means - self.weights @ means

    def error_along(self, direction: Tensor) -> float:
        """The standard error of the product of mine - theirs with a direction (classes, features).

        Of a class, it is known from few parts alone. So it is taken to be no less than that of other classes would be
        in the same direction. The errors of one image are taken from the split in which they are larger, as a split may
        consist of few people.
        """
        step = max(len(direction) // _NUM_POOLED, 1)
        own = torch.einsum("scpf,cf->scp", self.errors, direction).square().sum(dim=2)
        pooled = (self.errors[:, ::step] @ direction.T).square().sum(dim=2).mean(dim=1)
        return math.sqrt(float((torch.maximum(own, pooled) @ (self.weights.square() * self.per_image)).max()))

    @cached_property
    def expected_distance(self) -> float:
        """The squared distance of mine from theirs that their errors let expect."""
        own = torch.einsum("scpf,scpf->sc", self.errors, self.errors)
        return float((own @ (self.weights * (1 - self.weights) * self.per_image)).max())

    def find_excess(self, squared_distance: float) -> float:
        """How many times the expected squared distance is exceeded; at least 1.

        People, places or days differ in all directions, and images in no order hide how few they come from. If mine are
        far from where they are expected also where it is not along the line, they may be far along the line by chance.
        But chance goes no farther than if a class were _FEW images.
        """
        expected = self.expected_distance
        if not expected:
            return 1.0
        shares = self.weights * (1 - self.weights)
        most = float(shares.sum() / _FEW / (shares * self.per_image).sum())
        return max(min(squared_distance / expected, most), 1.0)

    def find_position(self, other: Other, least: float) -> Position | None:
        """Where mine lie on the line from theirs to another order of theirs; None if that is nearer than `least`.

        The noise of training moves both ends of the line, and makes it longer.
        """
        line, apart = other.means - self.theirs, self.mine - self.theirs
        length, along = self.multiply(line, line), self.multiply(apart, line)
        if along <= _NEAR * length or not length:
            return None
        own = self.their_errors
        noise = other.find_errors() - own
        real_length = length - self.multiply_errors(noise, noise)
        place = (along + self.multiply_errors(own, noise)) / real_length if real_length > 0 else 0.0
        if place < least:
            return None
        excess = self.find_excess(self.multiply(apart, apart) - along**2 / length)
        error = self.error_along(line) * math.sqrt(excess) / real_length
        misfit = self.distance(self.mine, other.means)
        fits = misfit - self.expected_distance <= self.multiply(self.theirs, self.theirs) / 2
        return Position(other, place, error, misfit, fits)

    def distance(self, one: Tensor, other: Tensor) -> float:
        """The squared distance of two points (classes, features)."""
        return self.multiply(one - other, one - other)
