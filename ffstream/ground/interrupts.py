"""Ctrl-C: looked for where it does no harm, and whatever foreign code makes of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_Handler = Callable[[int, FrameType | None], Any]
_open: list[Interrupts] = []  # of the process, as its handlers are; the innermost last


class Interrupts:
    """Ends what it is open around when a signal's handler raised there, as Python's own does with KeyboardInterrupt.

    A handler is called between any two steps of Python, also of those that a library calls from C. Some take what it
    raises for a failure of their own, and say something else, or go on as if it had not come; and where it comes
    between a lock's acquisition and what releases it, the next thread waits for ever. So what a handler raised is
    remembered. An error that leaves is taken for what became of it, and `check_interrupts` raises it again where it was
    lost.

    With `defers`, for work that threads take part in, the first one is raised by `check_interrupts` alone, or on
    leaving; the next at once, for a user who waits no longer. Handlers that do not raise are let be. Only the main
    thread gets signals: in others nothing is done. Functions open it, not generators, which may be left open.
    """

    def __init__(self, *, defers: bool = False) -> None:
        self._defers = defers
        self._handlers: dict[signal.Signals, _Handler] = {}
        self._raised: BaseException | None = None

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
        """Raise what a handler raised, if one did."""
        if self._raised is not None:
            raise self._raised

    def _handle(self, handler: _Handler, number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            first, self._raised = self._raised is None, error
            if not (self._defers and first):
                raise


def check_interrupts() -> None:
    """Raise what a handler raised in anything that is open, if one did. Nothing in threads that get no signals."""
    if _is_main():
        for interrupts in _open:
            interrupts.check()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
