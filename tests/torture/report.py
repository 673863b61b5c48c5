"""What torture found, a row for each workload and kind: written as found, so that hours of it can be gone on with."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from ffstream.ground.folder import Folder
from tests.torture.crash import Counts


@dataclass(frozen=True)
class Report:
    """`torture.json` in a folder, which several processes may fill at a time; without a folder all is only printed."""

    folder: Path | None

    def add(self, name: str, options: dict[str, Any], work: Callable[[Counts], None]) -> Counts:
        """Count what `work` tries, unless the row `name` was filled with these options at this commit."""
        machine = describe_machine("cpu")
        with self._open() as rows:
            found = rows.get(name, {})
        known = "dirty" not in machine["commit"] and found.get("commit") == machine["commit"]
        if known and found["options"] == options:
            print(f"{name}: in the report, not tried again", flush=True)
            return Counts(**{key: found[key] for key in vars(Counts())})
        counts, start_s = Counts(), time.monotonic()
        work(counts)
        took_s = round(time.monotonic() - start_s)
        with self._open() as rows:
            rows[name] = machine | {"options": options, "took_s": took_s} | vars(counts)
        print(f"{name}: {counts.describe()}, {took_s} s", flush=True)
        return counts

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """The rows so far, kept as they are at the end."""
        if self.folder is None:
            yield {}
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "torture.json"
        place = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(place, fcntl.LOCK_EX)
            before = path.read_text() if path.exists() else "{}"
            rows = json.loads(before)
            yield rows
            after = json.dumps(dict(sorted(rows.items())), indent=1) + "\n"
            if rows and after != before:  # whole or not at all, as a disk may be full
                Folder(self.folder).write(path.name, after.encode())
        finally:
            os.close(place)
