"""Transforms of images: how a list of them is written, such as "crop4 flip". No torch is imported here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ffstream.errors import ConfigError, nearest
from ffstream.settings.limits import show

# By name: the number that may follow it, if none is given, and what it says; None where no number may follow.
TRANSFORMS: dict[str, tuple[int, str] | None] = {
    "crop": (4, "pixels by which the image is moved at most, as by a padding and a random crop"),
    "flip": None,
    "cutout": (8, "side, in pixels, of the square that is set to zero"),
    "randaugment": (9, "magnitude of the two transforms that are drawn, from 0 to 30"),
}
_LARGEST = {"randaugment": 30}
_ONE = re.compile(r"(?P<name>[a-z]+)(?P<number>\d+)?$")
_EXAMPLE = '"crop4 flip"'


@dataclass(frozen=True)
class TransformLine:
    """One transform of a list: its name, and its number (0 where it has none)."""

    name: str
    number: int = 0

    def __str__(self) -> str:
        return self.name if TRANSFORMS[self.name] is None else f"{self.name}{self.number}"


def read_transforms(given: Any) -> tuple[str, ...]:
    """A list of transforms, or a text of them, each written with its number. Raises ConfigError."""
    words = given.replace(",", " ").split() if isinstance(given, str) else given
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise _refuse(given, f"allowed a text such as {_EXAMPLE}, or a list of such words")
    lines = [_read(word) for word in words]
    names = [line.name for line in lines]
    for name in names:
        if names.count(name) > 1:
            raise _refuse(given, f"{name} stands there {names.count(name)} times, allowed once")
    return tuple(map(str, lines))


def list_transforms(transforms: Sequence[str]) -> list[TransformLine]:
    """The transforms that `read_transforms` gave."""
    return [_read(word) for word in transforms]


def _read(word: str) -> TransformLine:
    match = _ONE.match(word.strip().lower())
    name = match["name"] if match is not None else word
    if match is None or name not in TRANSFORMS:
        raise _refuse(word, f"{nearest(name, TRANSFORMS)}; write a list as {_EXAMPLE}")
    with_number = TRANSFORMS[name]
    if with_number is None:
        if match["number"] is not None:
            raise _refuse(word, f"allowed {name}, without a number")
        return TransformLine(name)
    number = int(match["number"]) if match["number"] is not None else with_number[0]
    least, largest = int(name != "randaugment"), _LARGEST.get(name, 1 << 16)
    if not least <= number <= largest:
        raise _refuse(word, f"allowed {name} and a number from {least} to {largest}: {with_number[1]}")
    return TransformLine(name, number)


def _refuse(found: Any, reason: str) -> ConfigError:
    return ConfigError(f"config augmentation.transforms: found {show(found)}; {reason}")
