"""Writers that race for one folder, at every step of opening it: in an order that is drawn, and not left to luck.

Each writer is a process that stops before every operation on files, and goes on when it is told. Which one is next is
drawn by a seed, so that any case can be repeated.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ffstream as ff
from ffstream.device import reservations
from tests.helpers import layer_digests
from tests.torture.crash import Counts
from tests.torture.work import make_config

_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "fcntl.flock"}
_NUM_STEPS = 160  # of a writer that are put in order: opening a run takes about as many; then it runs freely
_LIMIT_S = 60.0
_WAIT_S = 0.1  # for another writer that is planning: one that is stopped meanwhile would be waited for in vain


@dataclass
class _Writer:
    """A process that races, and what it said at its end."""

    pid: int
    asks: int  # a descriptor: a byte for each step, and JSON at the end
    answers: int  # a byte that lets it go on
    is_waiting: bool = False
    end: dict[str, Any] | None = None


def race(folder: Path, data: Path, num_cases: int, counts: Counts) -> None:
    """Two to four writers of one folder, or of names that they choose; with locks that work, and that do nothing."""
    right = {seed: _train_alone(folder / f"right-{seed}", data, seed) for seed in range(2)}
    for case in range(num_cases):
        chance = random.Random(case)
        place = folder / "race"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        lies, named = chance.random() < 0.4, chance.random() < 0.7
        seeds = [chance.randrange(2) for _ in range(chance.randint(2, 4))]
        resumes = [chance.random() < 0.4 for _ in seeds]
        if named and chance.random() < 0.3:  # a run is there already, and not finished
            _train_alone(place / "run", data, 0, num_layers=1)
        work = [
            partial(_write, place, data, seed, resume=resume, named=named, lies=lies)
            for seed, resume in zip(seeds, resumes, strict=True)
        ]
        ends = _run_together(work, chance)
        what = f"race, case {case}: seeds {seeds}, resume {resumes}, locks {'lie' if lies else 'work'}, named {named}"
        problem = _find_problem(place, ends, right, named=named)
        counts.add(what, problem, refused=any(end is not None and end.get("refusal") for end in ends))


def _train_alone(path: Path, data: Path, seed: int, num_layers: int = 2) -> list[str]:
    config = make_config("host", data).override({"layers": num_layers, "epochs": 1, "seed": seed})
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        ff.train(config, path)
        os._exit(0)
    os.waitpid(child, 0)
    return layer_digests(path)


def _write(place: Path, data: Path, seed: int, *, resume: bool, named: bool, lies: bool) -> None:
    if lies:
        setattr(fcntl, "flock", lambda *_: None)  # noqa: B010
    os.chdir(place)
    config = make_config("host", data).override({"layers": 2, "epochs": 1, "seed": seed})
    if named:
        ff.train(config, "run", resume=resume)
    else:
        ff.train(config)


def _find_problem(place: Path, ends: list[Any], right: dict[int, list[str]], *, named: bool) -> str | None:
    """What is wrong with what the writers left."""
    if any(end is None for end in ends):
        return "a writer hangs"
    bugs = [end["bug"] for end in ends if end.get("bug")]
    if bugs:
        return f"ended with {bugs[0]}"
    if any("\n" in end.get("refusal", "") for end in ends):
        return "a refusal has more than one line"
    paths = [place / "run"] if named else sorted((place / "runs").glob("*"))
    num_done = sum(end.get("done", False) for end in ends)
    if not named and (num_done != len(ends) or len(paths) != len(ends)):
        return f"{num_done} of {len(ends)} writers have a run of their own, in {len(paths)} folders: {ends}"
    if not num_done and not paths[0].exists():
        return f"nobody could write: {ends}"
    for path in paths:
        run = ff.Run(path)
        try:
            run.verify()
        except ff.FFStreamError as error:
            return f"what {path.name} holds cannot be verified: {error}"
        if layer_digests(path) != right[run.config.seed][: run.num_layers_done]:
            return f"{path.name} has the configuration of one training and the weights of another"
        if num_done and run.num_layers_done != 2:
            return f"{path.name} is said to be done, and has {run.num_layers_done} layers"
    return None


def _run_together(work: list[Callable[[], None]], chance: random.Random) -> list[dict[str, Any] | None]:
    """Let one writer after another take a step, as chance has it. Returns how each ended; None of one that hangs."""
    writers = [_start(each) for each in work]
    ends_s = time.monotonic() + _LIMIT_S
    while any(writer.end is None for writer in writers) and time.monotonic() < ends_s:
        for writer in writers:
            if writer.end is None and not writer.is_waiting:
                _listen(writer, ends_s)
        waiting = [writer for writer in writers if writer.end is None and writer.is_waiting]
        if waiting:
            chosen = chance.choice(waiting)
            chosen.is_waiting = False
            os.write(chosen.answers, b"!")
    for writer in writers:
        if writer.end is None:
            os.kill(writer.pid, signal.SIGKILL)
        os.waitpid(writer.pid, 0)
        os.close(writer.asks)
        os.close(writer.answers)
    return [writer.end for writer in writers]


def _listen(writer: _Writer, ends_s: float) -> None:
    """Wait until a writer asks for a step, or ends."""
    if not select.select([writer.asks], [], [], max(ends_s - time.monotonic(), 0))[0]:
        return
    said = os.read(writer.asks, 1)
    if said == b"?":
        writer.is_waiting = True
        return
    text = said
    while part := os.read(writer.asks, 1 << 16):
        text += part
    writer.end = json.loads(text or b'{"bug": "died"}')


def _start(work: Callable[[], None]) -> _Writer:
    asks, asking = os.pipe()
    answering, answers = os.pipe()
    pid = os.fork()
    if pid:
        os.close(asking)
        os.close(answering)
        return _Writer(pid, asks, answers)
    end: dict[str, Any] = {}
    left = [_NUM_STEPS]

    def step(event: str, _arguments: object) -> None:
        if event in _EVENTS and left[0] > 0 and threading.current_thread() is threading.main_thread():
            left[0] -= 1
            os.write(asking, b"?")
            os.read(answering, 1)

    try:
        torch.set_num_threads(1)
        setattr(reservations, "_WAIT_S", _WAIT_S)  # noqa: B010
        sys.addaudithook(step)
        work()
        end = {"done": True}
    except ff.FFStreamError as error:
        end = {"refusal": str(error)}
    except BaseException as error:
        end = {"bug": f"{type(error).__name__}: {error}"}
    left[0] = 0
    with contextlib.suppress(OSError):
        os.write(asking, json.dumps(end).encode())
    os._exit(0)
