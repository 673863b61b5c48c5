"""The contents of a run directory, and the protocol by which all of them are committed.

RUN/run.json                           the marker of a run: its identity, its settings, the digest of its data
RUN/config.toml                        the resolved configuration
RUN/data.json                          what the network must know of its data: classes, shape, scale, digests
RUN/environment.json                   what decides bits, with an entry for each environment it was trained in
RUN/validation.safetensors             labels of the validation split, in the same order as the goodness
RUN/layers/000/weights.safetensors     parameters of layer 0
RUN/layers/000/validation.safetensors  its goodness for all labels on the validation split
RUN/layers/000/manifest.json           digests and figures; the folder gets its name once all of it is complete
RUN/progress/                          the layer being trained, saved every epoch, and its finished tiles
RUN/cache/ffstream-IDENTITY/           activation caches of the disk tier; cache may be a link to a larger disk
RUN/readout/                           the softmax readout, once one was fitted
RUN/metrics.jsonl                      one line per epoch and one per layer
RUN/damaged-1/                         what a repair or a resume has put aside
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.field.layers import Layer
from ffstream.ground.files import storage_errors
from ffstream.storage.manifest import LAYER, PROGRESS, READOUT, read_manifest, write_manifest
from ffstream.storage.metrics import METRICS, MetricsFile, MetricsSeal
from ffstream.storage.run_root import MANIFEST, RunRoot
from ffstream.storage.tensor_file import (
    RESTORE,
    check_digest,
    digest_tiles,
    fill_tensors,
    join_tensors,
    load_slices,
    load_tensor,
    load_tensors,
    stage_tensors,
    write_tensors,
)

_TILE = "-tile-"  # in the name of a progress file that is kept until the layer is finished
_WEIGHTS, _VALIDATION = "weights.safetensors", "validation.safetensors"
_NUMBER = re.compile(r"[0-9]{3,18}")
_REPAIR = "restore it from a copy, or put it aside with ffstream repair --apply"


class OptimiserState(Protocol):
    """The part of an optimiser that is needed here: its state."""

    def state(self) -> dict[str, Tensor]:
        """All tensors that `load_state` needs, by name."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the tensors that `state` returned."""


