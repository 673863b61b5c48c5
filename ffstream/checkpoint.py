"""What a run directory holds, and the one protocol by which it is committed.

RUN/config.toml                        the resolved configuration
RUN/data.json                          what the network must know of its data: classes, shape, scale, digest
RUN/layers/000/weights.safetensors     parameters of layer 0
RUN/layers/000/validation.safetensors  its goodness of all labels on the validation split
RUN/layers/000/manifest.json           digests and figures; a layer counts as done only by it, so it comes last
RUN/progress/                          the layer being trained, once an epoch, by the same protocol
RUN/cache/                             activation caches of the disk tier
RUN/readout/                           the softmax readout, once it was asked for
RUN/metrics.jsonl                      a line an epoch and a line a layer
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ffstream.errors import CorruptFileError, RunError
from ffstream.files import (
    make_temporary,
    publish,
    read_manifest,
    removed_on_error,
    sha256_file,
    storage_errors,
    write_atomic,
    write_manifest,
)
from ffstream.layers import Layer
from ffstream.optimiser import LayerOptimiser

_MANIFEST = "manifest.json"


class RunDirectory:
    """Reads and writes one run directory. Nothing is unpickled, ever."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    # --- the run as a whole

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.toml").is_file()

    def create(self, config_toml: str, data: dict[str, Any]) -> None:
        """Start a run: data.json, then config.toml, which makes it one."""
        write_manifest(self.path / "data.json", data)
        self.write_config(config_toml)

    def write_config(self, config_toml: str) -> None:
        """Replace the configuration."""
        write_atomic(self.path / "config.toml", config_toml.encode())

    def read_data(self) -> dict[str, Any]:
        """What `create` was given. Raises RunError, CorruptFileError."""
        try:
            return read_manifest(self.path / "data.json")
        except FileNotFoundError:
            raise RunError(f"run {self.path}: has no data.json; restore it from a copy") from None

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
        self, index: int, layer: Layer, goodness: Tensor | None, figures: dict[str, Any]
    ) -> Callable[[], None]:
        """Write down a finished layer and its validation goodness (n, C). The action that is returned commits it."""
        folder = self.layer_folder(index)
        tensors = {"weights": _host_state(layer)}
        if goodness is not None:
            tensors["validation"] = {"goodness": goodness}
        written = {name: _write_tensors(folder / f"{name}.safetensors", part) for name, part in tensors.items()}

        def commit() -> None:
            digests = {name: publish_file() for name, publish_file in written.items()}
            below = self._read_numbered_manifest(index - 1)["digests"]["weights"] if index else ""
            manifest = {"layer": index, "digests": digests, "digest_below": below, "figures": figures}
            write_manifest(folder / _MANIFEST, manifest)

        return commit

    def read_layer_manifest(self, index: int) -> dict[str, Any]:
        """The manifest of a committed layer, checked to belong where it stands. Raises CorruptFileError."""
        manifest, path = self._read_numbered_manifest(index), self.layer_folder(index) / _MANIFEST
        if index and manifest["digest_below"] != self._read_numbered_manifest(index - 1)["digests"]["weights"]:
            raise CorruptFileError(
                f"manifest {path}: trained on another layer {index} than the one in {self.layer_folder(index - 1)}; "
                "restore both from one copy"
            )
        return manifest

    def _read_numbered_manifest(self, index: int) -> dict[str, Any]:
        path = self.layer_folder(index) / _MANIFEST
        manifest = read_manifest(path)
        if manifest.get("layer") != index:
            found = manifest.get("layer")
            raise CorruptFileError(f"manifest {path}: belongs to layer index {found}, found at {index}; {_RESTORE}")
        return manifest

    def load_layer(self, index: int, layer: Layer) -> None:
        """Fill `layer` with committed parameters, digest checked first. Raises CorruptFileError."""
        digest = self.read_layer_manifest(index)["digests"]["weights"]
        path = self.layer_folder(index) / "weights.safetensors"
        _load_state(layer, _load_tensors(path, digest), path)

    def load_validation_goodness(self, index: int) -> Tensor | None:
        """Goodness of all labels of one layer on the validation split, (n, C), or None without such a split."""
        digest = self.read_layer_manifest(index)["digests"].get("validation")
        if digest is None:
            return None
        return _load_tensors(self.layer_folder(index) / "validation.safetensors", digest)["goodness"]

    def verify_layer(self, index: int) -> None:
        """Check every digest of a committed layer. Raises CorruptFileError."""
        for name, digest in self.read_layer_manifest(index)["digests"].items():
            _load_tensors(self.layer_folder(index) / f"{name}.safetensors", digest)

    # --- the layer being trained

    def write_progress(
        self, index: int, num_epochs: int, layer: Layer, optimiser: LayerOptimiser
    ) -> Callable[[], None]:
        """Write down the layer being trained after `num_epochs` epochs; it may change as soon as this returns.

        The action that is returned makes it durable. The progress before is kept until then.
        """
        folder = self.path / "progress"
        name = f"layer-{index:03d}-epoch-{num_epochs:04d}.safetensors"
        tensors = {f"layer.{key}": value for key, value in _host_state(layer).items()}
        tensors |= {f"optimiser.{key}": value.cpu() for key, value in optimiser.state().items()}
        publish_file = _write_tensors(folder / name, tensors)

        def commit() -> None:
            digest = publish_file()
            content = {"layer": index, "num_epochs": num_epochs, "file": name, "digest_file": digest}
            write_manifest(folder / _MANIFEST, content)
            for old in folder.glob("layer-*.safetensors"):
                if old.name != name:
                    old.unlink()

        return commit

    def read_progress(self) -> tuple[int, int] | None:
        """(layer, epochs taken) of the saved progress, or None. Raises CorruptFileError."""
        try:
            manifest = read_manifest(self.path / "progress" / _MANIFEST)
        except FileNotFoundError:
            return None
        return int(manifest["layer"]), int(manifest["num_epochs"])

    def load_progress(self, layer: Layer, optimiser: LayerOptimiser) -> None:
        """Fill layer and optimiser from the saved progress. Raises CorruptFileError."""
        folder = self.path / "progress"
        manifest = read_manifest(folder / _MANIFEST)
        path = folder / f"layer-{int(manifest['layer']):03d}-epoch-{int(manifest['num_epochs']):04d}.safetensors"
        tensors = _load_tensors(path, manifest["digest_file"])
        layer_part = {k.removeprefix("layer."): v for k, v in tensors.items() if k.startswith("layer.")}
        _load_state(layer, layer_part, path)
        state = {k.removeprefix("optimiser."): v for k, v in tensors.items() if k.startswith("optimiser.")}
        try:
            optimiser.load_state(state)
        except (KeyError, RuntimeError) as error:
            raise CorruptFileError(f"file {path}: not this optimiser's state ({error}); {_RESTORE}") from error

    def drop_progress(self) -> None:
        """The layer is committed: its progress is no longer needed. Manifest first, so that half of it is none."""
        (self.path / "progress" / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path / "progress", ignore_errors=True)

    # --- the softmax readout

    def commit_readout(self, tensors: dict[str, Tensor], identity: dict[str, Any]) -> None:
        """Save the readout; `identity` says what it was trained on."""
        digest = _write_tensors(self.path / "readout" / "weights.safetensors", tensors)()
        write_manifest(self.path / "readout" / _MANIFEST, {"identity": identity, "digest_file": digest})

    def load_readout(self, identity: dict[str, Any]) -> dict[str, Tensor] | None:
        """The saved readout if it was trained on the same, else None. Raises CorruptFileError."""
        folder = self.path / "readout"
        try:
            manifest = read_manifest(folder / _MANIFEST)
        except FileNotFoundError:
            return None
        if manifest["identity"] != identity:
            return None
        return _load_tensors(folder / "weights.safetensors", manifest["digest_file"])

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


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> Callable[[], str]:
    """Write tensors under a temporary name. The action that is returned makes the file durable and tells its digest."""
    with storage_errors(path):
        temporary = make_temporary(path)
        with removed_on_error(temporary):
            save_file(tensors, temporary)

    def publish_file() -> str:
        with storage_errors(path), removed_on_error(temporary):
            digest = sha256_file(temporary)
            publish(temporary, path)
        return digest

    return publish_file


def _load_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        found = sha256_file(path)
        if found == digest:
            return load_file(path)
    except OSError as error:
        raise CorruptFileError(f"file {path}: cannot be read ({error.strerror}); {_RESTORE}") from error
    except SafetensorError as error:
        raise CorruptFileError(f"file {path}: not a safetensors file ({error}); {_RESTORE}") from error
    raise CorruptFileError(
        f"file {path}: altered or truncated since it was written (sha256 {found[:12]}, manifest {digest[:12]}); "
        f"{_RESTORE}"
    )


def _load_state(layer: Layer, tensors: dict[str, Tensor], path: Path) -> None:
    own = {key: (tuple(value.shape), value.dtype) for key, value in layer.state_dict().items()}
    found = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
    if own != found:
        raise CorruptFileError(f"file {path}: holds {found}, this configuration needs {own}; {_RESTORE}")
    layer.load_state_dict(tensors)


_RESTORE = "restore it from a copy, or delete its folder to have it trained again"
