"""A deep run that is killed every few seconds and started again until it is done; and what it holds meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ffstream as ff
from ffstream.device.memory import resident_bytes
from tests.helpers import layer_digests
from tests.torture.crash import Counts
from tests.torture.faults import in_child
from tests.torture.work import make_config

_SETTLED = 10  # layers after which nothing may grow
_MIB = 1 << 20
_MOST_GROWTH_BYTES = 16 * _MIB  # of the resident set, which counts what libraries load late


class _Holdings(ff.Observer):
    """What the process, and the run's temporary files, hold when a layer is finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen: list[dict[str, int]] = []

    def on_layer(self, figures: ff.LayerFigures) -> None:
        """One more row."""
        files = [file for name in ("cache", "progress") for file in (self._path / name).rglob("*") if file.is_file()]
        self.seen.append(
            {
                "descriptors": len(list(Path("/proc/self/fd").iterdir())),
                "threads": threading.active_count(),
                "resident bytes": resident_bytes(),
                "files": len(files),
            }
        )


def soak(folder: Path, data: Path, num_layers: int, longest_s: float, counts: Counts) -> None:
    """Train `num_layers` of 64 units at once, then once more with a kill every so often, `longest_s` at most."""
    config = make_config("disk", data).override({"layers": num_layers, "width": 64, "epochs": 2})
    whole, killed = folder / "soak-whole", folder / "soak-killed"

    def train_whole() -> list[dict[str, Any]]:
        holdings = _Holdings(whole)
        ff.train(config, whole, observer=holdings)
        return holdings.seen

    found = in_child(train_whole)
    if not found.finished:
        counts.add("soak, left alone", f"ended with {found}")
        return
    rows, last = found.value, found.value[-1]
    for name in last:  # other threads may be at work on a file: the least of some layers, against the most of some
        settled = max(row[name] for row in rows[_SETTLED : 2 * _SETTLED])
        end = min(row[name] for row in rows[-_SETTLED:])
        allowed = settled + (_MOST_GROWTH_BYTES if name == "resident bytes" else 0)
        what = f"soak, {name}: {settled} at layers {_SETTLED + 1} to {2 * _SETTLED}, {end} at {num_layers}"
        counts.add(what, f"allowed {allowed}" if end > allowed else None)
    chance, num_kills, is_done, limit_s = random.Random(0), 0, False, longest_s
    while not is_done:
        before = _list_saved(killed)
        child = os.fork()
        if child == 0:
            ff.train(config, killed, resume=True)
            os._exit(0)
        ends_s = time.monotonic() + chance.uniform(limit_s / 4, limit_s)
        while time.monotonic() < ends_s and not (ended := os.waitpid(child, os.WNOHANG)[0]):
            time.sleep(0.01)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            num_kills += 1
        is_done = bool(ended)
        # Where a start takes as long as a life, as on a machine that others use, nothing would ever be done.
        limit_s = longest_s if _list_saved(killed) != before else 1.5 * limit_s
    same = layer_digests(killed) == layer_digests(whole)
    counts.add(f"soak, {num_kills} kills", None if same else "other weights than in a run that was left alone")
    print(f"soak: {num_layers} layers, {num_kills} kills, {last}", flush=True)
    shutil.rmtree(killed)
    shutil.rmtree(whole)


def _list_saved(path: Path) -> list[str]:
    """What of a run would be there after a kill."""
    return sorted(str(each) for name in ("layers", "progress") for each in path.glob(f"{name}/*"))
