"""The shape of a data set: all that a layer and a plan need to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ffstream.errors import ConfigError
from ffstream.settings.limits import show


@dataclass(frozen=True)
class DataShape:
    """Numbers of features, classes and samples, and the shape of an image where it is known."""

    num_features: int
    num_classes: int
    num_samples: Mapping[str, int] = field(default_factory=dict)  # by split: train, and validation if there is one
    image_shape: tuple[int, ...] | None = None
    brings_negatives: bool = False  # the data hold negatives, so that no hybrids are made of images

    @property
    def mixed_shape(self) -> tuple[int, ...] | None:
        """The shape of the images that hybrids are made of; None where no hybrids are made or the shape is unknown."""
        return None if self.brings_negatives else self.image_shape

    @classmethod
    def of(
        cls,
        num_samples: int,
        num_features: int,
        num_classes: int,
        validation_fraction: float,
        image_shape: tuple[int, ...] | None = None,
    ) -> DataShape:
        """Make the shape from numbers, a fraction of the samples being held out for validation. Raises ConfigError."""
        numbers = {
            "samples": (num_samples, 2, 10**12),
            "features": (num_features, 1, 10**9),
            "classes": (num_classes, 2, 10**5),
        }
        for noun, (number, least, most) in numbers.items():
            if not least <= number <= most:
                raise ConfigError(f"--{noun} {number}: allowed an integer >= {least} and <= {most}")
        held_out = round(num_samples * validation_fraction)
        counts = {"train": num_samples - held_out} | ({"validation": held_out} if held_out else {})
        return cls(num_features, num_classes, counts, image_shape)


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape of an image: "3x32x32" (channels first, or last), "28x28", or "784" features. Raises ConfigError."""
    sides = text.lower().replace(" ", "").split("x")
    if not 1 <= len(sides) <= 3 or not all(side.isdecimal() and 0 < len(side) < 10 and int(side) for side in sides):
        raise ConfigError(f"--shape {show(text)}: allowed one to three integers >= 1, such as 28x28 or 3x32x32")
    return tuple(map(int, sides))
