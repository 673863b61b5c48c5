"""All layers of a run as they are between two windows of a round.

RUN/progress/layer-000-round-0002-window-00005-IDENTITY.safetensors  a layer after five windows, with its optimiser
RUN/progress/statistics-round-0002-window-00005-IDENTITY.safetensors  what layers know of the last windows, if anything
RUN/progress/manifest.json  the digests of one such file for each layer, once they are saved, and the windows done

Where the layers have no room in memory, they lie in such files between any two windows. Only those that the manifest
names are durable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.ground.files import storage_errors
from ffstream.storage.manifest import write_manifest
from ffstream.storage.metrics import MetricsSeal
from ffstream.storage.progress import LayerProgress
from ffstream.storage.rounds import REPAIR
from ffstream.storage.run_root import MANIFEST
from ffstream.storage.tensor_file import fill_tensors, load_tensors, stage_tensors

_STATISTICS = "statistics"


@dataclass(frozen=True)
class WindowsDone:
    """How far a round is: the windows that are done of all `num`, each layer's file, and its course so far."""

    num_done: int
    num: int
    digests: Mapping[str, str]  # by the name of the file, in the order of layers; that of statistics comes last
    courses: Sequence[Mapping[str, float]]  # by layer: figures and seconds


class WindowProgress(LayerProgress):
    """Reads and writes the layers of one run directory between the windows of a round."""

    def stage_window(self, index: int, num_done: int, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
        """Write a layer after so many windows, not yet durably. Returns the name and the digest of its file."""
        name = f"layer-{index:03d}-round-{self.round:04d}-window-{num_done:05d}-{self.folder.identity}.safetensors"
        with storage_errors(self.path / "progress" / name):
            self.folder.make_folder("progress")
        return name, stage_tensors(self.folder, f"progress/{name}", tensors)

    def stage_statistics(self, num_done: int, statistics: Mapping[int, Tensor]) -> tuple[str, str]:
        """Write what layers know of the last windows, by their index, as `stage_window` writes a layer."""
        name = f"{_STATISTICS}-round-{self.round:04d}-window-{num_done:05d}-{self.folder.identity}.safetensors"
        tensors = {str(index): each.contiguous() for index, each in statistics.items()}
        return name, stage_tensors(self.folder, f"progress/{name}", tensors)

    def load_statistics(self, done: WindowsDone) -> dict[int, Tensor]:
        """What layers know of the last windows, by their index. Raises CorruptFileError."""
        found = [each for each in done.digests.items() if each[0].startswith(_STATISTICS)]
        tensors = load_tensors(self.folder, f"progress/{found[0][0]}", found[0][1]) if found else {}
        return {int(index): each for index, each in tensors.items()}

    def fill_window(self, name: str, digest: str, targets: Mapping[str, Tensor]) -> None:
        """Fill `targets` from such a file. Raises CorruptFileError."""
        fill_tensors(self.folder, f"progress/{name}", digest, targets)

    def write_windows(self, done: WindowsDone, metrics: MetricsSeal) -> Callable[[], None]:
        """The function that makes the files of all layers durable, and then names them in the manifest.

        `metrics` seals the lines that describe the rounds before.
        """

        def commit() -> None:
            found = self._read_progress_manifest()
            before = found["digests"] if found is not None else {}
            content: dict[str, Any] = {"layer": 0, "num_epochs": self.round - 1, "run": self.run_digest}
            content |= self.name_environment() | self.name_round()
            content |= {"digests": dict(done.digests), "metrics": metrics.to_mapping()}
            content |= {"window": {"num_done": done.num_done, "num": done.num, "courses": list(done.courses)}}
            with storage_errors(self.path / "progress"):
                for name in done.digests:
                    self.folder.sync(f"progress/{name}")
                write_manifest(self.folder, f"progress/{MANIFEST}", content)
                self.remove_windows(before.keys() - done.digests.keys())

        return commit

    def remove_windows(self, names: Sequence[str] | set[str]) -> None:
        """Remove these files of layers."""
        self.folder.remove_matching("progress", *map(re.escape, sorted(names)))

    def read_windows(self) -> WindowsDone | None:
        """What is saved of the round that is under way; None if it was not saved between windows.

        Raises CorruptFileError.
        """
        manifest = self._read_progress_manifest()
        if manifest is None or "window" not in manifest or self.has_stale_progress():
            return None
        found = manifest["window"]
        by_layer = {_find_layer(name): name for name in manifest["digests"] if not name.startswith(_STATISTICS)}
        if sorted(by_layer) != list(range(len(found["courses"]))) or not 0 < found["num_done"] < found["num"]:
            raise CorruptFileError(
                f"manifest {self.path / 'progress' / MANIFEST}: names {len(by_layer)} files of "
                f"{len(found['courses'])} layers after {found['num_done']} of {found['num']} windows; {REPAIR}"
            )
        names = [by_layer[index] for index in sorted(by_layer)]
        names += [name for name in manifest["digests"] if name.startswith(_STATISTICS)]
        digests = {name: manifest["digests"][name] for name in names}
        return WindowsDone(found["num_done"], found["num"], digests, found["courses"])

    def keep_named(self) -> None:
        """Remove what a process that was killed has left in the progress, and no manifest names."""
        manifest = self._read_progress_manifest()
        self._remove_progress({}, kept=manifest["digests"] if manifest is not None else {})


def _find_layer(name: str) -> int:
    """The index of the layer that such a file holds; -1 for another name."""
    found = re.match(r"layer-(\d{3,18})-round-", name)
    return int(found[1]) if found is not None else -1
