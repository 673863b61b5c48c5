"""Where the time of a run goes, by what the thread that computes was doing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Seconds by noun. A lap within another is left out of the outer one, so that all add up to what passed."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []  # nouns, the innermost last
        self._since_s = 0.0  # when that one began, or went on

    @contextlib.contextmanager
    def lap(self, noun: str) -> Iterator[None]:
        """What passes is time of `noun`."""
        self._count()
        self._open.append(noun)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """All until now, by noun; another account begins."""
        self._count()
        taken, self._seconds = self._seconds, {}
        return taken

    def _count(self) -> None:
        now_s = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now_s - self._since_s
        self._since_s = now_s
