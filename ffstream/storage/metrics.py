"""metrics.jsonl: one line per epoch and one per layer. Each commit seals the lines that describe what it commits."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ffstream.errors import CorruptFileError
from ffstream.ground.files import storage_errors, sync_file, write_all
from ffstream.ground.folder import Folder

METRICS = "metrics.jsonl"
_CHUNK_BYTES = 1 << 20
_MAX_TAIL_BYTES = 1 << 26  # of unsealed lines; one epoch's have hundreds of bytes


@dataclass(frozen=True)
class MetricsSeal:
    """Length and digest of the first lines of the metrics file, which describe all that was committed by then."""

    num_bytes: int
    sha256: str

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Position:
    """How far a run has come: the layers and epochs that are committed."""

    num_layers: int  # in a run in rounds, of the round under way
    num_epochs: int  # of the next layer
    round: int = 0  # the one under way, which is the number of its epoch; 0 in a sequential run

    def is_before(self, record: dict[str, Any], most_layers: int) -> bool:
        """Whether a record is of what comes after this position, in a run of at most so many layers."""
        if not 0 < record["layer"] <= most_layers:
            return False
        if self.round:
            if record["kind"] != "epoch":
                return False
            return bool((record["epoch"], record["layer"]) > (self.round, self.num_layers))
        if record["layer"] <= self.num_layers:
            return False
        is_further = record["layer"] > self.num_layers + 1 or record["kind"] == "layer"
        return bool(is_further or record["epoch"] > self.num_epochs)


class MetricsFile:
    """Appends records; every record is one JSON object with a "kind" ("epoch" or "layer") and a "layer" from 1.

    Call `rewind` before the first `append`, and `close` after the last one. If somebody moves or deletes the file while
    it is open, no new file is made: further lines still go into the old one.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._path = folder.path / METRICS
        self._digest, self._num_bytes = hashlib.sha256(), 0
        self._file: io.FileIO | None = None
        self._is_new = False

    def append(self, record: dict[str, Any]) -> None:
        """Add one line, which a later `sync` makes durable."""
        line = _encode(record)
        with storage_errors(self._path):
            if self._file is None:
                self._is_new = self._folder.find_kind(METRICS) is None
                self._file = self._folder.append(METRICS)
            write_all(self._file, line)
        self._count(line)

    def sync(self) -> None:
        """Write all lines through to the disk. This comes before the commit of what they describe."""
        with storage_errors(self._path):
            if self._file is not None:
                sync_file(self._file)
            if self._is_new:  # its name is durable only when the folder is
                self._folder.sync_name(METRICS)
                self._is_new = False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def seal(self) -> MetricsSeal:
        """The seal of all lines so far."""
        return MetricsSeal(self._num_bytes, self._digest.hexdigest())

    def check(self, seal: MetricsSeal) -> None:
        """Raise CorruptFileError when the sealed lines have changed since they were sealed.

        A missing file is no error: a user who has removed it does without it.
        """
        for _ in self._read_sealed(seal):
            pass

    def find_tail(self, seal: MetricsSeal | None, position: Position, most_layers: int) -> str | None:
        """What is wrong with the lines after the seal; None if nothing is.

        They may be of what comes after `position`, in layers up to `most_layers`: their process has not yet committed
        what they describe, or was stopped before it did. The last line may be torn.
        """
        start = seal.num_bytes if seal is not None else 0
        try:
            with self._folder.open(METRICS) as file, storage_errors(self._path, "read"):
                num_bytes = os.fstat(file.fileno()).st_size - start
                file.seek(start)
                tail = file.read(_MAX_TAIL_BYTES) if 0 < num_bytes <= _MAX_TAIL_BYTES else b""
        except FileNotFoundError:
            return None
        if num_bytes > _MAX_TAIL_BYTES or not all(
            (record := _parse(line)) is not None and position.is_before(record, most_layers)
            for line in tail.split(b"\n")[:-1]
        ):
            return (
                f"metrics {self._path}: the {num_bytes} bytes after byte {start} belong to nothing that was saved; "
                "ffstream resume removes them"
            )
        return None

    def read(self, seal: MetricsSeal | None) -> list[dict[str, Any]]:
        """The sealed records; without a seal, as in runs of earlier versions, those of all complete lines.

        Raises CorruptFileError.
        """
        content = b"".join(self._read_sealed(seal)) if seal is not None else self._read_all()
        return [record for record in map(_parse, content.split(b"\n")) if record is not None]

    def rewind(self, seal: MetricsSeal | None, num_layers: int, num_epochs: int) -> None:
        """Keep only the sealed lines: a resumed run takes the epochs after them again.

        Without a seal, as in runs of earlier versions, the lines of `num_layers` finished layers and of `num_epochs`
        epochs of the next one are kept. Raises CorruptFileError.
        """
        self.close()
        if self._folder.find_kind(METRICS) is None:
            kept = b""
        elif seal is not None:
            kept = b"".join(self._read_sealed(seal))
        else:
            kept = b"".join(
                _encode(record)
                for record in self.read(None)
                if record["layer"] <= num_layers
                or (record["layer"] == num_layers + 1 and record["kind"] == "epoch" and record["epoch"] <= num_epochs)
            )
        if self._folder.find_kind(METRICS) is not None:
            with storage_errors(self._path):
                self._folder.write(METRICS, kept)
        self._digest, self._num_bytes = hashlib.sha256(), 0
        self._count(kept)

    def _read_sealed(self, seal: MetricsSeal) -> Iterator[bytes]:
        """Yield the sealed lines in chunks, and check their digest at the end. Yields nothing if there is no file."""
        digest, left = hashlib.sha256(), seal.num_bytes
        try:
            file = self._folder.open(METRICS)
        except FileNotFoundError:
            return
        with file, storage_errors(self._path, "read"):
            if os.fstat(file.fileno()).st_size >= left:
                while left and (part := file.read(min(left, _CHUNK_BYTES))):
                    digest.update(part)
                    left -= len(part)
                    yield part
        if left or digest.hexdigest() != seal.sha256:
            raise CorruptFileError(
                f"metrics {self._path}: altered or cut short since they were written (their digest differs); "
                "restore them from a copy, or delete the file to go on without"
            )

    def _read_all(self) -> bytes:
        try:
            with self._folder.open(METRICS) as file, storage_errors(self._path, "read"):
                return file.readall()
        except FileNotFoundError:
            return b""

    def _count(self, lines: bytes) -> None:
        self._digest.update(lines)
        self._num_bytes += len(lines)


def _encode(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    """One record; None for a line that is not a record, such as one torn by a crash."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("layer")) is not int:
        return None
    is_whole = record.get("kind") == "layer" or (record.get("kind") == "epoch" and type(record.get("epoch")) is int)
    return record if is_whole else None
