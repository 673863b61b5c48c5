"""The power goes off: of what was not synced, any part may be on the disk, in any order.

One training is recorded, change by change. Then, for a point between two changes, a disk is made up as it may be found
after a loss of power there: what was synced is there, and of everything else any part, in the manner of SQLite's crash
tests (sqlite.org/testing.html, section 3.2). The model is stricter than file systems in use:

- a file has the contents of its last fsync; of the writes after it any may be missing or cut short;
- a name is there, or gone, for sure once its folder was synced after the change; until then any of the changes to the
  names of a folder may have reached the disk, whichever came first; a rename is done or not, but never by half.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffstream.storage.run_directory import RunDirectory
from tests.torture.crash import Bench, Counts

_SECTOR_BYTES = 512


@dataclass
class _File:
    content: bytearray = field(default_factory=bytearray)  # as a reader sees it
    synced: bytes = b""
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, data), or (length, None)

    def change(self, offset: int, data: bytes | None) -> None:
        _apply(self.content, offset, data)
        self.unsynced.append((offset, data))

    def sync(self) -> None:
        self.synced, self.unsynced = bytes(self.content), []

    def as_found(self, chance: random.Random) -> bytes:
        """What a loss of power may leave."""
        found = bytearray(self.synced)
        for offset, data in self.unsynced:
            kind = chance.choice(("kept", "lost", "torn"))
            if kind == "torn" and data:
                data = data[: chance.randrange(len(data)) // _SECTOR_BYTES * _SECTOR_BYTES]
            if kind != "lost":
                _apply(found, offset, data)
        return bytes(found)


@dataclass
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    unsynced: list[list[tuple[str, _File | _Folder | None]]] = field(default_factory=list)  # names set at once

    def change(self, *changes: tuple[str, _File | _Folder | None]) -> None:
        _rename(self.names, changes)
        self.unsynced.append(list(changes))

    def sync(self) -> None:
        self.synced, self.unsynced = dict(self.names), []

    def write_as_found(self, path: Path, chance: random.Random) -> None:
        """Write down what a loss of power may leave."""
        path.mkdir()
        found = dict(self.synced)
        for changes in self.unsynced:
            if chance.random() < 0.5:
                _rename(found, changes)
        for name, entry in found.items():
            if isinstance(entry, _Folder):
                entry.write_as_found(path / name, chance)
            else:
                (path / name).write_bytes(entry.as_found(chance))


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        data, offset = b"", offset
    content.extend(bytes(max(offset + len(data) - len(content), 0)))
    content[offset : offset + len(data)] = data


def _rename(names: dict[str, Any], changes: Any) -> None:
    for name, entry in changes:
        if entry is None:
            names.pop(name, None)
        else:
            names[name] = entry


class Disk:
    """Replays recorded changes. The folder that was watched is there for sure."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = _Folder()
        self.committed = (0, 0)  # rounds, and layers of the next, whose names are on the disk for sure
        self._inodes: dict[int, _File] = {}
        self._named: dict[Path, tuple[int, int]] = {}  # those that have their name, which is not yet synced, by folder

    def replay(self, change: dict[str, Any], data: bytes) -> None:
        """One more change."""
        kind, path = change["op"], Path(change["path"])
        if kind in ("write", "resize", "truncate"):
            file = self._inodes[change["inode"]]
            file.change(change["offset"], data if kind == "write" else None)
        elif kind == "fsync" and path_is_folder(self, path):
            self._folder(path).sync()
            self._note_committed(path)
        elif kind == "fsync":
            self._inodes[change["inode"]].sync()
        elif kind == "rename":
            target = Path(change["to"])
            assert target.parent == path.parent, "a rename from folder to folder is not modelled"
            folder = self._folder(path.parent)
            folder.change((target.name, folder.names[path.name]), (path.name, None))
            found = _find_committed(target)
            if found is not None:
                self._named[target.parent] = found
        elif kind in ("unlink", "rmdir"):
            self._folder(path.parent).change((path.name, None))
        else:
            assert kind in ("create", "mkdir"), kind
            made: _File | _Folder = _Folder() if kind == "mkdir" else _File()
            if isinstance(made, _File):
                self._inodes[change["inode"]] = made
            self._folder(path.parent).change((path.name, made))

    def _note_committed(self, path: Path) -> None:
        self.committed = max(self.committed, self._named.pop(path, (0, 0)))

    def _folder(self, path: Path) -> _Folder:
        found: Any = self.top
        for name in path.relative_to(self.root).parts:
            found = found.names[name]
        assert isinstance(found, _Folder)
        return found


def _find_committed(named: Path) -> tuple[int, int] | None:
    """Which rounds, and layers of the next, are committed by something that gets this name; None if none are.

    A layer is committed by the name of its folder, a round by that of its manifest.
    """
    above = named.parent
    if above.name == "layers":
        return 0, int(named.name) + 1
    if above.parent.name == "rounds" and named.name == "manifest.json":
        return int(above.name), 0
    if above.parent.name == "rounds" and named.name.isdecimal():
        return int(above.name) - 1, int(named.name) + 1
    return None


def path_is_folder(disk: Disk, path: Path) -> bool:
    """Whether a path that was synced is a folder of the disk."""
    found: Any = disk.top
    for name in path.relative_to(disk.root).parts:
        found = found.names.get(name) if isinstance(found, _Folder) else None
    return isinstance(found, _Folder)


def read_record(file: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Changes in their order, with the data that was written."""
    changes = []
    with file.open("rb") as source:
        while line := source.readline():
            change = json.loads(line)
            data = source.read(change["bytes"])
            if change["bytes"]:
                source.read(1)
            changes.append((change, data))
    return changes


def lose_power(bench: Bench, stride: int, num_variants: int, counts: Counts) -> None:
    """After every `stride`-th change, as many disks as there are variants, each of them resumed."""
    record = bench.place.parent / f"{bench.name}.record"

    def arm() -> None:
        bench.faults.record(record)

    def stop() -> None:
        bench.faults.stop()

    ended = bench.attempt(arm, then=stop)
    assert ended.finished, ended
    changes, disk = read_record(record), Disk(bench.place)
    for number, (change, data) in enumerate(changes, 1):
        disk.replay(change, data)
        if number % stride:
            continue
        for variant in range(num_variants):
            shutil.rmtree(bench.place)
            disk.top.write_as_found(bench.place, random.Random(number * 1000 + variant))
            what = (
                f"{bench.name}, power lost after change {number} ({change['op']} {change['path']}), variant {variant}"
            )
            directory = RunDirectory(bench.run_dir)
            left = directory.count_rounds(), directory.under_way().count_layers()
            if left < disk.committed:
                counts.add(what, f"{left} rounds and layers are left of {disk.committed} that were committed")
            else:
                counts.add(what, bench.find_difference())
