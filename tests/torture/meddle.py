"""Somebody meddles with a run while it is gone on with or read: puts own files in its way, or alters the run's.

The process at work counts its operations on files, and does the meddling itself in front of one of them, so that every
moment can be tried: between a check and what is done then as well.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ffstream as ff
from tests.helpers import layer_digests
from tests.torture.crash import Bench, Counts
from tests.torture.faults import Outcome, in_child
from tests.torture.work import stop_in_second_layer, train

_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")
_MINE = b"mine, and nobody else's\n"

# Where a file, a folder or a link of somebody's may come to lie: beside what is the run's, below it, and in its way.
_PLACES = (
    "notes",
    "layers/notes",
    "layers/000/notes",
    "layers/001",
    "layers/002",
    "layers/002/weights.safetensors",
    "progress/notes",
    "progress/layer-001-epoch-0002.safetensors",
    "cache/mine",
    "cache/{own}/mine",
    "cache/{own}/001-train/mine",
    "cache/{own}/002-train",
    "readout",
    "damaged-1",
    ".tmp-mine",
    "layers/.tmp-mine",
    "lock.json.mine",
    "lock-mine.json",
)


class _Meddler:
    """Counts what this process does with files, on any thread, and calls something before one of these operations."""

    def __init__(self, at: int, meddle: Callable[[str], None]) -> None:
        self.num_seen = 0
        self._at, self._meddle = at, meddle
        self._lock = threading.Lock()
        self._is_at_work = False
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or self._is_at_work:
            return
        with self._lock:
            self.num_seen += 1
            is_now = self.num_seen == self._at
        if is_now:
            self._is_at_work = True
            try:
                self._meddle(os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else "")
            finally:
                self._is_at_work = False


def meddle(bench: Bench, stride: int, counts: Counts) -> None:
    """Before every `stride`-th operation of a resume and of an evaluation, for each way to meddle."""
    kept = bench.place.parent / "meddled"
    shutil.rmtree(kept, ignore_errors=True)
    assert in_child(partial(_stop, bench, kept)).finished
    for verb, use in (("resumed", _resume), ("evaluated", _evaluate)):
        right = _attempt(bench, kept, use, 0, lambda _: None)
        assert right.finished, right
        chance = random.Random(verb)
        for number in range(1 + stride // 2, right.value["steps"] + 1, stride):
            for how in ("foreign", "altered", "altered later"):
                seed = chance.random()
                ended = _attempt(bench, kept, use, number, partial(_WAYS[how], bench.run_dir, seed))
                what = f"{bench.name}, {verb}, {how} at operation {number} of {right.value['steps']}"
                counts.add(what, _find_problem(bench, ended, right.value["found"]), refused=bool(ended.refusal))


def _stop(bench: Bench, path: Path) -> None:
    try:
        train(bench.config, path, stop_in_second_layer(bench.config))
    except KeyboardInterrupt:
        return


def _attempt(
    bench: Bench, kept: Path, use: Callable[[Bench], Any], number: int, meddle_with: Callable[[str], None]
) -> Outcome:
    bench.clear()
    shutil.copytree(kept, bench.run_dir)

    def work() -> dict[str, Any]:
        meddler = _Meddler(number, meddle_with)
        found = use(bench)
        return {"found": found, "steps": meddler.num_seen}

    return in_child(work)


def _resume(bench: Bench) -> Any:
    train(bench.config, bench.run_dir)
    return layer_digests(bench.run_dir)[: bench.config.layers]


def _evaluate(bench: Bench) -> Any:
    run = ff.Run(bench.run_dir)
    images = run.evaluate("goodness", "validation").errors_by_depth
    return [images, run.load().state_dict()["layers.0.linear.weight"].sum().item()]


def _find_problem(bench: Bench, ended: Outcome, right: Any) -> str | None:
    """What is wrong: other results, an end that is no refusal, or bytes of somebody's that were changed."""
    if ended.bug or ended.hung or ended.signal:
        return f"ended with {ended}"
    if "\n" in ended.refusal:
        return f"said more than one line: {ended.refusal}"
    if ended.finished and ended.value["found"] != right:
        # A file that was altered after its last use is found when the run is looked at again.
        verified = in_child(lambda: ff.Run(bench.run_dir).verify())
        if not verified.refusal:
            return f"was not noticed, and other numbers came out; verified: {verified}"
    record = bench.run_dir.parent / "planted"
    if record.exists():
        planted = Path(record.read_text())
        found = [path for path in bench.run_dir.rglob("*") if path.is_file() and path.read_bytes() == _MINE]
        outside = bench.run_dir.parent / "outside"
        if outside.read_bytes() != _MINE:
            return f"a file behind the link {planted} was written to"
        if not found and not planted.is_symlink() and not list(bench.run_dir.rglob(planted.name)):
            return f"{planted} is gone"
    return None


def _plant(run_dir: Path, seed: float, _path: str) -> None:
    """Put a file, a folder with a file, or a link to a file somewhere."""
    chance = random.Random(seed)
    own = next((path.name for path in (run_dir / "cache").glob("ffstream-*")), "ffstream-none")
    path = run_dir / chance.choice(_PLACES).format(own=own)
    (run_dir.parent / "outside").write_bytes(_MINE)
    if path.exists() or path.is_symlink():
        path = path.parent / "notes"
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = chance.choice(("file", "folder", "link"))
    if kind == "folder":
        path.mkdir()
        (path / "mine").write_bytes(_MINE)
    elif kind == "link":
        path.symlink_to(run_dir.parent / "outside")
    else:
        path.write_bytes(_MINE)
    (run_dir.parent / "planted").write_text(str(path))


def _alter(run_dir: Path, seed: float, path: str) -> None:
    """Flip a bit of the file that is about to be opened, in place."""
    file = _find(run_dir, path)
    if file is not None and file.stat().st_size:
        data = bytearray(file.read_bytes())
        place = int(seed * len(data))
        data[place] ^= 1 << int(seed * 8000) % 8
        with file.open("r+b") as target:
            target.write(data)


def _alter_any(run_dir: Path, seed: float, _path: str) -> None:
    """Flip a bit of some file of the run that is not about to be opened, but was perhaps, or will be."""
    files = sorted(path for path in run_dir.rglob("*") if path.is_file() and "lock" not in path.name)
    if files:
        _alter(run_dir, seed, str(files[int(seed * len(files))]))


def _find(run_dir: Path, name: str) -> Path | None:
    """The file of the run of that name, which may be relative to one of its folders."""
    if not name:
        return None
    folders = [run_dir, run_dir / "cache"]
    for path in [Path(name), *(folder / name for folder in folders)]:
        if path.is_absolute() and run_dir in path.parents and path.is_file() and "lock" not in path.name:
            return path
    return None


_WAYS = {"foreign": _plant, "altered": _alter, "altered later": _alter_any}
