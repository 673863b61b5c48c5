"""A process that is killed, in place of any one change to its files, and resumed: the same bits as one left alone."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ffstream.ground.folder import TEMPORARY
from tests.torture.faults import Faults, Outcome, in_child
from tests.torture.work import be_steady, describe, digest_tree, make_config, train

_MOST_ROOM_BYTES = 8 << 20


@dataclass
class Counts:
    """What became of the cases of a kind."""

    num_cases: int = 0
    num_exact: int = 0  # resumed to the same bits; of nonsense: taken, or refused
    num_refused: int = 0  # of them, those stopped by name first
    failures: list[str] = field(default_factory=list)  # anything else

    def add(self, what: str, problem: str | None, *, refused: bool = False) -> None:
        """One more case, and what is wrong with it."""
        self.num_cases += 1
        if problem is not None:
            self.failures.append(f"{what}: {problem}")
        else:
            self.num_exact += 1
            self.num_refused += refused

    def describe(self) -> str:
        """In a line."""
        return (
            f"{self.num_cases} cases, {self.num_exact} as they must be, "
            f"{self.num_refused} of them refused by name, {len(self.failures)} silent errors"
        )


class Bench:
    """A workload, what it does when it is left alone, and room to do it again."""

    def __init__(self, name: str, faults: Faults, folder: Path, data: Path) -> None:
        self.name, self.faults, self.data = name, faults, data
        self.place = folder / name
        self.run_dir = self.place / "run"
        self.config = make_config(name, data)
        self.place.mkdir(parents=True, exist_ok=True)
        self._num_attempts = 0  # at what is there
        self._known: dict[str, str | None] = {}  # what became of a resume, by what it found
        train(self.config, self.run_dir)  # here, so that what is planned is known to every child
        found = self.attempt(lambda: None)
        assert found.finished, found
        self.num_changes: int = found.value["changes"]
        self.whole = self.describe().value
        assert self.whole["temporary"] == [], self.whole

    def points(self, stride: int) -> range:
        """Every `stride`-th change."""
        return range((stride + 1) // 2, self.num_changes + 1, stride)

    def clear(self) -> None:
        """As before any run."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        self._num_attempts = 0

    def attempt(self, arm: Callable[[], Any], *, fresh: bool = True, then: Callable[[], Any] = lambda: None) -> Outcome:
        """Train, or go on, with what `arm` arms; `then` is called at the end."""
        if fresh:
            self.clear()
        self._num_attempts += 1

        def work() -> dict[str, int]:
            be_steady(self._num_attempts)
            self.faults.watch(self.place)
            arm()
            train(self.config, self.run_dir)
            then()
            return {"changes": self.faults.count()}

        return in_child(work)

    def describe(self) -> Outcome:
        """What is there."""
        return in_child(lambda: describe(self.run_dir))

    def find_difference(self) -> str | None:
        """Go on undisturbed, and say what is then other than in a run that was left alone.

        What a resume does is a function of what it finds, to which most of the faults of a kind come down: the same
        bytes are gone on with once.
        """
        found = f"{self.config} {digest_tree(self.place)}"
        if found not in self._known:
            self._known[found] = self._go_on()
        return self._known[found]

    def _go_on(self) -> str | None:
        self._num_attempts = -1  # always the same names
        resumed = self.attempt(lambda: None, fresh=False)
        if not resumed.finished:
            return f"resume ended with {resumed}"
        found = self.describe()
        if not found.finished:
            return f"what is resumed cannot be read: {found}"
        different = [key for key in self.whole if found.value[key] != self.whole[key]]
        return f"{', '.join(different)} differ after resume" if different else None


def kill_everywhere(bench: Bench, stride: int, counts: Counts) -> None:
    """SIGKILL in place of every `stride`-th change."""
    for number in bench.points(stride):
        ended = bench.attempt(lambda number=number: bench.faults.kill_before(number))
        what = f"{bench.name}, killed at change {number}"
        if not ended.signal and not ended.finished:  # threads differ by a few changes from run to run
            counts.add(what, f"ended with {ended}")
            continue
        counts.add(what, bench.find_difference())


