"""Hypothesis's strategies for what is nearly right: bytes after a few edits, values with some of them replaced."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NUMBERS: list[Any] = [0, -1, 1, 2, 7, 255, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 200, 10**400]
NUMBERS += [0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]
WORDS = ["", " ", "auto", "all", "disk", "cuda", "cpu", "cuda:99", "inject", "hinton", "none", "softmax", "é", "\ud800"]
WORDS += ["a" * 300, "1GiB", "-1", "1e999", "nan", "9" * 400 + "GiB", "%s{0}$(id)", "0x10", "a\nb", "\0", "a=b", "[1"]
WORDS += ["é" * 200, "a" * 300 + "/b", "a/" * 3000 + "b"]
OUTSIDE = ["../../../outside/weights", "/etc/passwd", "..", "a/../../b"]
_DEEP: Any = functools.reduce(lambda inner, _: [inner], range(500), 0)
VALUES = st.sampled_from([*NUMBERS, *WORDS, *OUTSIDE, "00" * 32, None, True, False, [], {}, [1], {"a": 1}, _DEEP])

_HOW = ("flip", "flip", "set", "insert", "delete", "repeat", "cut", "swap")
_TOKENS = [b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"\x80" + b"\0" * 7, *(bytes([code]) for code in b'[]{}"=\n#-.,:0')]
_TOKENS += [b"inf", b"nan", b"1e999", b"9" * 30, b"[[", b'"""', b"null", b"true", b"\xef\xbb\xbf", b"[" * 2000]
_PLACES = st.integers(0, (1 << 32) - 1)
EDITS = st.lists(st.tuples(st.sampled_from(_HOW), _PLACES, _PLACES, st.sampled_from(_TOKENS)), min_size=1, max_size=4)
CHANGES = st.lists(
    st.tuples(_PLACES, VALUES, st.sampled_from(("put", "put", "put", "drop", "rename"))), min_size=1, max_size=3
)


def alter(data: bytes, edits: list[tuple[str, int, int, bytes]], reach: int = 1 << 32) -> bytes:
    """Bytes after some edits, each at a place before `reach` that the first number gives."""
    for how, first, second, token in edits:
        at, length = first % (min(len(data), reach) + 1), 1 + second % 16
        head, tail = data[:at], data[at:]
        if how == "flip" and tail:
            data = head + bytes([tail[0] ^ 1 << second % 8]) + tail[1:]
        elif how == "set":
            data = head + token + tail[len(token) :]
        elif how == "insert":
            data = head + token + tail
        elif how == "delete":
            data = head + tail[length:]
        elif how == "repeat":
            data = head + tail[:length] + tail
        elif how == "cut":
            data = head
        elif how == "swap":
            data = head + tail[length : 2 * length] + tail[:length] + tail[2 * length :]
    return data


def change(value: Any, changes: list[tuple[int, Any, str]]) -> Any:
    """Nested values with some replaced, dropped or renamed, each at a place that a number gives."""
    for at, new, how in changes:
        found = [place for place in _places(value) if place]
        if not found:
            return new
        *above, key = found[at % len(found)]
        value = copy.deepcopy(value)
        holder = functools.reduce(lambda inner, step: inner[step], above, value)
        if how == "drop":
            del holder[key]
        elif how == "rename" and isinstance(holder, dict):
            holder[str(new)] = holder.pop(key)
        else:
            holder[key] = new
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys, from the outside in, to everything there is."""
    yield path
    if len(path) < 8:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in children:
            yield from _places(child, (*path, key))
