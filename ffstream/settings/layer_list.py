"""Networks of unlike layers: how a list of layers is written, and the forms that have names.

A layer is written as its kind, its width and its options: "conv 64 kernel=5 pool=2". A network is a text of such
layers in their short form, "conv64 pool conv128x2 dense512", or a list of texts or tables. No torch is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ffstream.errors import ConfigError, nearest
from ffstream.settings.limits import show
from ffstream.settings.reads import BELOW, CONCAT, JOINS, SUM, Reads, find_sources, write_reads

Option = bool | int | float | str

# Options of a layer of any kind, which say how it is trained and what it reads; the others are those of its kind.
COMMON_OPTIONS = ("epochs", "learning_rate", "reads", "join")
_ALIASES = {"dense": "linear"}
_POOLINGS = {"pool": "max", "maxpool": "max", "avgpool": "average"}
_MOST_LAYERS = 1_000_000
_KIND = r"(?P<kind>[A-Za-z_][A-Za-z_]*)"
_SHORT = re.compile(_KIND + r"(?P<width>\d+)?(?:\((?P<options>[^()]*)\))?(?:x(?P<repeat>\d+))?$", re.ASCII)
_EXAMPLE = '"conv64 pool conv128x2 pool dense512"'


@dataclass(frozen=True)
class LayerLine:
    """One layer of a list: its kind, its width (units or channels), and the options that are given for it."""

    kind: str
    width: int
    options: tuple[tuple[str, Option], ...] = ()

    @classmethod
    def parse(cls, text: str) -> LayerLine:
        """Read what `str` writes. Raises ConfigError."""
        kind, *rest = text.split()
        if not rest or not rest[0].isdecimal():
            raise _refuse(text, 'allowed a kind, a width and options, such as "conv 64 kernel=5"')
        return cls(kind, _check_width(text, int(rest[0])), _parse_options(text, rest[1:]))

    def __str__(self) -> str:
        return " ".join([self.kind, str(self.width), *(f"{key}={_write(value)}" for key, value in self.options)])

    @property
    def kind_options(self) -> dict[str, Option]:
        """The options that are the kind's own."""
        return {name: value for name, value in self.options if name not in COMMON_OPTIONS}

    @property
    def num_epochs(self) -> int | None:
        """Its own number of epochs, if one is given."""
        found = dict(self.options).get("epochs")
        return None if found is None else int(found)

    @property
    def learning_rate(self) -> float | None:
        """Its own learning rate, if one is given."""
        found = dict(self.options).get("learning_rate")
        return None if found is None else float(found)

    @property
    def reads(self) -> str:
        """What it reads, as it is written."""
        return str(dict(self.options).get("reads", BELOW))

    @property
    def reading(self) -> str:
        """What it reads and how that is joined, in a few words."""
        return f"{self.reads} (sum)" if dict(self.options).get("join") == SUM else self.reads

    def find_reads(self, number: int) -> Reads:
        """What it reads as layer `number` of a list, counted from 1. Raises ConfigError for what is not there."""
        try:
            sources = find_sources(self.reads, number)
        except ValueError as error:
            raise ConfigError(f"config network.layers: layer {number} ({self.kind} {self.width}) has {error}") from None
        return Reads(sources, str(dict(self.options).get("join", CONCAT)))

    def with_options(self, more: Mapping[str, Option]) -> LayerLine:
        """The same layer with options added or replaced."""
        return LayerLine(self.kind, self.width, tuple(sorted((dict(self.options) | dict(more)).items())))


def read_layers(given: Any) -> tuple[str, ...]:
    """A network as one line for each layer, from a text, the name of a form, or a list of texts or tables.

    The name of a form of any depth stands for itself. Raises ConfigError for anything else.
    """
    items = [given] if isinstance(given, (str, Mapping)) else given
    if not isinstance(items, Sequence):
        raise _refuse(given, f"allowed a text such as {_EXAMPLE}, or a list of layers")
    if len(items) == 1 and isinstance(items[0], str) and items[0] in FORMS_OF_ANY_DEPTH:
        return (items[0],)
    found: list[LayerLine] = []
    for item in items:
        found += _read_table(item) if isinstance(item, Mapping) else _read_text(item, found)
        if len(found) > _MOST_LAYERS:
            raise _refuse(given, f"allowed at most {_MOST_LAYERS} layers")
    return tuple(map(str, found))


