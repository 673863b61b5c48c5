"""The contents of a run directory, and the protocol by which all of them are committed.

RUN/run.json                           the marker of a run: its identity, its settings, the digest of its data
RUN/config.toml                        the resolved configuration
RUN/data.json                          what the network must know of its data: classes, shape, scale, digests
RUN/environment.json                   what decides bits, with an entry for each environment it was trained in
RUN/validation.safetensors             labels of the validation split, in the same order as the goodness
RUN/initial/                           copies of weights that layers start from, each until its layer is committed
RUN/layers/000/weights.safetensors     parameters of layer 0
RUN/layers/000/validation.safetensors  its goodness for all labels on the validation split
RUN/layers/000/manifest.json           digests and figures; the folder gets its name once all of it is complete
RUN/rounds/                            the layers after each of the last rounds, where all layers train in turn
RUN/progress/                          the layer being trained, saved every epoch, and its finished tiles
RUN/cache/ffstream-IDENTITY/           activation caches of the disk tier; cache may be a link to a larger disk
RUN/stream/                            the window of a stream that is learnt from, and where its source goes on
RUN/readout/                           the softmax readout, once one was fitted
RUN/metrics.jsonl                      one line per epoch and one per layer
RUN/damaged-1/                         what a repair or a resume has put aside
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.ground.files import storage_errors
from ffstream.storage.identity import INITIAL, STREAM
from ffstream.storage.layers import WEIGHTS
from ffstream.storage.manifest import LAYER, PROGRESS, READOUT, read_manifest, write_manifest
from ffstream.storage.metrics import METRICS, MetricsFile, MetricsSeal, Position
from ffstream.storage.rounds import REPAIR, ROUNDS
from ffstream.storage.run_caches import RunCaches
from ffstream.storage.run_root import MANIFEST
from ffstream.storage.stream_store import StreamStore
from ffstream.storage.tensor_file import load_tensors, write_tensors
from ffstream.storage.windows import WindowProgress


class RunDirectory(WindowProgress):
    """Reads and writes one run directory. Nothing is ever unpickled, and the checked bytes are those used."""

    def caches(self, cache_dir: str = "") -> RunCaches:
        """The run's activation caches, which lie in the folder `cache_dir` if one was given."""
        return RunCaches(self, cache_dir)

    @property
    def stream(self) -> StreamStore:
        """The last window that was taken of a stream."""
        return StreamStore(self.folder, self.run_digest or "")

    # --- environments

    def list_environments(self) -> list[str]:
        """The digests of the environments that the manifests of the layers and of the progress name."""
        manifests = [
            read_manifest(self.folder, f"{view.layer_name(index)}/{MANIFEST}", LAYER)
            for view in {each.round: each for each in (self.newest(), self.under_way())}.values()
            for index in view.list_layers()
        ]
        with contextlib.suppress(FileNotFoundError):
            manifests.append(read_manifest(self.folder, f"progress/{MANIFEST}", PROGRESS))
        return [str(found["environment"]) for found in manifests if "environment" in found]

    # --- metrics

    @property
    def metrics_path(self) -> Path:
        """The path of the metrics file."""
        return self.path / METRICS

    @property
    def metrics(self) -> MetricsFile:
        """The file of metrics."""
        return MetricsFile(self.folder)

    def read_seal(self) -> MetricsSeal | None:
        """The seal of the lines that describe what is committed; None if nothing is, or in runs from before seals."""
        written = self.under_way()
        num_layers, progress = written.count_layers(), self._read_progress_manifest()
        manifest: dict[str, Any] = {}
        is_newest = progress is not None and not self.has_stale_progress()
        if progress is not None and is_newest and not (num_layers and "window" in progress):
            manifest = progress
        elif num_layers:
            manifest = written.read_layer_manifest(num_layers - 1)
        elif written.round > 1:
            manifest = written.at_round(written.round - 1).read_round()
        return MetricsSeal(**manifest["metrics"]) if "metrics" in manifest else None

    def check_metrics(self) -> None:
        """Check the lines that describe what is committed. Raises CorruptFileError."""
        seal, progress = self.read_seal(), self._read_progress_manifest()
        if seal is None:
            return
        try:
            self.metrics.check(seal)
        except CorruptFileError:
            if progress is not None and not self.has_stale_progress():
                self.verify_progress()  # a progress of another run seals other lines: that error comes first
            raise

    def check_metrics_end(self, most_layers: int) -> None:
        """Check that only lines of an unfinished run follow the sealed ones. Raises CorruptFileError."""
        seal, position = self.read_seal(), self._find_position()
        problem = self.metrics.find_tail(seal, position, most_layers) if seal is not None else None
        if problem is None:
            return
        if (seal, position) == (self.read_seal(), self._find_position()):
            raise CorruptFileError(problem)
        self.check_metrics_end(most_layers)  # another process is training, and has committed more meanwhile

    def _find_position(self) -> Position:
        """How far the run is committed, its progress included."""
        written = self.under_way()
        num_layers, progress = written.count_layers(), self.read_progress()
        is_current = progress is not None and not self.has_stale_progress()
        return Position(num_layers, progress[1] if progress is not None and is_current else 0, written.round)

    # --- the softmax readout

    def commit_readout(self, tensors: dict[str, Tensor], identity: dict[str, Any]) -> None:
        """Save the readout; `identity` says what it was trained on. Only the holder of the lock may call this.

        The previous manifest is removed first, so that a half-written readout does not count as one.
        """
        manifest, weights = f"readout/{MANIFEST}", f"readout/{WEIGHTS}"
        with storage_errors(self.path / "readout"):
            self.folder.make_folder("readout")
            is_known = self.folder.find_kind(manifest) is not None
            if not is_known and self.folder.find_kind(weights) is not None:
                self.put_aside([weights])  # no manifest says that it is a readout of this run
            self.folder.remove(manifest)
            digest = write_tensors(self.folder, weights, tensors)()
            content = {"run": self.run_digest, "identity": identity, "digest_file": digest}
            write_manifest(self.folder, manifest, content)

    def load_readout(self, identity: dict[str, Any]) -> dict[str, Tensor] | None:
        """The saved readout if it has this `identity`, else None. Raises CorruptFileError."""
        manifest = self._read_readout_manifest()
        if manifest is None or manifest["identity"] != identity:
            return None
        return load_tensors(self.folder, f"readout/{WEIGHTS}", manifest["digest_file"])

    def load_fitted_readout(self, num_layers: int) -> dict[str, Tensor] | None:
        """The saved readout if it was fitted, with any settings, on the current layers, else None.

        Raises CorruptFileError.
        """
        manifest = self._read_readout_manifest()
        if manifest is None or manifest["identity"]["layers"] != self.read_weight_digests(num_layers):
            return None
        return load_tensors(self.folder, f"readout/{WEIGHTS}", manifest["digest_file"])

    def verify_readout(self) -> None:
        """Check the saved readout, if there is one. Raises CorruptFileError."""
        manifest = self._read_readout_manifest()
        if manifest is not None:
            load_tensors(self.folder, f"readout/{WEIGHTS}", manifest["digest_file"])

    def _read_readout_manifest(self) -> dict[str, Any] | None:
        name = f"readout/{MANIFEST}"
        try:
            manifest = read_manifest(self.folder, name, READOUT, REPAIR)
        except FileNotFoundError:
            return None
        if "run" in manifest:  # missing if the run had no identity when it was written
            self.check_names_this_run(manifest, name, REPAIR)
        return manifest

    # --- temporary files

    def passing_bytes(self, cache_dir: str = "") -> int:
        """Bytes of files that pass: caches, progress, weights that layers start from, and rounds before the last."""
        caches = self.caches(cache_dir)
        folder, _ = caches.open()
        in_caches = sum(folder.size(f"{name}/{each}") for name in caches.names() for each in folder.names(name))
        folders = ["progress", INITIAL, STREAM]
        for each in self.folder.names(ROUNDS):
            folders += [f"{ROUNDS}/{each}/{name}" for name in self.folder.names(f"{ROUNDS}/{each}") if name.isdecimal()]
        return in_caches + sum(
            self.folder.size(f"{above}/{name}") for above in folders for name in self.folder.names(above)
        )