class RunDirectory(RunRoot):
    """Reads and writes one run directory. Nothing is ever unpickled, and the checked bytes are those used."""

    # --- layers

    def count_layers(self) -> int:
        """The number of committed layers. Raises CorruptFileError when one below another is missing, StorageError."""
        found = self.list_layers()
        for expected, index in enumerate(found):
            if index != expected:
                raise CorruptFileError(
                    f"run {self.path}: layer {expected + 1} is missing although layer {index + 1} is there; restore "
                    f"{self.layer_folder(expected)} from a copy, or put those above it aside with ffstream repair "
                    "--apply"
                )
        return len(found)

    def list_layers(self) -> list[int]:
        """The indices of all layer folders that have a manifest."""
        names = [name for name in self.folder.names("layers") if _NUMBER.fullmatch(name) and name == f"{int(name):03d}"]
        return [int(name) for name in names if self.folder.find_kind(f"layers/{name}/{MANIFEST}") is not None]

    def layer_folder(self, index: int) -> Path:
        """The folder of layer `index`, counted from 0."""
        return self.path / _layer(index)

    def write_layer(
        self,
        index: int,
        layer: Layer,
        goodness: Tensor | None,
        figures: dict[str, Any],
        metrics: MetricsSeal,
        num_tiles: int = 1,
    ) -> Callable[[], None]:
        """Write a finished layer and its validation goodness (n, C). The returned function commits it.

        Its folder is made under a temporary name and renamed once all of it is durable; it never overwrites something
        that already has its name. `metrics` seals the lines that describe it. If the layer has several tiles, `layer`
        is the last one; the earlier tiles are in the progress, and are joined with it.
        """
        staged = self.folder.name_temporary(_layer(index))
        with storage_errors(self.path / staged):
            self.folder.make_folder(staged)
        try:
            write_weights = self._stage_weights(index, staged, layer, num_tiles)
            digests: dict[str, str] = {}
            if goodness is not None:
                digests["validation"] = stage_tensors(self.folder, f"{staged}/{_VALIDATION}", {"goodness": goodness})
        except BaseException:
            self.remove_staged(staged)
            raise

        def commit() -> None:
            try:
                with storage_errors(self.layer_folder(index)):
                    digests["weights"] = write_weights()
                    manifest: dict[str, Any] = {"layer": index, "run": self.run_digest, **self.name_environment()}
                    manifest |= {"digests": digests, "figures": figures}
                    manifest |= {"metrics": metrics.to_mapping(), "digest_below": self._digest_below(index)}
                    for name in digests:
                        self.folder.sync(f"{staged}/{name}.safetensors")
                    write_manifest(self.folder, f"{staged}/{MANIFEST}", manifest)
                    self.folder.rename(staged, _layer(index))
            except BaseException:
                self.remove_staged(staged)
                raise

        return commit

    def _stage_weights(self, index: int, staged: str, layer: Layer, num_tiles: int) -> Callable[[], str]:
        """Write parameters. The returned function joins them with those of earlier tiles and returns the digest."""
        name = f"{staged}/{_WEIGHTS}"
        if num_tiles == 1:
            digest = stage_tensors(self.folder, name, _host_state(layer))
            return lambda: digest
        *before, last = (self._tile_name(index, tile) for tile in range(num_tiles))
        publish_last = write_tensors(self.folder, last, _host_state(layer))
        axes = _unit_axes(layer)

        def join() -> str:
            found = self._read_progress_manifest() or {"digests": {}}
            parts = dict(_find_tile(found["digests"], index, tile, self.path) for tile in range(len(before)))
            parts = {f"progress/{each}": digest for each, digest in parts.items()}
            return join_tensors(self.folder, name, parts | {last: publish_last()}, axes)

        return join

    def read_layer_manifest(self, index: int) -> dict[str, Any]:
        """The manifest of a committed layer, checked to belong to this layer of this run. Raises CorruptFileError."""
        manifest = self._read_numbered_manifest(index)
        if manifest["digest_below"] != self._digest_below(index):
            raise CorruptFileError(
                f"manifest {self.layer_folder(index) / MANIFEST}: trained on another layer {index} than the one in "
                f"{self.layer_folder(index - 1)}; restore both from one copy, or put them aside with ffstream "
                "repair --apply"
            )
        return manifest

    def list_environments(self) -> list[str]:
        """The digests of the environments that the manifests of the layers and of the progress name."""
        manifests = [read_manifest(self.folder, f"{_layer(index)}/{MANIFEST}", LAYER) for index in self.list_layers()]
        with contextlib.suppress(FileNotFoundError):
            manifests.append(read_manifest(self.folder, f"progress/{MANIFEST}", PROGRESS))
        return [str(found["environment"]) for found in manifests if "environment" in found]

    def read_weight_digests(self, num_layers: int) -> list[str]:
        """The digests of the parameters of the first `num_layers` layers."""
        return [str(self.read_layer_manifest(index)["digests"]["weights"]) for index in range(num_layers)]

    def _digest_below(self, index: int) -> str:
        """The digest of the weights of the layer below layer `index`; empty for the first layer."""
        return str(self._read_numbered_manifest(index - 1)["digests"]["weights"]) if index else ""

    def _read_numbered_manifest(self, index: int) -> dict[str, Any]:
        name = f"{_layer(index)}/{MANIFEST}"
        manifest = read_manifest(self.folder, name, LAYER, _REPAIR)
        if manifest.get("layer") != index:
            found = manifest.get("layer")
            raise CorruptFileError(
                f"manifest {self.path / name}: belongs to layer index {found}, found at {index}; {_REPAIR}"
            )
        self.check_names_this_run(manifest, name, _REPAIR)
        self.check_names_environment(manifest, name, _REPAIR)
        return manifest

    def load_layer(self, index: int, layer: Layer) -> None:
        """Fill `layer` with committed parameters, checked as they are read. Raises CorruptFileError."""
        digest = self.read_layer_manifest(index)["digests"]["weights"]
        fill_tensors(self.folder, f"{_layer(index)}/{_WEIGHTS}", digest, layer.state_dict())

    def digest_tiles(self, index: int, layer: Layer, tiles: list[slice]) -> list[str]:
        """Check a committed layer's parameters, and return a digest for each tile. `layer` is any one of the tiles.

        Raises CorruptFileError.
        """
        digest = self.read_layer_manifest(index)["digests"]["weights"]
        return digest_tiles(self.folder, f"{_layer(index)}/{_WEIGHTS}", digest, _unit_axes(layer), tiles)

    def load_units(self, index: int, units: slice, layer: Layer, digest: str) -> None:
        """Fill `layer`, a tile, with the slice `units` of a committed layer; `digest` is that of the tile."""
        name = f"{_layer(index)}/{_WEIGHTS}"
        _assign_state(layer, load_slices(self.folder, name, _unit_axes(layer), units, digest), self.path / name)

    def load_validation_goodness(self, index: int) -> Tensor | None:
        """One layer's goodness for all labels on the validation split, (n, C), or None without such a split."""
        digest = self.read_layer_manifest(index)["digests"].get("validation")
        if digest is None:
            return None
        return load_tensor(self.folder, f"{_layer(index)}/{_VALIDATION}", digest, "goodness", torch.float32, 2)

    def verify_layer(self, index: int) -> None:
        """Check every digest of a committed layer. Raises CorruptFileError."""
        for name, digest in self.read_layer_manifest(index)["digests"].items():
            check_digest(self.folder, f"{_layer(index)}/{name}.safetensors", digest)

    # --- the layer being trained

    def write_progress(
        self, index: int, num_epochs: int, layer: Layer, optimiser: OptimiserState, metrics: MetricsSeal
    ) -> Callable[[], None]:
        """Write the layer being trained, or its tile, after `num_epochs` epochs; it may change once this returns.

        `metrics` seals the lines that describe those epochs. The returned function makes the new progress durable; the
        previous progress is kept until then.
        """
        tensors = {f"layer.{key}": value for key, value in _host_state(layer).items()}
        tensors |= {f"optimiser.{key}": value.cpu() for key, value in optimiser.state().items()}
        name = f"progress/layer-{index:03d}-epoch-{num_epochs:04d}-{self.folder.identity}.safetensors"
        return self._write_progress(index, num_epochs, name, tensors, metrics)

    def write_tile(
        self, index: int, tile: int, num_epochs: int, layer: Layer, metrics: MetricsSeal
    ) -> Callable[[], None]:
        """Write a finished tile of the layer being trained, as `write_progress` does."""
        return self._write_progress(index, num_epochs, self._tile_name(index, tile), _host_state(layer), metrics)

    def _write_progress(
        self, index: int, num_epochs: int, name: str, tensors: dict[str, Tensor], metrics: MetricsSeal
    ) -> Callable[[], None]:
        """Add a file to the progress. On commit it replaces all files there except finished tiles of this layer."""
        with storage_errors(self.path / name):
            self.folder.make_folder("progress")
        publish_file = write_tensors(self.folder, name, tensors)

        def commit() -> None:
            digest = publish_file()
            found = self._read_progress_manifest()
            before = found["digests"] if found is not None else {}
            kept = before if found is not None and found["layer"] == index else {}
            digests = {each: kept[each] for each in kept if _TILE in each} | {name.rpartition("/")[2]: digest}
            content: dict[str, Any] = {"layer": index, "run": self.run_digest, **self.name_environment()}
            content |= {"num_epochs": num_epochs, "digests": digests}
            content |= {"metrics": metrics.to_mapping(), "digest_below": self._digest_below(index)}
            with storage_errors(self.path / name):
                write_manifest(self.folder, f"progress/{MANIFEST}", content)
                self._remove_progress(before, kept=digests)

        return commit

    def _remove_progress(self, named: Mapping[str, str], kept: Mapping[str, str]) -> int:
        """Remove the progress files that a manifest named or that bear the run's identity, except those in `kept`."""
        own = re.compile(rf"layer-\d+-(epoch|tile)-\d+-{self.folder.identity}\.safetensors")
        names = [name for name in self.folder.names("progress") if name in named or own.fullmatch(name)]
        return self.folder.remove_matching("progress", *(re.escape(name) for name in names if name not in kept))

    def read_progress(self) -> tuple[int, int] | None:
        """(layer, epochs taken in all its tiles) of the saved progress, or None. Raises CorruptFileError."""
        manifest = self._read_progress_manifest()
        return (int(manifest["layer"]), int(manifest["num_epochs"])) if manifest is not None else None

    def load_progress(self, layer: Layer, optimiser: OptimiserState) -> None:
        """Fill layer and optimiser from the saved progress. Raises CorruptFileError."""
        manifest, state = self._read_progress_manifest(), optimiser.state()
        assert manifest is not None, "there is progress to load"
        prefix = f"layer-{manifest['layer']:03d}-epoch-{manifest['num_epochs']:04d}"
        name, digest = _find_named(manifest["digests"], prefix, self.path)
        # Reads into the tensors of both: there may be no memory for a second layer beside this one.
        targets = {f"layer.{key}": value for key, value in layer.state_dict().items()}
        targets |= {f"optimiser.{key}": value for key, value in state.items()}
        fill_tensors(self.folder, f"progress/{name}", digest, targets)
        optimiser.load_state(state)

    def verify_progress(self) -> None:
        """Check every digest of the layer being trained, if there is one. Raises CorruptFileError."""
        manifest = self._read_progress_manifest()
        try:
            for name, digest in manifest["digests"].items() if manifest is not None else ():
                check_digest(self.folder, f"progress/{name}", digest)
        except CorruptFileError:
            if manifest == self._read_progress_manifest():
                raise
            self.verify_progress()  # another process is training, and has replaced it meanwhile

    def load_tile(self, index: int, tile: int, layer: Layer) -> None:
        """Fill `layer` with a finished tile of the layer being trained. Raises CorruptFileError."""
        manifest = self._read_progress_manifest() or {"digests": {}}
        name, digest = _find_tile(manifest["digests"], index, tile, self.path)
        tensors = load_tensors(self.folder, f"progress/{name}", digest)
        _assign_state(layer, tensors, self.path / "progress" / name)

    def _read_progress_manifest(self) -> dict[str, Any] | None:
        name = f"progress/{MANIFEST}"
        try:
            manifest = read_manifest(self.folder, name, PROGRESS, _REPAIR)
        except FileNotFoundError:
            return None
        self.check_names_this_run(manifest, name, _REPAIR)
        self.check_names_environment(manifest, name, _REPAIR)
        index = manifest["layer"]
        is_current = index <= self.count_layers()  # else a layer below it is missing, which is reported elsewhere
        if is_current and manifest.get("digest_below", self._digest_below(index)) != self._digest_below(index):
            raise CorruptFileError(
                f"manifest {self.path / name}: trained on another layer {index} than the one in "
                f"{self.layer_folder(index - 1)}; restore both from one copy, or put them aside with ffstream "
                "repair --apply"
            )
        return manifest

    def _tile_name(self, index: int, tile: int) -> str:
        return f"progress/layer-{index:03d}{_TILE}{tile:03d}-{self.folder.identity}.safetensors"

    def drop_progress(self) -> int:
        """Remove the progress of a layer that is committed by now. Returns the bytes removed.

        The manifest is removed first, so that what is left of a half-removed progress does not count as one.
        """
        try:
            named = read_manifest(self.folder, f"progress/{MANIFEST}", PROGRESS)["digests"]
        except FileNotFoundError:
            named = {}
        else:
            self.folder.remove(f"progress/{MANIFEST}")
        return self._remove_progress(named, kept={})

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
        num_layers, progress = self.count_layers(), self._read_progress_manifest()
        manifest = self.read_layer_manifest(num_layers - 1) if num_layers else {}
        if progress is not None and progress["layer"] >= num_layers:
            manifest = progress
        return MetricsSeal(**manifest["metrics"]) if "metrics" in manifest else None

    def check_metrics(self) -> None:
        """Check the lines that describe what is committed. Raises CorruptFileError."""
        seal, progress = self.read_seal(), self._read_progress_manifest()
        if seal is None:
            return
        try:
            self.metrics.check(seal)
        except CorruptFileError:
            if progress is not None and progress["layer"] >= self.count_layers():
                self.verify_progress()  # a progress of another run seals other lines: that error comes first
            raise

    def check_metrics_end(self, most_layers: int) -> None:
        """Check that only lines of an unfinished run follow the sealed ones. Raises CorruptFileError."""
        seal, progress, num_layers = self.read_seal(), self.read_progress(), self.count_layers()
        num_epochs = progress[1] if progress is not None and progress[0] >= num_layers else 0
        problem = self.metrics.find_tail(seal, num_layers, num_epochs, most_layers) if seal is not None else None
        if problem is None:
            return
        if (seal, progress, num_layers) == (self.read_seal(), self.read_progress(), self.count_layers()):
            raise CorruptFileError(problem)
        self.check_metrics_end(most_layers)  # another process is training, and has committed more meanwhile

    # --- the softmax readout

    def commit_readout(self, tensors: dict[str, Tensor], identity: dict[str, Any]) -> None:
        """Save the readout; `identity` says what it was trained on. Only the holder of the lock may call this.

        The previous manifest is removed first, so that a half-written readout does not count as one.
        """
        manifest, weights = f"readout/{MANIFEST}", f"readout/{_WEIGHTS}"
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
        return load_tensors(self.folder, f"readout/{_WEIGHTS}", manifest["digest_file"])

    def load_fitted_readout(self, num_layers: int) -> dict[str, Tensor] | None:
        """The saved readout if it was fitted, with any settings, on the current layers, else None.

        Raises CorruptFileError.
        """
        manifest = self._read_readout_manifest()
        if manifest is None or manifest["identity"]["layers"] != self.read_weight_digests(num_layers):
            return None
        return load_tensors(self.folder, f"readout/{_WEIGHTS}", manifest["digest_file"])

    def verify_readout(self) -> None:
        """Check the saved readout, if there is one. Raises CorruptFileError."""
        manifest = self._read_readout_manifest()
        if manifest is not None:
            load_tensors(self.folder, f"readout/{_WEIGHTS}", manifest["digest_file"])

    def _read_readout_manifest(self) -> dict[str, Any] | None:
        name = f"readout/{MANIFEST}"
        try:
            manifest = read_manifest(self.folder, name, READOUT, _REPAIR)
        except FileNotFoundError:
            return None
        if "run" in manifest:  # missing if the run had no identity when it was written
            self.check_names_this_run(manifest, name, _REPAIR)
        return manifest

    def passing_bytes(self, cache_dir: str = "") -> int:
        """Bytes of the run's temporary files: caches and progress."""
        folder, _ = self.open_cache(cache_dir)
        in_caches = sum(
            folder.size(f"{name}/{each}") for name in self.list_caches(cache_dir) for each in folder.names(name)
        )
        return in_caches + sum(self.folder.size(f"progress/{name}") for name in self.folder.names("progress"))


