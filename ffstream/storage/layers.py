"""The finished layers of a run: which are committed, and their parameters and goodness, checked as they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.field.layers import Layer
from ffstream.storage.manifest import LAYER, read_manifest
from ffstream.storage.run_environments import RunEnvironments
from ffstream.storage.run_root import MANIFEST
from ffstream.storage.tensor_file import RESTORE, check_digest, fill_tensors, load_tensor
from ffstream.storage.tensor_tiles import digest_tiles, load_slices

WEIGHTS, VALIDATION = "weights.safetensors", "validation.safetensors"
REPAIR = "restore it from a copy, or put it aside with ffstream repair --apply"
_NUMBER = re.compile(r"[0-9]{3,18}")


class FinishedLayers(RunEnvironments):
    """Reads the committed layers of one run directory."""

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
        return self.path / layer_name(index)

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

    def read_weight_digests(self, num_layers: int) -> list[str]:
        """The digests of the parameters of the first `num_layers` layers."""
        return [str(self.read_layer_manifest(index)["digests"]["weights"]) for index in range(num_layers)]

    def _digest_below(self, index: int) -> str:
        """The digest of the weights of the layer below layer `index`; empty for the first layer."""
        return str(self._read_numbered_manifest(index - 1)["digests"]["weights"]) if index else ""

    def _read_numbered_manifest(self, index: int) -> dict[str, Any]:
        name = f"{layer_name(index)}/{MANIFEST}"
        manifest = read_manifest(self.folder, name, LAYER, REPAIR)
        if manifest.get("layer") != index:
            found = manifest.get("layer")
            raise CorruptFileError(
                f"manifest {self.path / name}: belongs to layer index {found}, found at {index}; {REPAIR}"
            )
        self.check_names_this_run(manifest, name, REPAIR)
        self.check_names_environment(manifest, name, REPAIR)
        return manifest

    def load_layer(self, index: int, layer: Layer) -> None:
        """Fill `layer` with committed parameters, checked as they are read. Raises CorruptFileError."""
        digest = self.read_layer_manifest(index)["digests"]["weights"]
        fill_tensors(self.folder, f"{layer_name(index)}/{WEIGHTS}", digest, layer.state_dict())

    def digest_tiles(self, index: int, layer: Layer, tiles: list[slice]) -> list[str]:
        """Check a committed layer's parameters, and return a digest for each tile. `layer` is any one of the tiles.

        Raises CorruptFileError.
        """
        digest = self.read_layer_manifest(index)["digests"]["weights"]
        return digest_tiles(self.folder, f"{layer_name(index)}/{WEIGHTS}", digest, layer.list_unit_axes(), tiles)

    def load_units(self, index: int, units: slice, layer: Layer, digest: str) -> None:
        """Fill `layer`, a tile, with the slice `units` of a committed layer; `digest` is that of the tile."""
        name = f"{layer_name(index)}/{WEIGHTS}"
        assign_state(layer, load_slices(self.folder, name, layer.list_unit_axes(), units, digest), self.path / name)

    def load_validation_goodness(self, index: int) -> Tensor | None:
        """One layer's goodness for all labels on the validation split, (n, C), or None without such a split."""
        digest = self.read_layer_manifest(index)["digests"].get("validation")
        if digest is None:
            return None
        return load_tensor(self.folder, f"{layer_name(index)}/{VALIDATION}", digest, "goodness", torch.float32, 2)

    def verify_layer(self, index: int) -> None:
        """Check every digest of a committed layer. Raises CorruptFileError."""
        for name, digest in self.read_layer_manifest(index)["digests"].items():
            check_digest(self.folder, f"{layer_name(index)}/{name}.safetensors", digest)


def layer_name(index: int) -> str:
    """The name of layer `index`'s folder within the run directory."""
    return f"layers/{index:03d}"


def assign_state(layer: Layer, tensors: dict[str, Tensor], path: Path) -> None:
    """Make the tensors the layer's own, which may be without memory. Raises CorruptFileError if they do not fit."""
    own = {key: (tuple(value.shape), value.dtype) for key, value in layer.state_dict().items()}
    found = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
    if own != found:
        raise CorruptFileError(f"file {path}: holds {found}, this configuration needs {own}; {RESTORE}")
    layer.load_state_dict(tensors, assign=True)
