"""People's data, changed as people's data are: each is read as it was meant, or refused, or spoken of by name.

A clean set of arrays, or folder of pictures, is changed by one or two steps that a seed draws. Some steps change how it
is written and not what it says; of these nothing may be said, and the figures are those of the clean twin. The others
change what it says, or hide it: then the figures are those of the clean twin all the same, or an error or a warning
names what was changed. Nothing else is allowed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ffstream as ff
from tests.torture.changed_arrays import CHANGES, REWRITES, as_floats, make_arrays, write_arrays
from tests.torture.changed_folders import LAYOUTS, MISHAPS, REWRITTEN, make_pictures
from tests.torture.crash import Counts

_TOLERANCE = 0.06  # of the test error: that of another seed
_CLEAN_ERROR = 0.12  # at most, so that what is lost shows
_NUM_DRAWS, _SHARE_UNLEARNT = 4, 0.03  # draws of a set until one is learnt, and the share that may be drawn anew
_SHARE_FOLDERS, _SHARE_ENVIRONMENTS = 0.25, 0.03  # of the cases; the latter start processes
_SETTINGS = {"layers": 2, "width": 48, "epochs": 10, "device": "cpu", "precision": "fp32"}


# --- environments


_ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "ASCII": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "latin-1": {"PYTHONIOENCODING": "latin-1", "LANG": "C"},
    "no home": {"HOME": None},
    "a home that is not there": {"HOME": "/nonexistent/home"},
    "a terminal of 40 columns": {"COLUMNS": "40"},
    "no terminal": {"TERM": "dumb", "NO_COLOR": "1"},
    "a backend of a notebook": {"MPLBACKEND": "module://nowhere.backend"},
    "a temporary folder that is not there": {"TMPDIR": "/nonexistent/tmp"},
    "passive threads": {"OMP_WAIT_POLICY": "passive"},
    "no path": {"PATH": None},
    "warnings as errors of others": {"PYTHONWARNINGS": "error::DeprecationWarning:nowhere"},
    "an own cache": {"XDG_CACHE_HOME": "/nonexistent/cache"},
}
_PLACES = [
    "plain",
    "with space",
    "$HOME",
    "_leading",
    "-dash",
    "quote'",
    "ünïcode",
    "per%cent",
    "semi;colon",
    "new\nline",
]


# --- what becomes of them


class _Listener(ff.Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_warning(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class _Outcome:
    """Of a training and an evaluation."""

    error: float | None  # None: refused
    class_names: list[str]
    num_test: int
    said: str


def _use(data: Path, folder: Path, standardise: str = "none") -> _Outcome:
    shutil.rmtree(folder, ignore_errors=True)
    listener = _Listener()
    try:
        settings = _SETTINGS | {"standardise": standardise}
        run = ff.train(ff.Config(data=str(data)).override(settings), folder, observer=listener)
        found = run.evaluate()
    except ff.FFStreamError as error:
        text = str(error)
        if "\n" in text:
            raise AssertionError(f"several lines: {text}") from error
        return _Outcome(None, [], 0, "; ".join([*listener.said, text]))
    said = [*listener.said, *([found.warning] if found.warning else [])]
    return _Outcome(found.error, found.class_names, found.num_samples, "; ".join(said))


def _judge(clean: _Outcome, found: _Outcome, *, may_differ: bool, words: list[str]) -> str | None:
    """What is wrong; None if nothing is."""
    if found.said and not may_differ:
        return f"said of what means the same: {found.said[:300]}"
    if found.said and any(word.lower() in found.said.lower() for word in words):
        return None
    if found.error is None:
        return f"refused without a word of {words}: {found.said[:300]}"
    same = (found.class_names, found.num_test) == (clean.class_names, clean.num_test)
    if same and clean.error is not None and found.error <= clean.error + _TOLERANCE:
        return None
    return (
        f"error {found.error:.2f} of {found.num_test} in classes {found.class_names}, the clean twin has {clean.error} "
        f"of {clean.num_test} in {clean.class_names}; said: {found.said[:300] or 'nothing'}"
    )


def mistake(folder: Path, num_cases: int, first_seed: int, counts: Counts) -> None:
    """Try so many cases, each a function of its seed."""
    unlearnt: list[float] = []
    for number in range(num_cases):
        draw = random.Random(f"{first_seed} {number}")
        place = folder / "meaning"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        chance = draw.random()
        try:
            if chance < _SHARE_ENVIRONMENTS:
                what, problem, refused = _try_environment(draw, place)
            elif chance < _SHARE_ENVIRONMENTS + _SHARE_FOLDERS:
                what, problem, refused = _try_folder(draw, place)
            else:
                what, problem, refused = _try_arrays(draw, place, unlearnt)
        except Exception as error:
            what, problem, refused = "a traceback", f"{type(error).__name__}: {error}", False
        counts.add(f"case {number} of seed {first_seed}, {what}", problem, refused=refused)
    many = f"{len(unlearnt)} of {num_cases} were drawn anew, with errors of {sorted(unlearnt)}"
    counts.add("clean sets", many if len(unlearnt) > max(_SHARE_UNLEARNT * num_cases, 1) else None)


def _try_arrays(draw: random.Random, place: Path, unlearnt: list[float]) -> tuple[str, str | None, bool]:
    for _ in range(_NUM_DRAWS):  # a set that so small a network does not learn would show no loss
        case = make_arrays(draw)
        standardise = draw.choice(["none", "none", "features", "channels"])
        clean = _use(write_arrays(case, place), place / "clean", standardise)
        if clean.said or clean.error is None or clean.error <= _CLEAN_ERROR:
            break
        unlearnt.append(clean.error)
    if clean.said or clean.error is None or clean.error > _CLEAN_ERROR:
        return "a clean set", f"error {clean.error}, said: {clean.said}", False
    if case.train.dtype == np.uint8 and draw.random() < 0.5:  # what hides values wants some that can be hidden
        as_floats(case)
    names = draw.sample(sorted(REWRITES), draw.randint(0, 2))
    if not names or draw.random() < 0.7:
        names.append(draw.choice(sorted(CHANGES)))
    changed = [name for name in names if name.startswith("labels")]
    names = [name for name in names if name not in changed[:-1]]  # one way of writing them
    for name in names:
        (CHANGES | REWRITES)[name](case)
    found = _use(write_arrays(case, place), place / "run", standardise)
    problem = _judge(clean, found, may_differ=case.may_differ, words=case.words)
    return f"arrays {case.train.shape} standardised by {standardise}: {', '.join(names)}", problem, found.error is None


def _try_folder(draw: random.Random, place: Path) -> tuple[str, str | None, bool]:
    data = place / "data"
    make_pictures(draw, data)
    clean = _use(data, place / "clean")
    if clean.said or clean.error is None or clean.error > _CLEAN_ERROR:
        return "a clean folder", f"error {clean.error}, said: {clean.said}", False
    mishap = draw.choice([None, *sorted(MISHAPS)])
    words = MISHAPS[mishap](draw, data) if mishap else []
    layout = draw.choice(sorted(LAYOUTS))
    if not mishap or (draw.random() < 0.4 and layout not in REWRITTEN):
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # what the mishap has moved
            LAYOUTS[layout](draw, data)
    else:
        layout = ""
    found = _use(data, place / "run")
    problem = _judge(clean, found, may_differ=mishap is not None, words=words)
    return f"a folder: {mishap}, {layout}", problem, found.error is None


def _try_environment(draw: random.Random, place: Path) -> tuple[str, str | None, bool]:
    name, other = draw.choice(sorted(_ENVIRONMENTS)), draw.choice(_PLACES)
    where = place / other
    where.mkdir()
    data = where / "data.npz"
    case = make_arrays(draw)
    write_arrays(case, where)
    clean = _use(data, place / "clean")
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    for key, value in _ENVIRONMENTS[name].items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    said = []
    for command in (
        ["train", "--data", "data.npz", "--run-dir", "run", *_options()],
        ["evaluate", "run", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ffstream", *command],
            cwd=where,
            env=environment,
            capture_output=True,
            check=False,
        )
        said.append(done.stderr.decode(errors="replace"))
        if done.returncode or "Traceback" in said[-1] or "warning" in said[-1]:
            return f"{name} in {other!r}", f"{command[0]} ended with {done.returncode}: {said[-1][-300:]}", False
    found = json.loads(done.stdout)
    problem = None if found["error"] == clean.error else f"error {found['error']}, the clean twin has {clean.error}"
    return f"{name} in {other!r}", problem, False


def _options() -> Iterator[str]:
    for name, value in _SETTINGS.items():
        yield from (f"--{name}", str(value))
