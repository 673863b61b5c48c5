"""What a run knows of its data when these are absent: the content of RUN/data.json, also part of exported networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ffstream.data.colours import WHITE
from ffstream.data.dataset import Dataset, Split
from ffstream.data.features import find_beyond, find_mixed, find_shifted_rows, measure_ranges, measure_rows
from ffstream.data.image_access import Images
from ffstream.data.mixtures import Mixtures
from ffstream.data.new_values import TrainedValues
from ffstream.data.repetition import Repetition, digest_images, find_repeats
from ffstream.data.sample import draw_sample
from ffstream.data.scaling import CHANNELS, FEATURES, NONE, Scaling, find_parts, parts_of
from ffstream.data.shape import DataShape
from ffstream.data.values import ENOUGH_IMAGES, Values, find_other_units

_MOST_VALUES = 1 << 21  # values of images that are checked for their units
_MOST_CLASSES, _FEW_IMAGES = 20, 10  # classes that are measured singly, and the images that each needs
_MOST_SINGLE = 200  # images that are measured singly


@dataclass(frozen=True)
class DataFacts:
    """Facts of a data set by name. `content` is what a manifest holds of them, and is kept unchanged.

    The digest of the content identifies the run, so a run of an earlier version keeps what that version wrote.
    """

    content: Mapping[str, Any]

    @classmethod
    def of(cls, dataset: Dataset, train: Split, standardise: str) -> DataFacts:
        """Collect the facts of a data set, of which `train` is the split that a network is trained on."""
        values = dataset.values
        white = dataset.white
        if white is None:
            is_in_bytes = WHITE / 2 < values.largest <= WHITE and values.low >= 0
            white = WHITE if is_in_bytes else dataset.scale()
        scaling = Scaling.of(train.images, dataset.scale(), standardise)
        of_classes = {} if standardise == NONE else _describe_classes(train, scaling, standardise)
        mixtures = Mixtures.of(train.images, train.labels)
        trained = TrainedValues.of(train.images)
        has_test_digest = dataset.test is not None and hasattr(dataset, "test_digest")
        return cls(
            {
                "name": dataset.name,
                "digest": dataset.digest(),
                **({"test_digest": dataset.test_digest()} if has_test_digest else {}),
                "num_classes": dataset.num_classes,
                "class_names": list(dataset.class_names),
                "image_shape": list(dataset.image_shape),
                "num_features": dataset.num_features,
                **scaling.to_mapping(standardise, dataset.image_shape),
                **of_classes,
                **({"standardised_ranges": measure_ranges(train.images)} if standardise == FEATURES else {}),
                "brings_negatives": dataset.train.negatives is not None,
                "values": values.to_mapping(),
                "repetition": dataset.repetition.to_mapping(),
                **({} if mixtures is None else {"mixtures": mixtures.to_mapping()}),
                **({} if trained is None else {"feature_values": trained.to_mapping()}),
                "white": float(white),
            }
        )

    @property
    def digest(self) -> str:
        """The digest of the training data."""
        return str(self.content["digest"])

    @property
    def is_stream(self) -> bool:
        """Whether these are facts of the first window of a stream, which has no data set."""
        return bool(self.content.get("is_stream", False))

    @property
    def test_digest(self) -> str | None:
        """The digest of the test data; None where there were none, and in runs of earlier versions."""
        return self.content.get("test_digest")

    @property
    def validation_labels_digest(self) -> str | None:
        """The digest of the file of validation labels; None where the run keeps none."""
        return self.content.get("validation_labels_digest")

    @property
    def num_features(self) -> int:
        """The number of features of an image."""
        return int(self.content["num_features"])

    @property
    def num_classes(self) -> int:
        """The number of labels that a sample may have."""
        return int(self.content["num_classes"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""
        return tuple(self.content["class_names"])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return tuple(self.content["image_shape"])

    @property
    def scale(self) -> float:
        """The largest magnitude of the training images."""
        return float(self.content["scale"])

    @cached_property
    def scaling(self) -> Scaling:
        """The scaling of images to values of about 1."""
        return Scaling.from_mapping(self.content)

    @property
    def values(self) -> Values:
        """Statistics of the training images; in runs of earlier versions, only their magnitude is known."""
        found = self.content.get("values")
        return Values(1, 0.0, self.scale, 0.0, 0.0) if found is None else Values.from_mapping(found)

    @property
    def white(self) -> float | None:
        """The value of a white pixel in the training images; None in runs of earlier versions."""
        found = self.content.get("white")
        return None if found is None else float(found)

    def shape(self, num_samples: Mapping[str, int] | None = None) -> DataShape:
        """What a layer and a plan need to know; `num_samples` are the numbers of samples by split, where needed."""
        brings_negatives = bool(self.content.get("brings_negatives", False))  # earlier versions had no negatives
        return DataShape(self.num_features, self.num_classes, num_samples or {}, self.image_shape, brings_negatives)

    def find_other_units(self, images: Images, noun: str, labels: Tensor | None = None) -> str | None:
        """A warning in one line if images (n, *image_shape) are not in the training images' units; None otherwise.

        Without labels (n,), they may all be of one class.
        """
        expected = self.values if labels is None else self.values.expected_of(labels)
        oddity = find_other_units(Values.of(images), expected)
        if oddity is None and "standardised" in self.content:
            oddity = find_mixed(images)
        if oddity is None and "standardised" in self.content:
            num_images = max(_MOST_VALUES // self.num_features, 50)
            some = images[:: -(-len(images) // num_images)]
            rows = _by_part(self.scaling.apply(some), parts_of(self.content))
            limits = (self.content.get(name) for name in ("standardised_classes", "standardised_images"))
            oddity = find_shifted_rows(rows, len(images), *limits)
            ranges = self.content.get("standardised_ranges")  # earlier versions had none
            if oddity is None and ranges is not None:
                low, high = (torch.tensor(ranges[end], dtype=torch.float64) for end in ("low", "high"))
                oddity = find_beyond(some, low, high, self.values.num_images)
        if oddity is None and "mixtures" in self.content:  # not in runs of earlier versions
            mixtures = Mixtures.from_mapping(self.content["mixtures"], self.num_features)
            oddity = None if mixtures is None else mixtures.find_other(images, labels)
        if oddity is None and "feature_values" in self.content:  # not in runs of earlier versions, nor of pictures
            trained = TrainedValues.from_mapping(self.content["feature_values"], self.num_features)
            oddity = None if trained is None else trained.find_new(images)
        return None if oddity is None else f"{noun}: {oddity}"

    def find_repeats(self, images: Images, noun: str, labels: Tensor | None = None) -> str | None:
        """A warning in one line if more images (n, *image_shape) than in training are equal; None otherwise.

        Without labels (n,), they may all be of one class.
        """
        trained = self.content.get("repetition")  # earlier versions did not count them
        if trained is None:
            return None
        found = find_repeats(images, digest_images(images), Repetition.from_mapping(trained), labels)
        return None if found is None else f"{noun}: {found}"


def _by_part(rows: Tensor, parts: Tensor) -> Tensor:
    """Rearrange rows (n, features) to (n * features per part, parts), a part being a feature or a channel."""
    order = torch.argsort(parts, stable=True)
    by_part: Tensor = rows[:, order].unflatten(1, (int(parts.max()) + 1, -1)).transpose(1, 2).flatten(0, 1)
    return by_part


def _describe_classes(train: Split, scaling: Scaling, standardise: str) -> dict[str, Any]:
    """The limits within which standardised images of single classes, small samples of all, and single images lie.

    They keep images that are all of one class, of one brightness, or few, from counting as images in other units.
    """
    parts = find_parts(tuple(train.images.shape[1:]), standardise)
    num_images = max(_MOST_VALUES // len(parts) // _MOST_CLASSES, 50)
    groups = [(train.labels == label).nonzero().flatten() for label in train.labels.unique()[:_MOST_CLASSES]]
    # Where values are rare and far, the spread of few images differs from that of all.
    order = draw_sample(len(train), _MOST_CLASSES * ENOUGH_IMAGES)
    groups += [part for part in order.split(ENOUGH_IMAGES) if len(part) == ENOUGH_IMAGES]
    single: list[Tensor] = []
    if standardise == CHANNELS:
        # Images may be chosen by their brightness, and of few of them the pixels tell nothing of the others.
        means = torch.cat([train.images[part].flatten(1).double().mean(dim=1) for part in order.split(ENOUGH_IMAGES)])
        by_mean = order[means.argsort()]
        groups += [by_mean[:ENOUGH_IMAGES], by_mean[-ENOUGH_IMAGES:]]
        single = list(torch.cat([by_mean[:_FEW_IMAGES], by_mean[-_FEW_IMAGES:], order[:_MOST_SINGLE]]).split(1))

    def measure(group: Tensor) -> tuple[float, float] | None:
        return measure_rows(_by_part(scaling.apply(train.images[group[:num_images]]), parts))

    found = {
        "standardised_classes": [measure(group) for group in groups if len(group) >= _FEW_IMAGES],
        "standardised_images": [measure(group) for group in single],
    }
    return {name: limits for name, own in found.items() if (limits := _limit([each for each in own if each]))}


def _limit(found: list[tuple[float, float]]) -> dict[str, float]:
    """The limits of shifts and spreads; none where nothing was found."""
    if not found:
        return {}
    shifts, spreads = zip(*found, strict=True)
    return {"shift": max(shifts), "least_spread": min(1.0, *spreads), "most_spread": max(1.0, *spreads)}
