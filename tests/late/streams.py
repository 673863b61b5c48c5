"""Streams whose work is carried out as late as possible, or in an order that a policy chooses."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

# Nothing runs before the host waits for it; side streams run ahead as far as their waits allow, while the computing
# stream lags; the reverse; or everything runs as soon as it can.
POLICIES = ("lazy", "copies first", "computing first", "eager")

# A task is told whether what it waits for must be carried out first, and returns whether it is done.
Task = Callable[[bool], bool]


class Mark:
    """A place in the queue of a stream: it is passed once all that was queued before it is done."""

    def __init__(self, stream: LateStream) -> None:
        self.stream = stream
        self.is_passed = False

    def pass_(self, _forced: bool) -> bool:
        """Be passed, as a task."""
        self.is_passed = True
        return True

    def wait(self, forced: bool) -> bool:
        """Hold up the stream that has this as its task until the mark is passed."""
        if forced:
            self.stream.queues.carry_out(self)
        return self.is_passed


class LateStream:
    """A queue of work. As on CUDA, what is queued is carried out even if nobody refers to the stream any more."""

    def __init__(self, queues: Queues, *, is_side: bool = True) -> None:
        self.queues = queues
        self.is_side = is_side
        self.tasks: deque[Task] = deque()

    def wait_event(self, event: LateEvent) -> None:
        """Let what is queued from here on begin only after the mark that the event has now."""
        if event.mark is not None:
            self.queues.put(self, event.mark.wait)


class LateEvent:
    """An event. Recording it anew does not change what was made to wait for its earlier mark."""

    def __init__(self, on_wait: Callable[[], None]) -> None:
        self.mark: Mark | None = None
        self._on_wait = on_wait

    def record(self, stream: LateStream) -> None:
        """Mark the end of what is queued on a stream now."""
        self.mark = Mark(stream)
        stream.queues.put(stream, self.mark.pass_)

    def synchronize(self) -> None:
        """Make the host wait until the mark is passed."""
        if self.mark is not None:
            self._on_wait()
            self.mark.stream.queues.carry_out(self.mark)


class Queues:
    """All streams of a device. Work is carried out on the thread that waits, one task at a time."""

    def __init__(self, policy: str) -> None:
        assert policy in POLICIES, policy
        self._policy = policy
        self.lock = threading.RLock()
        self.computing = LateStream(self, is_side=False)
        self._streams = [self.computing]

    def make_stream(self) -> LateStream:
        """A side stream."""
        with self.lock:
            self._streams.append(LateStream(self))
            return self._streams[-1]

    def put(self, stream: LateStream, task: Task) -> None:
        """Queue a task, and carry out what the policy wants to be done by now."""
        with self.lock:
            stream.tasks.append(task)
            if self._policy == "lazy":
                return
            moved = True
            while moved:
                moved = False
                for each in self._streams:
                    if self._policy == "eager" or each.is_side == (self._policy == "copies first"):
                        while each.tasks and self._step(each, forced=False):
                            moved = True

    def carry_out(self, mark: Mark) -> None:
        """Do everything before the mark, and no more."""
        with self.lock:
            while not mark.is_passed:
                self._step(mark.stream, forced=True)

    def drain(self, stream: LateStream) -> None:
        """Do everything that is queued on a stream."""
        with self.lock:
            while stream.tasks:
                self._step(stream, forced=True)

    def drain_all(self) -> None:
        """Do everything that is queued."""
        with self.lock:
            for stream in self._streams:
                self.drain(stream)

    @staticmethod
    def _step(stream: LateStream, *, forced: bool) -> bool:
        task = stream.tasks[0]
        if not task(forced):
            return False
        stream.tasks.popleft()
        return True
