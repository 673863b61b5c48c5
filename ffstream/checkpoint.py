"""What a run directory holds, and the one protocol by which it is committed.

RUN/config.toml                        the resolved configuration
RUN/data.json                          what the network must know of its data: classes, shape, scale, digest
RUN/validation.safetensors             labels of the validation split, in the order of its goodness
RUN/layers/000/weights.safetensors     parameters of layer 0
RUN/layers/000/validation.safetensors  its goodness of all labels on the validation split
RUN/layers/000/manifest.json           digests and figures; a layer counts as done only by it, so it comes last
RUN/progress/                          the layer being trained, once an epoch, by the same protocol; its finished tiles
RUN/cache/                             activation caches of the disk tier
RUN/readout/                           the softmax readout, once it was asked for
RUN/metrics.jsonl                      a line an epoch and a line a layer
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.errors import CorruptFileError, RunError
from ffstream.files import write_atomic
from ffstream.layers import Layer
from ffstream.manifest import DATA, LAYER, PROGRESS, READOUT, read_manifest, write_manifest
from ffstream.metrics import MetricsFile, MetricsSeal
from ffstream.optimiser import LayerOptimiser
from ffstream.tensor_file import (
    RESTORE,
    check_digest,
    fill_tensors,
    join_tensors,
    load_slices,
    load_tensor,
    load_tensors,
    write_tensors,
)

_MANIFEST = "manifest.json"
_CONFIG_SEAL = b"# sha256 "
_TILE = "-tile-"  # in the name of a file of the progress: one that stays until the layer is finished


class RunDirectory:
    """Reads and writes one run directory. Nothing is unpickled, ever."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    # --- the run as a whole

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.toml").is_file()

    def create(self, config_toml: str, data: dict[str, Any], validation_labels: Tensor | None = None) -> None:
        """Start a run: labels of the validation split (n,), data.json, then config.toml, which makes it one."""
        if validation_labels is not None:
            publish_file = write_tensors(self._validation_path, {"labels": validation_labels})
            data = data | {"validation_labels_digest": publish_file()}
        write_manifest(self.path / "data.json", data)
        self.write_config(config_toml)

    def write_config(self, config_toml: str) -> None:
        """Replace the configuration. Its first line, a comment, is the digest of the others."""
        text = config_toml.encode()
        write_atomic(self.path / "config.toml", _CONFIG_SEAL + hashlib.sha256(text).hexdigest().encode() + b"\n" + text)

    def find_config(self) -> Path:
        """The file of the configuration. Raises CorruptFileError when it is not as it was written."""
        path = self.path / "config.toml"
        with contextlib.suppress(FileNotFoundError):
            first, _, text = path.read_bytes().partition(b"\n")
            if first.startswith(_CONFIG_SEAL):
                digest = first.removeprefix(_CONFIG_SEAL).decode(errors="replace")
                if digest != hashlib.sha256(text).hexdigest():
                    raise CorruptFileError(
                        f"config {path}: altered since it was written (its digest, in the first line, differs); "
                        "restore it from a copy, or, if it was meant, delete its first line"
                    )
        return path

    def read_data(self) -> dict[str, Any]:
        """What `create` was given. Raises RunError, CorruptFileError."""
        try:
            data = read_manifest(self.path / "data.json", DATA)
        except FileNotFoundError:
            raise RunError(f"run {self.path}: has no data.json; restore it from a copy") from None
        if math.prod(data["image_shape"]) != data["num_features"] or len(data["class_names"]) != data["num_classes"]:
            raise CorruptFileError(
                f"manifest {self.path / 'data.json'}: {data['num_features']} features in images of shape "
                f"{tuple(data['image_shape'])}, {len(data['class_names'])} names of {data['num_classes']} classes; "
                "restore it from a copy"
            )
        return data

    def load_validation_labels(self) -> Tensor | None:
        """Labels (n,) that `create` was given, or None; also of a run that was started before they were kept."""
        digest = self.read_data().get("validation_labels_digest")
        return None if digest is None else load_tensor(self._validation_path, digest, "labels", torch.int64, 1)

    @property
    def _validation_path(self) -> Path:
        return self.path / "validation.safetensors"

    # --- layers

    def count_layers(self) -> int:
        """How many layers are committed. Raises CorruptFileError when one below another is missing."""
        folder = self.path / "layers"
        found = sorted(int(p.parent.name) for p in folder.glob(f"*/{_MANIFEST}") if p.parent.name.isdigit())
        for expected, index in enumerate(found):
            if index != expected:
                raise CorruptFileError(
                    f"run {self.path}: layer {expected + 1} is missing although layer {index + 1} is there; restore "
                    f"{self.layer_folder(expected)} from a copy, or delete the folders above it to train them again"
                )
        return len(found)

    def layer_folder(self, index: int) -> Path:
        """Where layer `index`, counted from 0, lives."""
        return self.path / "layers" / f"{index:03d}"

    def write_layer(
        self,
        index: int,
        layer: Layer,
        goodness: Tensor | None,
        figures: dict[str, Any],
        metrics: MetricsSeal,
        num_tiles: int = 1,
    ) -> Callable[[], None]:
        """Write down a finished layer and its validation goodness (n, C). The action that is returned commits it.

        `metrics` seals the lines that tell of it. Of several tiles, `layer` is the last; those before are in the
        progress, and are joined with it.
        """
        folder = self.layer_folder(index)
        written = {"weights": self._write_weights(index, layer, num_tiles)}
        if goodness is not None:
            written["validation"] = write_tensors(folder / "validation.safetensors", {"goodness": goodness})

        def commit() -> None:
            digests = {name: publish_file() for name, publish_file in written.items()}
            manifest = {"layer": index, "digests": digests, "figures": figures, "metrics": metrics.to_mapping()}
            write_manifest(folder / _MANIFEST, manifest | {"digest_below": self._digest_below(index)})

        return commit

    def _write_weights(self, index: int, layer: Layer, num_tiles: int) -> Callable[[], str]:
        path = self.layer_folder(index) / "weights.safetensors"
        if num_tiles == 1:
            return write_tensors(path, _host_state(layer))
        *before, last = (self._tile_path(index, tile) for tile in range(num_tiles))
        publish_last = write_tensors(last, _host_state(layer))
        axes = _unit_axes(layer)

        def publish_joined() -> str:
            parts = {part: self._progress_digest(part) for part in before}
            return join_tensors(path, parts | {last: publish_last()}, axes)()

        return publish_joined

    def read_layer_manifest(self, index: int) -> dict[str, Any]:
        """The manifest of a committed layer, checked to belong where it stands. Raises CorruptFileError."""
        manifest, path = self._read_numbered_manifest(index), self.layer_folder(index) / _MANIFEST
        if manifest["digest_below"] != self._digest_below(index):
            raise CorruptFileError(
                f"manifest {path}: trained on another layer {index} than the one in {self.layer_folder(index - 1)}; "
                "restore both from one copy"
            )
        return manifest

    def _digest_below(self, index: int) -> str:
        """Of the weights of the layer that layer `index` was trained on."""
        return str(self._read_numbered_manifest(index - 1)["digests"]["weights"]) if index else ""

    def _read_numbered_manifest(self, index: int) -> dict[str, Any]:
        path = self.layer_folder(index) / _MANIFEST
        manifest = read_manifest(path, LAYER)
        if manifest.get("layer") != index:
            found = manifest.get("layer")
            raise CorruptFileError(f"manifest {path}: belongs to layer index {found}, found at {index}; {RESTORE}")
        return manifest

    def load_layer(self, index: int, layer: Layer, *, assign: bool = False) -> None:
        """Fill `layer` with committed parameters, digest checked first. Raises CorruptFileError.

        With `assign`, they become its own, which need not have had memory.
        """
        path = self.layer_folder(index) / "weights.safetensors"
        tensors = load_tensors(path, self.read_layer_manifest(index)["digests"]["weights"])
        _load_state(layer, tensors, path, assign=assign)

    def verify_weights(self, index: int) -> None:
        """Check the digest of a committed layer's parameters. Raises CorruptFileError."""
        path = self.layer_folder(index) / "weights.safetensors"
        check_digest(path, self.read_layer_manifest(index)["digests"]["weights"])

    def load_units(self, index: int, units: slice, layer: Layer) -> None:
        """Fill `layer`, which has as many units, with some of a committed layer's. Its digest was checked before."""
        path = self.layer_folder(index) / "weights.safetensors"
        _load_state(layer, load_slices(path, _unit_axes(layer), units), path, assign=True)

    def load_validation_goodness(self, index: int) -> Tensor | None:
        """Goodness of all labels of one layer on the validation split, (n, C), or None without such a split."""
        digest = self.read_layer_manifest(index)["digests"].get("validation")
        if digest is None:
            return None
        return load_tensor(self.layer_folder(index) / "validation.safetensors", digest, "goodness", torch.float32, 2)

    def verify_layer(self, index: int) -> None:
        """Check every digest of a committed layer. Raises CorruptFileError."""
        for name, digest in self.read_layer_manifest(index)["digests"].items():
            check_digest(self.layer_folder(index) / f"{name}.safetensors", digest)

    # --- the layer being trained

    def write_progress(
        self, index: int, num_epochs: int, layer: Layer, optimiser: LayerOptimiser, metrics: MetricsSeal
    ) -> Callable[[], None]:
        """Write down the layer being trained, or its tile, after `num_epochs` epochs; it may change once this returns.

        `metrics` seals the lines that tell of them. The action that is returned makes it durable. The progress before
        is kept until then.
        """
        tensors = {f"layer.{key}": value for key, value in _host_state(layer).items()}
        tensors |= {f"optimiser.{key}": value.cpu() for key, value in optimiser.state().items()}
        return self._write_progress(index, num_epochs, self._epoch_path(index, num_epochs), tensors, metrics)

    def write_tile(
        self, index: int, tile: int, num_epochs: int, layer: Layer, metrics: MetricsSeal
    ) -> Callable[[], None]:
        """Write down a finished tile of the layer being trained, as `write_progress` does."""
        return self._write_progress(index, num_epochs, self._tile_path(index, tile), _host_state(layer), metrics)

    def _write_progress(
        self, index: int, num_epochs: int, path: Path, tensors: dict[str, Tensor], metrics: MetricsSeal
    ) -> Callable[[], None]:
        """Add a file to the progress, in place of all that are not finished tiles."""
        publish_file = write_tensors(path, tensors)

        def commit() -> None:
            digest = publish_file()
            found = self._read_progress_manifest()
            kept = found["digests"] if found is not None and found["layer"] == index else {}
            digests = {name: kept[name] for name in kept if _TILE in name} | {path.name: digest}
            content = {"layer": index, "num_epochs": num_epochs, "digests": digests, "metrics": metrics.to_mapping()}
            write_manifest(path.parent / _MANIFEST, content | {"digest_below": self._digest_below(index)})
            for old in path.parent.glob("layer-*.safetensors"):
                if old.name not in digests:
                    old.unlink()

        return commit

    def read_progress(self) -> tuple[int, int] | None:
        """(layer, epochs taken, counted through its tiles) of the saved progress, or None. Raises CorruptFileError."""
        manifest = self._read_progress_manifest()
        return (int(manifest["layer"]), int(manifest["num_epochs"])) if manifest is not None else None

    def load_progress(self, layer: Layer, optimiser: LayerOptimiser) -> None:
        """Fill layer and optimiser from the saved progress. Raises CorruptFileError."""
        found = self.read_progress()
        assert found is not None, "there is progress to load"
        path, state = self._epoch_path(*found), optimiser.state()
        # Into the memory of both: a second layer has no room beside this one.
        targets = {f"layer.{key}": value for key, value in layer.state_dict().items()}
        targets |= {f"optimiser.{key}": value for key, value in state.items()}
        fill_tensors(path, self._progress_digest(path), targets)
        optimiser.load_state(state)

    def verify_progress(self) -> None:
        """Check every digest of the layer being trained, if there is one. Raises CorruptFileError."""
        manifest = self._read_progress_manifest()
        try:
            for name, digest in manifest["digests"].items() if manifest is not None else ():
                check_digest(self.path / "progress" / name, digest)
        except CorruptFileError:
            if manifest == self._read_progress_manifest():
                raise
            self.verify_progress()  # another process trains, and has replaced it meanwhile

    def load_tile(self, index: int, tile: int, layer: Layer) -> None:
        """Fill `layer` with a finished tile of the layer being trained. Raises CorruptFileError."""
        path = self._tile_path(index, tile)
        _load_state(layer, self._load_from_progress(path), path, assign=True)

    def _load_from_progress(self, path: Path) -> dict[str, Tensor]:
        return load_tensors(path, self._progress_digest(path))

    def _progress_digest(self, path: Path) -> str:
        manifest = read_manifest(path.parent / _MANIFEST, PROGRESS)
        try:
            return str(manifest["digests"][path.name])
        except KeyError:
            raise CorruptFileError(f"progress {path.parent}: does not name {path.name}; {RESTORE}") from None

    def _read_progress_manifest(self) -> dict[str, Any] | None:
        path = self.path / "progress" / _MANIFEST
        try:
            manifest = read_manifest(path, PROGRESS)
        except FileNotFoundError:
            return None
        index = manifest["layer"]
        is_current = index <= self.count_layers()  # not above a layer that is missing: of that more is said elsewhere
        if is_current and manifest.get("digest_below", self._digest_below(index)) != self._digest_below(index):
            raise CorruptFileError(
                f"manifest {path}: trained on another layer {index} than the one in {self.layer_folder(index - 1)}; "
                "restore both from one copy, or delete its folder to have the layer trained again"
            )
        return manifest

    def _epoch_path(self, index: int, num_epochs: int) -> Path:
        return self.path / "progress" / f"layer-{index:03d}-epoch-{num_epochs:04d}.safetensors"

    def _tile_path(self, index: int, tile: int) -> Path:
        return self.path / "progress" / f"layer-{index:03d}{_TILE}{tile:03d}.safetensors"

    def drop_progress(self) -> None:
        """The layer is committed: its progress is no longer needed. Manifest first, so that half of it is none."""
        (self.path / "progress" / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path / "progress", ignore_errors=True)

    # --- metrics

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def check_metrics(self) -> None:
        """Check the lines that tell of what is committed. Raises CorruptFileError."""
        num_layers, progress = self.count_layers(), self._read_progress_manifest()
        manifest = self.read_layer_manifest(num_layers - 1) if num_layers else {}
        if progress is not None and progress["layer"] >= num_layers:
            manifest = progress
        if "metrics" in manifest:  # not in those of a run that is older than seals
            try:
                MetricsFile(self.metrics_path).check(MetricsSeal(**manifest["metrics"]))
            except CorruptFileError:
                if manifest is progress:
                    self.verify_progress()  # of another run it seals other lines: then it is that which is said
                raise

    # --- the softmax readout

    def commit_readout(self, tensors: dict[str, Tensor], identity: dict[str, Any]) -> None:
        """Save the readout; `identity` says what it was trained on."""
        digest = write_tensors(self.path / "readout" / "weights.safetensors", tensors)()
        write_manifest(self.path / "readout" / _MANIFEST, {"identity": identity, "digest_file": digest})

    def load_readout(self, identity: dict[str, Any]) -> dict[str, Tensor] | None:
        """The saved readout if it was trained on the same, else None. Raises CorruptFileError."""
        folder = self.path / "readout"
        try:
            manifest = read_manifest(folder / _MANIFEST, READOUT)
        except FileNotFoundError:
            return None
        if manifest["identity"] != identity:
            return None
        return load_tensors(folder / "weights.safetensors", manifest["digest_file"])

    def load_fitted_readout(self, num_layers: int) -> dict[str, Tensor] | None:
        """The saved readout if it was fitted on the layers that are here, however. Raises CorruptFileError."""
        try:
            identity = read_manifest(self.path / "readout" / _MANIFEST, READOUT)["identity"]
        except FileNotFoundError:
            return None
        digests = [self.read_layer_manifest(index)["digests"]["weights"] for index in range(num_layers)]
        return self.load_readout(identity) if identity["layers"] == digests else None

    def passing_bytes(self) -> int:
        """Bytes of what is here for a time only: caches and progress."""
        files = [path for name in ("cache", "progress") for path in (self.path / name).rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    @property
    def cache_root(self) -> Path:
        return self.path / "cache"

    def cache_folder(self, layer: int, part: str) -> Path:
        """Where the disk tier keeps what layer `layer` reads, for "train" or "validation"."""
        return self.cache_root / f"{layer:03d}-{part}"


def _host_state(layer: Layer) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in layer.state_dict().items()}


def _unit_axes(layer: Layer) -> dict[str, int]:
    return {name: layer.unit_axis(name) for name in layer.state_dict()}


def _load_state(layer: Layer, tensors: dict[str, Tensor], path: Path, *, assign: bool = False) -> None:
    """With `assign`, the tensors become the layer's own, which need not have had memory."""
    own = {key: (tuple(value.shape), value.dtype) for key, value in layer.state_dict().items()}
    found = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
    if own != found:
        raise CorruptFileError(f"file {path}: holds {found}, this configuration needs {own}; {RESTORE}")
    layer.load_state_dict(tensors, assign=assign)
