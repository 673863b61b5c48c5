"""Weights of another run that layers start from: copied when a run is started, and kept until they have been used.

RUN/run.json                                says which layers start so, and the digests of what they start from
RUN/initial/layer-000-IDENTITY.safetensors  for layer 0, the other run's file, until layer 0 is committed

A copy, and not a path, is what a resume needs: the other run may be gone by then, and training may have taken days.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ffstream.errors import CorruptFileError, RunError
from ffstream.field.layers import Layer
from ffstream.ground.folder import Folder
from ffstream.storage.identity import INITIAL
from ffstream.storage.tensor_file import RESTORE, check_digest, copy_tensors
from ffstream.storage.tensor_tiles import fill_units


@dataclass(frozen=True)
class TakenLayer:
    """A layer that starts from another run's."""

    layer: int  # its index, in both runs
    digest: str  # of the other run's file
    num_bytes: int  # of that file
    left_out: tuple[str, ...]  # parameters that start anew all the same


@dataclass(frozen=True)
class Origin:
    """What the layers of a run start from that do not start anew."""

    run: str  # where the other run was
    summary: str  # which layers start from it, and why others do not
    layers: tuple[TakenLayer, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for the marker of the run."""
        layers = [asdict(each) | {"left_out": list(each.left_out)} for each in self.layers]
        return {"run": self.run, "summary": self.summary, "layers": layers}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Origin:
        """The inverse of `to_mapping`."""
        layers = (TakenLayer(**each | {"left_out": tuple(each["left_out"])}) for each in values["layers"])
        return cls(values["run"], values["summary"], tuple(layers))

    def check(self, layers: Iterable[TakenLayer]) -> None:
        """Raise CorruptFileError or StorageError unless the other run still holds what these layers start from."""
        for each in layers:
            check_digest(Folder(Path(self.run)), _other_name(each.layer), each.digest)


@dataclass(frozen=True)
class InitialWeights:
    """The copies in one run directory."""

    folder: Folder
    identity: str  # of the run
    origin: Origin | None  # None: all layers start anew

    def list_from(self, first: int) -> list[TakenLayer]:
        """The layers from index `first` on that start from another run's."""
        return [each for each in self.origin.layers if each.layer >= first] if self.origin is not None else []

    def list_missing(self, num_done: int) -> list[TakenLayer]:
        """Those of the layers that are not finished whose copy is not there, as after a repair.

        Raises RunError where the other run does not hold them any more either.
        """
        missing = [each for each in self.list_from(num_done) if self.folder.find_kind(self.name(each.layer)) is None]
        if self.origin is not None:
            for each in missing:
                try:
                    self.origin.check([each])
                except RunError as error:
                    raise RunError(
                        f"run {self.folder.path}: layer {each.layer + 1} starts from weights of run {self.origin.run}, "
                        f"of which there is no copy any more in {INITIAL}, and that run does not hold them either "
                        f"({error}); restore it, or a copy of this run"
                    ) from error
        return missing

    def take(self, layers: Iterable[TakenLayer]) -> None:
        """Copy what these layers start from, durably. Raises CorruptFileError, StorageError."""
        for each in layers:
            assert self.origin is not None, "there is a run to copy from"
            self.folder.make_folder(INITIAL)
            source = Folder(Path(self.origin.run))
            copy_tensors(source, _other_name(each.layer), self.folder, self.name(each.layer), each.digest)

    def fill(self, layer: Layer, index: int) -> bool:
        """Fill a layer, or a tile of it, with what it starts from. Returns whether there is anything.

        Raises CorruptFileError.
        """
        found = next((each for each in self.list_from(index) if each.layer == index), None)
        if found is None:
            return False
        targets = {name: value for name, value in layer.state_dict().items() if name not in found.left_out}
        with _naming_the_copy(self.origin, found):
            fill_units(self.folder, self.name(index), found.digest, targets, layer.list_unit_axes(), layer.first_unit)
        return True

    def verify(self, each: TakenLayer) -> None:
        """Check the digest of a copy, if it is there. Raises CorruptFileError."""
        if self.folder.find_kind(self.name(each.layer)) is not None:
            with _naming_the_copy(self.origin, each):
                check_digest(self.folder, self.name(each.layer), each.digest)

    def drop(self, num_done: int) -> int:
        """Remove the copies for layers that are finished. Returns the bytes removed."""
        done = {each.layer for each in self.list_from(0) if each.layer < num_done}
        return self._remove([index for index in done if self.folder.find_kind(self.name(index)) is not None])

    def remove(self) -> None:
        """Remove all copies, of a run that was not started."""
        self._remove([each.layer for each in self.list_from(0)])

    def name(self, index: int) -> str:
        """The name of the copy for a layer."""
        return f"{INITIAL}/layer-{index:03d}-{self.identity}.safetensors"

    def _remove(self, indices: Iterable[int]) -> int:
        patterns = [re.escape(self.name(index).partition("/")[2]) for index in indices]
        return self.folder.remove_matching(INITIAL, *patterns) if patterns else 0


@contextlib.contextmanager
def _naming_the_copy(origin: Origin | None, found: TakenLayer) -> Iterator[None]:
    """Where a copy is damaged, say what it is a copy of."""
    try:
        yield
    except CorruptFileError as error:
        other = "the other run" if origin is None else Path(origin.run) / _other_name(found.layer)
        remedy = f"it is a copy of {other}: remove it, and resume copies it again if that has not changed"
        raise CorruptFileError(str(error).replace(RESTORE, remedy)) from error


def _other_name(index: int) -> str:
    return f"layers/{index:03d}/weights.safetensors"