def list_lines(layers: Sequence[str], num_layers: int) -> list[LayerLine]:
    """The layers that `read_layers` gave; `num_layers` is that of a form of any depth."""
    if len(layers) == 1 and layers[0] in FORMS_OF_ANY_DEPTH:
        return _read_text(FORMS_OF_ANY_DEPTH[layers[0]](num_layers), [])
    return [LayerLine.parse(line) for line in layers]


def _read_text(text: Any, before: list[LayerLine]) -> list[LayerLine]:
    """The layers of a text; a pooling is added to the layer before it, which may be the last one of `before`."""
    if not isinstance(text, str):
        raise _refuse(text, f"allowed a text such as {_EXAMPLE}, or a table with kind and width")
    words = re.sub(r"\s*([(,=+])\s*|\s+(\))", r"\1\2", text.strip()).split()
    if len(words) > 1 and words[1].isdecimal():
        return [LayerLine.parse(" ".join(words))]
    found: list[LayerLine] = []
    for word in words:
        if word in FORMS:
            found += _read_text(FORMS[word], [])
            continue
        match = _SHORT.match(word)
        kind, repeat = (match["kind"], int(match["repeat"] or 1)) if match is not None else ("", 1)
        is_whole = kind in (*_POOLINGS, *FORMS_OF_ANY_DEPTH, "flatten")
        if match is None or (match["width"] is None and not is_whole):
            known = [*FORMS, *FORMS_OF_ANY_DEPTH, *_POOLINGS, *_ALIASES, "conv", "block", "local"]
            turned = re.fullmatch(r"([A-Za-z_]+\d+)(x\d+)(\(.*\))", word, re.ASCII)
            if turned is not None:
                raise _refuse(text, f"{word!r} repeats before its options, allowed {turned[1]}{turned[3]}{turned[2]}")
            raise _refuse(text, f"{word!r} is no layer; {nearest(word, known)}; write a network as {_EXAMPLE}")
        if kind in FORMS_OF_ANY_DEPTH and match["width"] is None:
            raise _refuse(text, f"{kind!r} is a whole network, as deep as --layers says; allowed by itself")
        if kind.removesuffix("x") in _POOLINGS and kind not in _POOLINGS:
            raise _refuse(text, f"{word!r} repeats a pooling, allowed pool, or a larger one such as pool4")
        if (kind == "flatten" and match["width"]) or (kind in (*_POOLINGS, "flatten") and match["options"]):
            raise _refuse(text, f"{word!r} takes no {'options' if match['options'] else 'number'}; allowed {kind}")
        if kind == "flatten":  # every dense layer reads rows
            continue
        if kind in _POOLINGS:
            layers = found or before
            if not layers:
                raise _refuse(text, f"{word!r} has no layer before it that it could pool")
            layers[-1] = _pool(text, layers[-1], kind, int(match["width"] or 2) ** repeat)
            continue
        options = _parse_options(text, [each for each in (match["options"] or "").split(",") if each])
        line = LayerLine(_ALIASES.get(kind, kind), _check_width(word, int(match["width"])), options)
        found += [line] * _check_repeat(word, int(match["repeat"] or 1))
    return found


def _pool(text: str, line: LayerLine, kind: str, side: int) -> LayerLine:
    """The layer with one more pooling: two of a kind are one that is as large as both."""
    given = dict(line.options)
    before, pooling = given.get("pool", 1), _POOLINGS[kind]
    if before != 1 and given.get("pooling", "max") != pooling:
        raise _refuse(text, f"{line.kind} {line.width} is pooled by two kinds of pooling, allowed one")
    return line.with_options({"pool": int(before) * side, "pooling": pooling})


