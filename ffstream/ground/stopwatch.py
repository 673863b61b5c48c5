"""Measures where the time of a run goes, by what the computing thread was doing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Seconds by noun. An inner lap does not count towards the outer one, so that no time is counted twice."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []  # nouns, the innermost last
        self._since_s = 0.0  # when the innermost lap began or continued

    @contextlib.contextmanager
    def lap(self, noun: str) -> Iterator[None]:
        """Count the time in the block towards `noun`."""
        self._count()
        self._open.append(noun)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """The seconds by noun since the last call, or the start; counting begins anew."""
        self._count()
        taken, self._seconds = self._seconds, {}
        return taken

    def _count(self) -> None:
        now_s = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now_s - self._since_s
        self._since_s = now_s
