"""Nonsense of every kind wherever a file or a word of a user is read: it is taken, or refused in one line.

Cases are drawn by hypothesis, which shrinks what fails to its least form. They are read in one process, so that a
million take minutes; what hangs is interrupted, and what asks for more memory than there is does not get it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

import ffstream as ff
from tests.torture.crash import Counts
from tests.torture.fuzz_targets import Target, make_targets

_LIMIT_S = 120.0  # of one case
_ROOM_BYTES = 3 << 30  # of address space beside what there is
_NUM_TOGETHER = 2000  # cases: hypothesis keeps account of all that it has drawn


class _HungError(BaseException):
    """A case that takes too long."""


def fuzz(folder: Path, num_cases: int, first_seed: int, counts: Counts) -> None:
    """Draw cases for every target, and add what became of them."""
    place = folder / "fuzz" / "a" / "b"  # so that what is two folders above is known
    place.mkdir(parents=True)
    targets = make_targets(place)
    before = _snapshot(folder / "fuzz", place)
    shares = sum(target.share for target in targets)
    signal.signal(signal.SIGALRM, _interrupt)
    here = Path.cwd()
    os.chdir(place)  # where names without a folder lie
    try:
        with _memory_limited():
            for target in targets:
                left = max(round(num_cases * target.share / shares), 3)
                for number in range(-(-left // _NUM_TOGETHER)):
                    _draw(target, min(left - number * _NUM_TOGETHER, _NUM_TOGETHER), first_seed + number, counts)
                    written = [name for name in _snapshot(folder / "fuzz", place) if name not in before]
                    if written:
                        counts.failures.append(f"{target.name}: wrote {written} outside of its folder")
                print(f"fuzz {target.name}: {counts.num_cases} so far, {len(counts.failures)} wrong", flush=True)
    finally:
        os.chdir(here)


def _draw(target: Target, num_cases: int, number: int, counts: Counts) -> None:
    @seed(number)
    @settings(
        max_examples=num_cases,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(target.cases)
    def attempt(case: Any) -> None:
        counts.num_cases += 1
        signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
        try:
            target.meet(case)
            counts.num_exact += 1
        except ff.FFStreamError as error:
            _check_refusal(error)
            counts.num_exact += 1
            counts.num_refused += 1
        except _HungError as error:
            raise AssertionError("hangs") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    try:
        attempt()
    except Exception as found:
        for error in getattr(found, "exceptions", [found]):
            counts.failures.append(f"{target.name}: {_describe(error)}")


def _describe(error: Exception) -> str:
    """What, where, and the least case that leads to it."""
    frames = reversed(traceback.extract_tb(error.__traceback__)[-4:])
    where = ", in ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    case = " ".join(" ".join(getattr(error, "__notes__", [])).split())
    return f"{type(error).__name__}: {str(error)[:300]} in {where}; {case[-500:]}"


def _check_refusal(error: ff.FFStreamError) -> None:
    assert str(error), "a refusal says what is wrong"
    assert "\n" not in str(error), f"a refusal is one line: {error}"


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _HungError


@contextlib.contextmanager
def _memory_limited() -> Iterator[None]:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ROOM_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _snapshot(folder: Path, inside: Path) -> list[str]:
    """What there is in a folder, but for another one in it."""
    return [str(path) for path in folder.rglob("*") if path != inside and inside not in path.parents]