def _layer(index: int) -> str:
    return f"layers/{index:03d}"


def _find_named(digests: Mapping[str, str], prefix: str, path: Path) -> tuple[str, str]:
    """The progress file with this prefix, and its digest. In runs of earlier versions, names hold no identity."""
    for name, digest in digests.items():
        if re.fullmatch(rf"{re.escape(prefix)}(-[0-9a-f]{{16}})?\.safetensors", name):
            return name, digest
    raise CorruptFileError(f"progress {path / 'progress'}: does not name {prefix}; {_REPAIR}")


def _find_tile(digests: Mapping[str, str], index: int, tile: int, path: Path) -> tuple[str, str]:
    return _find_named(digests, f"layer-{index:03d}{_TILE}{tile:03d}", path)


def _host_state(layer: Layer) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in layer.state_dict().items()}


def _unit_axes(layer: Layer) -> dict[str, int]:
    return {name: layer.unit_axis(name) for name in layer.state_dict()}


def _assign_state(layer: Layer, tensors: dict[str, Tensor], path: Path) -> None:
    """Make the tensors the layer's own, which may be without memory. Raises CorruptFileError if they do not fit."""
    own = {key: (tuple(value.shape), value.dtype) for key, value in layer.state_dict().items()}
    found = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
    if own != found:
        raise CorruptFileError(f"file {path}: holds {found}, this configuration needs {own}; {RESTORE}")
    layer.load_state_dict(tensors, assign=True)
