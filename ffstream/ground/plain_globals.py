"""Gives settings that hold for the whole process their usual values, for as long as somebody needs them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ffstream.ground.interrupts import Interrupts

Setting = tuple[Any, str, Any]  # an object, the name of its attribute, and the value that it gets

_lock = threading.RLock()  # a signal's handler may come while its thread is setting them
# For each setting, how many blocks need it now, and the value that it had before the first of them.
_needed: dict[tuple[int, str], tuple[int, Any]] = {}


@contextlib.contextmanager
def plain_globals(settings: Sequence[Setting]) -> Iterator[None]:
    """Set attributes of a module or a class in a block. Blocks may overlap in several threads: the last one restores.

    Settings with the same object and name always have to be given the same value. An interrupt waits for the end of the
    block, which should be short.
    """
    with Interrupts(defers=True):
        with _lock:
            for owner, name, value in settings:
                number, before = _needed.get((id(owner), name), (0, getattr(owner, name)))
                _needed[id(owner), name] = (number + 1, before)
                setattr(owner, name, value)
        try:
            yield
        finally:
            with _lock:
                for owner, name, _ in settings:
                    number, before = _needed.pop((id(owner), name))
                    if number > 1:
                        _needed[id(owner), name] = (number - 1, before)
                    else:
                        setattr(owner, name, before)
