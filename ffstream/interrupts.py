"""Ctrl-C, whatever foreign code makes of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Ends what it is open around when a signal's handler raised there, as Python's own does with KeyboardInterrupt.

    A handler is called between any two steps of Python, also of those that a library calls from C. Some take what it
    raises for a failure of their own, and say something else, or go on as if it had not come. On leaving, an error is
    therefore taken for what the interrupt became; and `check` raises it again where it was lost. Handlers that do not
    raise are let be, and so is a thread that gets no signals.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
        self._raised: BaseException | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, partial(self._handle, handler))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if isinstance(error, Exception):
            self.check()

    def check(self) -> None:
        """Raise what a handler raised, if one did."""
        if self._raised is not None:
            raise self._raised

    def _handle(self, handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            self._raised = error
            raise
