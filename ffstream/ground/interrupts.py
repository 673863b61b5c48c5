"""Ctrl-C: it takes effect where it does no harm, and is not lost in the code of other libraries."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_UNWINDING_S = 0.5
_Handler = Callable[[int, FrameType | None], Any]
_open: list[Interrupts] = []  # for the whole process, like signal handlers; the innermost last
_waits: list[None] = []  # the blocks of `waiting` that are open


class Interrupts:
    """A context manager that ends its block when a signal handler raised in it, as Python's does for Ctrl-C.

    Python calls a handler between any two of its steps, even in Python code that a library calls from C. Some libraries
    take what the handler raises for a failure of their own, and raise something else or go on as if nothing had come.
    And if it comes between the acquisition of a lock and the code that releases it, the next thread waits for ever. So
    the exception of a handler is remembered: it replaces an error that leaves the block, and if it was lost, it is
    raised again by `check_interrupts` or on leaving the block.

    With `defers`, for work with several threads, the first interrupt is raised only by `check_interrupts` or on leaving
    the block, the next one at once, for a user who will not wait. Others in the half second after one was raised are
    ignored: they would come while files are being closed, where Python can only print them. Handlers that do not raise
    have their usual effect.
    Only the main thread gets signals, so nothing is done in other threads. It must be opened in a function and not in a
    generator, which may never be closed.
    """

    def __init__(self, *, defers: bool = False) -> None:
        self._defers = defers
        self._handlers: dict[signal.Signals, _Handler] = {}
        self._raised: BaseException | None = None
        self._unwinds_until_s = 0.0

    def __enter__(self) -> Interrupts:
        if _is_main():
            for number in _NUMBERS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, partial(self._handle, handler))
            _open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self in _open:
            _open.remove(self)
        if error is None or isinstance(error, Exception):
            self.check()

    def check(self) -> None:
        """Raise what a handler raised in this block, if one did."""
        if self._raised is not None:
            raise self._raised

    def _handle(self, handler: _Handler, number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            if time.monotonic() < self._unwinds_until_s:
                return
            first, self._raised = self._raised is None, error
            if self._defers and first and not _waits:
                return
            if _open[-1:] == [self]:  # the innermost block lets it through, so all are being left
                for each in _open:
                    each._unwinds_until_s = time.monotonic() + _UNWINDING_S
            raise


def check_interrupts() -> None:
    """Raise what a handler raised in any open `Interrupts`, if one did. Does nothing outside of the main thread."""
    if _is_main():
        for interrupts in _open:
            interrupts.check()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """In this block, an interrupt is raised at once: nothing is left half done by it. Does so in the main thread."""
    check_interrupts()
    if not _is_main():
        yield
        return
    _waits.append(None)
    try:
        yield
    finally:
        _waits.pop()
    check_interrupts()  # should the code that was waited for have lost it


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
