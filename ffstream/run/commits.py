"""Files of a run that are committed one after another, each with the metrics that describe it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from ffstream.cache.transfer import Transfer
from ffstream.storage.metrics import MetricsFile, MetricsSeal

# Writes a file, and returns the function that commits it; the seal is that of the lines that describe it.
Write = Callable[[MetricsSeal], Callable[[], None]]


class Commits:
    """A file is committed after the lines of the metrics that describe it are durable.

    Only one file at a time waits for that: with a disk slower than the epochs, more would pile up than was planned.
    """

    def __init__(self, metrics: MetricsFile, transfer: Transfer) -> None:
        self._metrics, self._transfer = metrics, transfer
        self._written: Future[None] | None = None  # the last file written, until it is committed

    def await_last(self) -> None:
        """Wait until the last file written is committed."""
        if self._written is not None:
            self._transfer.await_commit(self._written)

    def add(self, write: Write) -> None:
        """Write a file, and have it committed beside what follows."""
        self.await_last()
        with self._transfer.stopwatch.lap("saving"):
            action = write(self._metrics.seal())
        self._transfer.commit(self._metrics.sync)
        self._written = self._transfer.commit(action)
