"""metrics.jsonl: one line an epoch and one a layer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ffstream.errors import CorruptFileError
from ffstream.files import storage_errors, write_atomic


@dataclass(frozen=True)
class MetricsSeal:
    """What the first lines of a file of metrics were when something was committed that they tell of."""

    num_bytes: int
    sha256: str

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)


class MetricsFile:
    """Appends records; every record is one JSON object with a "kind" ("epoch" or "layer") and a "layer" from 1.

    `rewind` comes before the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest, self._num_bytes = hashlib.sha256(), 0

    def append(self, record: dict[str, Any]) -> None:
        """Add one line, which a later `sync` makes durable."""
        line = _encode(record)
        with storage_errors(self._path), self._path.open("ab") as file:
            file.write(line)
        self._count(line)

    def sync(self) -> None:
        """Write all lines through to the disk: before what they tell of is committed.

        A file that was taken away is not missed.
        """
        with storage_errors(self._path), contextlib.suppress(FileNotFoundError), self._path.open("rb+") as file:
            os.fsync(file.fileno())

    def seal(self) -> MetricsSeal:
        """Of all lines so far."""
        return MetricsSeal(self._num_bytes, self._digest.hexdigest())

    def check(self, seal: MetricsSeal) -> None:
        """Raises CorruptFileError when the lines that were sealed are not there any more as they were.

        A file that is gone was taken away by somebody, who does without it.
        """
        try:
            with self._path.open("rb") as file:
                found = file.read(seal.num_bytes)
        except FileNotFoundError:
            return
        if hashlib.sha256(found).hexdigest() != seal.sha256:
            raise CorruptFileError(
                f"metrics {self._path}: altered or cut short since they were written (their digest differs); "
                "restore them from a copy, or delete the file to go on without"
            )

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
        if not self._path.exists():
            return
        kept = b"".join(
            _encode(record)
            for record in self.read()
            if record["layer"] <= num_layers
            or (record["layer"] == num_layers + 1 and record["kind"] == "epoch" and record["epoch"] <= num_epochs)
        )
        write_atomic(self._path, kept)
        self._digest, self._num_bytes = hashlib.sha256(), 0
        self._count(kept)

    def _count(self, lines: bytes) -> None:
        self._digest.update(lines)
        self._num_bytes += len(lines)


def _encode(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()