def _read_table(table: Mapping[str, Any]) -> list[LayerLine]:
    """The layers of a table with kind, width, options and repeat."""
    options = dict(table)
    kind, width, repeat = options.pop("kind", None), options.pop("width", None), options.pop("repeat", 1)
    if not isinstance(kind, str) or not kind.isidentifier():
        raise _refuse(table, 'a layer needs a kind, such as kind = "conv"')
    if isinstance(width, bool) or not isinstance(width, int):
        raise _refuse(table, "a layer needs a width, an integer >= 1: its units, or its channels")
    for key, value in options.items():
        if key == "reads":
            continue
        if not isinstance(value, (bool, int, float, str)) or (isinstance(value, str) and not value.isidentifier()):
            raise _refuse(table, f"{key} is {show(value)}, allowed a number, a word, true or false")
    line = LayerLine(_ALIASES.get(kind, kind), _check_width(table, width), _check_common(table, options))
    if isinstance(repeat, bool) or not isinstance(repeat, int):
        raise _refuse(table, f"repeat is {show(repeat)}, allowed an integer >= 1")
    return [line] * _check_repeat(table, repeat)


def _parse_options(text: str, words: Sequence[str]) -> tuple[tuple[str, Option], ...]:
    options: dict[str, Option] = {}
    for word in words:
        key, joint, value = word.partition("=")
        if not joint or not key.isidentifier() or not value or key in options:
            raise _refuse(text, f"{word!r} is no option, or stands there twice; allowed name=value, such as kernel=5")
        options[key] = _parse_value(value)
    return _check_common(text, options)


def _check_common(found: Any, options: dict[str, Any]) -> tuple[tuple[str, Option], ...]:
    """Options of a layer, sorted by name. Raises ConfigError for those of any kind that are out of range."""
    epochs, rate = options.get("epochs", 1), options.get("learning_rate", 1.0)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or not 1 <= epochs < 1 << 31:
        raise _refuse(found, f"epochs is {show(epochs)}, allowed an integer >= 1")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
        raise _refuse(found, f"learning_rate is {show(rate)}, allowed a number > 0")
    if "learning_rate" in options:
        options["learning_rate"] = float(rate)
    _check_reads(found, options)
    return tuple(sorted(options.items()))


def _check_reads(found: Any, options: dict[str, Any]) -> None:
    """Write what a layer reads in one form, and leave out what every layer does. Raises ConfigError."""
    join = options.pop("join", None)
    try:
        reads = write_reads(options.pop("reads", BELOW))
    except ValueError as error:
        raise _refuse(found, str(error)) from None
    if join is not None and join not in JOINS:
        raise _refuse(found, f"join is {show(join)}, allowed {' or '.join(JOINS)}")
    if join is not None and "+" not in reads:
        raise _refuse(found, f"join={join} joins nothing, as one thing is read; allowed with several, as reads=below+1")
    if reads != BELOW:
        options |= {"reads": reads} | ({"join": join} if join not in (None, CONCAT) else {})


def _parse_value(text: str) -> Option:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _write(value: Option) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_width(text: Any, width: int) -> int:
    if not 1 <= width <= 1 << 18:
        raise _refuse(text, f"the width is {width}, allowed an integer >= 1 and <= {1 << 18}")
    return width


def _check_repeat(text: Any, repeat: int) -> int:
    if not 1 <= repeat <= _MOST_LAYERS:
        raise _refuse(text, f"repeated {repeat} times, allowed 1 to {_MOST_LAYERS}")
    return repeat


def _refuse(found: Any, reason: str) -> ConfigError:
    return ConfigError(f"config network.layers: found {show(found)}; {reason}")


def _vgg(num_layers: int) -> str:
    """Convolutions of 64, 128 and 256 channels, pooled after the first one and at the end of each further width."""
    num_wide = num_layers - 1
    num_128 = -(-num_wide // 2)
    parts = ["conv64 pool"]
    for width, number in ((128, num_128), (256, num_wide - num_128)):
        parts += [f"conv{width}x{number - 1}"] * (number > 1) + [f"conv{width} pool"] * (number > 0)
    return " ".join(parts)


FORMS_OF_ANY_DEPTH: dict[str, Callable[[int], str]] = {"vgg": _vgg}
FORMS = {
    # VGG8b of Nokland and Eidnes 2019, without its classifier.
    "vgg8": "conv128 conv256 pool conv256 conv512 pool conv512 pool conv512 pool dense1024",
}