def kill_often(bench: Bench, num_cases: int, counts: Counts) -> None:
    """Two to four kills, each of the resume after the one before."""
    chance = random.Random(0)
    for case in range(num_cases):
        numbers = [chance.randint(1, bench.num_changes) for _ in range(chance.randint(2, 4))]
        numbers[1:] = [max(number // 3, 1) for number in numbers[1:]]
        bench.clear()
        for number in numbers:
            bench.attempt(lambda number=number: bench.faults.kill_before(number), fresh=False)
        counts.add(f"{bench.name}, case {case}, killed at changes {numbers}", bench.find_difference())


def interrupt_often(bench: Bench, num_cases: int, counts: Counts) -> None:
    """SIGINT or SIGTERM, as the command line handles it, at a random moment."""
    chance = random.Random(1)
    start_s = time.monotonic()
    bench.attempt(lambda: None)
    longest_s = time.monotonic() - start_s

    def arm(number: int, after_s: float) -> None:
        def interrupt(_number: int, _frame: object) -> None:
            raise KeyboardInterrupt

        signal.signal(number, interrupt)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
        signal.setitimer(signal.ITIMER_REAL, after_s)

    for case in range(num_cases):
        number, after_s = chance.choice((signal.SIGINT, signal.SIGTERM)), chance.uniform(0.01, longest_s)
        ended = bench.attempt(partial(arm, number, after_s))
        what = f"{bench.name}, case {case}, {number.name} after {after_s:.3f} s"
        left = [str(path) for path in bench.place.rglob(f"{TEMPORARY}*")] if ended.refusal == "interrupted" else []
        if not ended.finished and ended.refusal != "interrupted":
            counts.add(what, f"ended with {ended}")
        else:
            counts.add(what, f"left {left}" if left else bench.find_difference(), refused=bool(ended.refusal))


def starve(bench: Bench, num_cases: int, counts: Counts) -> None:
    """Address space for so much more than there is when training starts: what does not fit is refused by name.

    A product is taken before: MKL keeps the buffers that it makes for one, and without room for them rounds otherwise.
    """
    config, whole = bench.config, bench.whole
    large: dict[str, Any] = {"width": 1024, "layers": 2, "epochs": 1}
    if config.network.tile_units != "auto":
        large["network.tile_units"] = 512
    bench.config = config.override(large)
    assert bench.attempt(lambda: None).finished
    bench.whole = bench.describe().value
    chance = random.Random(2)

    def arm(room_bytes: int) -> None:
        torch.mm(*torch.ones(2, 2048, 2048))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + room_bytes, resource.RLIM_INFINITY))

    for case in range(num_cases):
        room_bytes = chance.randrange(_MOST_ROOM_BYTES)
        ended = bench.attempt(partial(arm, room_bytes))
        what = f"{bench.name}, case {case}, {room_bytes >> 20} MiB of room"
        one_line = ended.refusal and "\n" not in ended.refusal
        left = [str(path) for path in bench.place.rglob(f"{TEMPORARY}*")]
        if not ended.finished and not one_line:
            counts.add(what, f"ended with {ended}")
            continue
        counts.add(what, f"left {left}" if left else bench.find_difference(), refused=bool(ended.refusal))
    bench.config, bench.whole = config, whole


def fail_everywhere(bench: Bench, errors: Iterable[int], stride: int, counts: Counts, *, lasting: bool) -> None:
    """Every `stride`-th change fails with an errno, once or from then on, as on a full disk; then all is well again."""
    for error in errors:
        for number in bench.points(stride):
            last = 1 << 40 if lasting else number
            ended = bench.attempt(lambda n=number, e=error, last=last: bench.faults.fail(n, last, e))
            what = f"{bench.name}, errno {error} {'from' if lasting else 'at'} change {number}"
            if ended.bug or ended.hung or ended.signal:
                counts.add(what, f"ended with {ended}")
                continue
            if ended.refusal and "\n" in ended.refusal:
                counts.add(what, f"said more than one line: {ended.refusal}")
                continue
            counts.add(what, bench.find_difference(), refused=bool(ended.refusal))
