"""metrics.jsonl: one line an epoch and one a layer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ffstream.files import storage_errors, write_atomic


class MetricsFile:
    """Appends records; every record is one JSON object with a "kind" ("epoch" or "layer") and a "layer" from 1."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add one line, which a later `sync` makes durable."""
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def sync(self) -> None:
        """Write all lines through to the disk: before what they tell of is committed."""
        with storage_errors(self._path), self._path.open("rb+") as file:
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one torn by a crash is left out."""
        records = []
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
        return records

    def rewind(self, num_layers: int, num_epochs: int) -> None:
        """Keep what belongs to `num_layers` finished layers and `num_epochs` epochs of the next one.

        A resumed run takes the later epochs again, so that no line stands twice.
        """
        kept = [
            record
            for record in self.read()
            if record["layer"] <= num_layers
            or (record["layer"] == num_layers + 1 and record["kind"] == "epoch" and record["epoch"] <= num_epochs)
        ]
        write_atomic(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())
