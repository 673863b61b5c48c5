"""Files that are not what they should be: of hostile sizes, or no regular files. Each is refused at once."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ffstream as ff
from ffstream.ground.folder import Folder
from ffstream.run.cleaning import clean_run
from ffstream.run.repair import diagnose
from ffstream.storage.manifest import write_manifest
from tests.torture.crash import Bench, Counts
from tests.torture.faults import in_child
from tests.torture.work import stop_in_second_layer, train

_ROOM_BYTES = 1 << 30  # of address space beside what there is
_LIMIT_S = 20.0
_HUGE_BYTES = 6 << 30


def _make_sparse(path: Path) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(_HUGE_BYTES)


def _replace(make: Callable[[Path], object], path: Path) -> None:
    path.unlink(missing_ok=True)
    make(path)


def _reseal(change: dict[str, Any], path: Path) -> None:
    """A manifest that says something else, with the right digest of its own."""
    if path.suffix != ".json":
        return
    content = json.loads(path.read_text() or "{}")  # of a lock that was not written
    content.pop("manifest_sha256", None)
    write_manifest(Folder(path.parent), path.name, content | change)


_HOSTILE: dict[str, Callable[[Path], object]] = {
    "6 GiB": _make_sparse,
    "a FIFO": partial(_replace, os.mkfifo),
    "a folder": partial(_replace, Path.mkdir),
    "a link to a device": partial(_replace, lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": partial(_replace, lambda path: path.symlink_to(path.name)),
    "nothing": partial(_replace, lambda path: path.write_bytes(b"")),
    "a number of 5,000 digits": partial(_replace, lambda path: path.write_text(f'{{"layer": {"1" * 5000}}}')),
    "a seal of 4 TiB": partial(_reseal, {"metrics": {"num_bytes": (1 << 42) - 1, "sha256": "0" * 64}}),
    "2^41 samples": partial(_reseal, {"num_classes": 1 << 41, "num_features": 1 << 41}),
    "a layer of 2^41": partial(_reseal, {"layer": 1 << 41}),
}


def meet_hostile(bench: Bench, stride: int, counts: Counts) -> None:
    """Every `stride`-th file of a stopped run, and of its lock, in each hostile form."""
    kept = bench.place.parent / "hostile"
    shutil.rmtree(kept, ignore_errors=True)
    assert in_child(partial(_stop, bench, kept)).finished
    (kept / "lock.json").write_text("")  # as an earlier version may have left it
    (kept / "lock-1-1-00000000-0000000000000000.json").write_text("")  # of another machine
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    cases = [(file, how) for file in files for how in _HOSTILE]
    for file, how in cases[stride // 2 :: stride]:
        bench.clear()
        shutil.copytree(kept, bench.run_dir)
        _HOSTILE[how](bench.run_dir / file)
        start_s = time.monotonic()
        ended = in_child(partial(_use, bench))
        problem = None
        if not ended.finished:
            problem = f"ended with {ended}"
        elif time.monotonic() - start_s > _LIMIT_S:
            problem = "took too long"
        counts.add(f"{bench.name}, {file} is {how}", problem, refused=bool(ended.value))


def _stop(bench: Bench, path: Path) -> None:
    try:
        train(bench.config, path, stop_in_second_layer(bench.config))
    except KeyboardInterrupt:
        return


def _use(bench: Bench) -> int:
    """Everything that can be done with a run. Returns how many of these were refused in a line."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ROOM_BYTES, resource.RLIM_INFINITY))
    num_refused = 0
    for use in (
        lambda: ff.Run(bench.run_dir).verify(),
        lambda: ff.Run(bench.run_dir).evaluate("goodness", "validation"),
        lambda: ff.load(bench.run_dir),
        lambda: diagnose(ff.Run(bench.run_dir).directory),
        lambda: clean_run(ff.Run(bench.run_dir)),
        lambda: train(bench.config, bench.run_dir),
    ):
        said = _find_refusal(use)
        assert "\n" not in said, said
        num_refused += bool(said)
    return num_refused


def _find_refusal(use: Callable[[], object]) -> str:
    try:
        use()
    except ff.FFStreamError as error:
        return str(error)
    return ""
