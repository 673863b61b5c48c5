"""The window of a stream that is learnt from, kept because many sources give their samples only once.

RUN/stream/window-00012-IDENTITY.safetensors  images and labels of the last window that was taken, and what was read
                                              of the stream beyond it
RUN/stream/manifest.json                      its digest, and where the source goes on

A window is durable before anything is learnt from it. The next one replaces it; at the end of a stream it is removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ffstream.data import Split
from ffstream.data.stream_source import Place, StreamWindow
from ffstream.errors import CorruptFileError
from ffstream.ground.files import storage_errors
from ffstream.ground.folder import Folder
from ffstream.storage.identity import STREAM
from ffstream.storage.manifest import STREAM_WINDOW, read_manifest, write_manifest
from ffstream.storage.rounds import REPAIR
from ffstream.storage.run_root import MANIFEST
from ffstream.storage.tensor_file import check_digest, load_tensors, write_tensors

_NAME = f"{STREAM}/{MANIFEST}"


@dataclass(frozen=True)
class TakenWindow:
    """The last window that was taken of a stream."""

    number: int  # from 1
    start: Place
    window: StreamWindow | None  # None if its file was damaged and put aside


@dataclass(frozen=True)
class StreamStore:
    """Reads and writes the window in one run directory."""

    folder: Folder
    run_digest: str

    def write(self, number: int, window: StreamWindow) -> None:
        """Make a window durable, in place of the one before."""
        name = f"window-{number:05d}-{self.folder.identity}.safetensors"
        tensors = {"images": window.samples.images[:], "labels": window.samples.labels}
        if window.beyond is not None:
            tensors |= {"beyond.images": window.beyond.images[:], "beyond.labels": window.beyond.labels}
        with storage_errors(self.folder.path / STREAM):
            self.folder.make_folder(STREAM)
            digest = write_tensors(self.folder, f"{STREAM}/{name}", tensors)()
            content = {"run": self.run_digest, "number": number, "digests": {name: digest}}
            content |= {"start": window.start.to_mapping(), "end": window.end.to_mapping()}
            write_manifest(self.folder, _NAME, content | {"cursor": dict(window.cursor)})
            own = rf"window-\d+-{self.folder.identity}\.safetensors"
            others = [each for each in self.folder.names(STREAM) if each != name and re.fullmatch(own, each)]
            self.folder.remove_matching(STREAM, *map(re.escape, others))

    def remove(self) -> None:
        """Remove the window, which was learnt and has none after it."""
        self.folder.remove(_NAME)
        self.folder.remove_matching(STREAM, rf"window-\d+-{self.folder.identity}\.safetensors")

    def read(self) -> TakenWindow | None:
        """The last window; None if none was taken. Raises CorruptFileError."""
        found = self._read_manifest()
        if found is None:
            return None
        (name, digest), *_ = found["digests"].items()
        number, start = int(found["number"]), Place.from_mapping(found["start"])
        if self.folder.find_kind(f"{STREAM}/{name}") is None:
            return TakenWindow(number, start, None)
        tensors = load_tensors(self.folder, f"{STREAM}/{name}", digest)
        samples, beyond = Split(tensors["images"], tensors["labels"]), None
        if "beyond.labels" in tensors:
            beyond = Split(tensors["beyond.images"], tensors["beyond.labels"])
        end = Place.from_mapping(found["end"])
        return TakenWindow(number, start, StreamWindow(start, samples, end, beyond, found["cursor"]))

    def verify(self) -> None:
        """Check what is kept. Raises CorruptFileError."""
        found = self._read_manifest()
        for name, digest in found["digests"].items() if found is not None else ():
            if self.folder.find_kind(f"{STREAM}/{name}") is not None:
                check_digest(self.folder, f"{STREAM}/{name}", digest)

    def list_damaged(self) -> list[tuple[str, str]]:
        """The names within the run of what is damaged, each with what is wrong."""
        try:
            found = self._read_manifest()
        except CorruptFileError as error:
            return [(STREAM, str(error))]
        damaged = []
        for name, digest in found["digests"].items() if found is not None else ():
            try:
                if self.folder.find_kind(f"{STREAM}/{name}") is not None:
                    check_digest(self.folder, f"{STREAM}/{name}", digest)
            except CorruptFileError as error:
                damaged.append((f"{STREAM}/{name}", str(error)))
        return damaged

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            found = read_manifest(self.folder, _NAME, STREAM_WINDOW, REPAIR)
        except FileNotFoundError:
            return None
        if found["run"] != self.run_digest:
            raise CorruptFileError(f"manifest {self.folder.path / _NAME}: belongs to another run; {REPAIR}")
        return found
