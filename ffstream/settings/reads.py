"""What a layer of a list reads: the image, an earlier layer, the one below, or several of them joined. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ffstream.settings.limits import show

IMAGE, BELOW = "image", "below"
CONCAT, SUM = "concat", "sum"
JOINS = (CONCAT, SUM)
_ALLOWED = f"{BELOW}, {IMAGE}, the number of an earlier layer, -2 for the one under the layer below, and so on"


@dataclass(frozen=True)
class Reads:
    """What a layer reads, in order: 0 for the image, else the number of a layer, counted from 1."""

    sources: tuple[int, ...]
    join: str = CONCAT  # how several are joined: side by side, or added

    @property
    def is_sum(self) -> bool:
        """Whether several are added."""
        return self.join == SUM and len(self.sources) > 1


def write_reads(given: Any) -> str:
    """The one form in which a layer's `reads` is written, "below+2". Raises ValueError, which says what is allowed."""
    if isinstance(given, str):
        given = given.split("+")
    items = list(given) if isinstance(given, Sequence) else [given]
    if not items:
        raise ValueError(f"reads nothing, allowed {_ALLOWED}, joined by +")
    return "+".join(map(_write_one, items))


def _write_one(item: Any) -> str:
    text = str(item).strip()
    if text in (IMAGE, BELOW):
        return text
    if not isinstance(item, bool) and re.fullmatch("-?[0-9]{1,7}", text) and int(text):
        return str(int(text))
    raise ValueError(f"reads {show(item)}, allowed {_ALLOWED}, joined by +")


def find_sources(text: str, number: int) -> tuple[int, ...]:
    """What layer `number`, counted from 1, reads if its `reads` is `text`.

    Raises ValueError, which says what is wrong.
    """
    found: list[int] = []
    for word in text.split("+"):
        source = {IMAGE: 0, BELOW: number - 1}.get(word)
        if source is None:
            source = int(word) + (number if word.startswith("-") else 0)
        if source < 0:
            raise ValueError(f"reads={text}, which is below the image, allowed -1 to -{number}, which is the image")
        if source >= number:
            which = "itself" if source == number else f"the later layer {source}"
            earlier = f", 1 to {number - 1}" if number > 1 else ""
            raise ValueError(f"reads={text}, which is {which}, allowed {IMAGE}, {BELOW} or an earlier layer{earlier}")
        if source in found:
            raise ValueError(f"reads={text}, which names {name_source(source)} twice, allowed once")
        found.append(source)
    return tuple(found)


def name_source(source: int) -> str:
    """Of 0 and the numbers of layers."""
    return f"layer {source}" if source else f"the {IMAGE}"
