"""The rounds of a run: which of them are committed, and in which folder the layers lie that are read and written.

RUN/rounds/0003/000/             a layer as it is after three rounds, like RUN/layers/000, with its optimiser's state
RUN/rounds/0003/manifest.json    commits the round: it names the manifest of each of its layers

A sequential run has no rounds, and its layers lie in RUN/layers. In a run that trains in rounds, the layers of the
newest committed round are what is read; those of the next one are written beside them, one after another. The round
before is removed layer by layer, as far as the next one has come, so that the disk holds two rounds and a layer, and
whoever began to read the older one has the time of a whole round to do so.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ffstream.errors import CorruptFileError, RunError
from ffstream.storage.manifest import ROUND, content_digest, read_manifest
from ffstream.storage.run_environments import RunEnvironments
from ffstream.storage.run_root import MANIFEST

LAYERS, ROUNDS = "layers", "rounds"
REPAIR = "restore it from a copy, or put it aside with ffstream repair --apply"
_ROUND = re.compile(r"[0-9]{4,18}")
_NEWEST = -1  # the newest committed round, whichever it is when layers are first read

_View = TypeVar("_View", bound="RunRounds")


class RunRounds(RunEnvironments):
    """Finds the rounds of a run directory; the layers that it reads and writes are those of one round.

    Unless another round is asked for, this is the one that is the newest when layers are first read, so that all that
    is read comes from one round.
    """

    _round: int = _NEWEST
    _manifest: dict[str, Any] | None = None  # of the round, once it was read
    _was_committed: bool = False  # whether the round was found to be
    _before: str | None = None  # the digest of the round before, once it was asked for
    _cycle: Mapping[str, Any] | None = None  # by which the layers that are written are trained

    def at_round(self: _View, number: int, cycle: Mapping[str, Any] | None = None) -> _View:
        """The same run directory, with the layers of that round; 0 stands for those of a sequential run.

        Whatever is written of the round names `cycle`, which says how the learning rate falls in it.
        """
        found = copy.copy(self)
        found._cycle = cycle
        found._round, found._manifest, found._before, found._was_committed = number, None, None, False
        return found

    def newest(self: _View) -> _View:
        """The same run directory, with the layers of the round that is the newest now."""
        return self.at_round(_NEWEST)

    def under_way(self: _View) -> _View:
        """The same run directory, with the layers that are written next: those of the round after the newest one."""
        is_in_rounds = self.folder.find_kind(ROUNDS) is not None
        return self.at_round(self.count_rounds() + 1 if is_in_rounds else 0)

    @property
    def round(self) -> int:
        """The number of the round whose layers are read, from 1; 0 in a sequential run, or before the first round."""
        if self._round == _NEWEST:
            self._round = self.count_rounds()
            self._was_committed = self._round > 0
        return self._round

    def count_rounds(self) -> int:
        """How many rounds are committed."""
        return max(self.list_rounds(), default=0)

    def list_rounds(self) -> list[int]:
        """The numbers of the rounds that are there whole and committed, in ascending order."""
        folders = self.list_round_folders()
        return [each for each in folders if self.folder.find_kind(f"{round_name(each)}/{MANIFEST}") is not None]

    def list_round_folders(self) -> list[int]:
        """The numbers of all rounds of which something is there, in ascending order."""
        names = [name for name in self.folder.names(ROUNDS) if _ROUND.fullmatch(name) and name == f"{int(name):04d}"]
        return sorted(map(int, names))

    @property
    def layers_folder(self) -> str:
        """The name of the folder in which the layers lie."""
        return round_name(self.round) if self.round else LAYERS

    def layer_name(self, index: int) -> str:
        """The name of layer `index`'s folder within the run directory."""
        return f"{self.layers_folder}/{index:03d}"

    # --- manifests

    def read_round(self) -> dict[str, Any]:
        """The manifest of the round, checked to be that of this round of this run.

        Raises CorruptFileError, FileNotFoundError while the round is not committed.
        """
        if self._manifest is not None:
            return self._manifest
        name = f"{round_name(self.round)}/{MANIFEST}"
        manifest = read_manifest(self.folder, name, ROUND, REPAIR)
        if manifest["round"] != self.round:
            raise CorruptFileError(
                f"manifest {self.path / name}: belongs to round {manifest['round']}, found at {self.round}; {REPAIR}"
            )
        self.check_names_this_run(manifest, name, REPAIR)
        self.check_names_environment(manifest, name, REPAIR)
        self._manifest, self._was_committed = manifest, True
        return manifest

    def list_manifests(self) -> list[str] | None:
        """The digests of the manifests of the round's layers; None if it is not committed, or for a sequential run."""
        with contextlib.suppress(FileNotFoundError):
            return list(self.read_round()["layers"]) if self.round else None
        return None

    def name_round(self) -> dict[str, Any]:
        """How what is written in a round names it, and the round that it goes on from; empty in a sequential run."""
        if not self.round:
            return {}
        of_cycle = {} if self._cycle is None else {"cycle": dict(self._cycle)}
        return {"round": self.round, "digest_before": self._digest_before()} | of_cycle

    def check_names_round(self, manifest: dict[str, Any], name: str, remedy: str) -> None:
        """Raise CorruptFileError unless a manifest names this round, and the round before as it is, if it is there."""
        found = manifest.get("round", 0)
        if found != self.round:
            raise CorruptFileError(
                f"manifest {self.path / name}: belongs to {_describe(found)}, found in {_describe(self.round)}; "
                f"{remedy}"
            )
        before = self._digest_before()
        if self.round and before and manifest.get("digest_before") != before:
            raise CorruptFileError(
                f"manifest {self.path / name}: goes on from another round {self.round - 1} than the one in "
                f"{self.path / round_name(self.round - 1)}; restore both from one copy, or {remedy}"
            )

    def _digest_before(self) -> str:
        """The digest of the manifest of the round before; empty if there is none, or none any more."""
        if self._before is None:
            self._before = ""
            with contextlib.suppress(FileNotFoundError):
                self._before = content_digest(self.at_round(self.round - 1).read_round()) if self.round > 1 else ""
        return self._before

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Raise a RunError if what the block finds missing was removed, as the run has gone on by two rounds."""
        try:
            yield
        except (FileNotFoundError, CorruptFileError) as error:
            if not self._was_committed or self.round in self.list_rounds():
                raise
            raise RunError(
                f"run {self.path}: has gone on by two rounds, and removed round {self.round} while it was read; do "
                "this again"
            ) from error

    # --- removing

    def remove_rounds(self, num_done: int) -> None:
        """Remove what is older than needed while this round is written, of which `num_done` layers are committed.

        The round before it stays whole. Of the one before that, the layers stay that this round does not have yet; it
        is no longer a round once one of them is gone, so its manifest is removed first.
        """
        for number in self.list_round_folders():
            older = self.at_round(number)
            if number < self.round - 2:
                older._remove_layers()
            elif number == self.round - 2 and num_done:
                older._remove_layers(num_done)

    def _remove_layers(self, most: int | None = None) -> None:
        """Remove the manifest of the round and its first layers; with all of them, its folder."""
        name = self.layers_folder
        self.folder.remove(f"{name}/{MANIFEST}")
        indices = [int(each) for each in self.folder.names(name) if each.isdecimal()]
        for index in indices:
            if most is None or index < most:
                self.remove_layer_folder(f"{name}/{index:03d}")
        self.folder.remove_if_empty(name)


def round_name(number: int) -> str:
    """The name of the folder of a round within the run directory."""
    return f"{ROUNDS}/{number:04d}"


def _describe(number: int) -> str:
    return f"round {number}" if number else "a sequential run"
