"""The finished layers of a run: which are committed, and their parameters and goodness, checked as they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.field.layers import Layer
from ffstream.storage.manifest import LAYER, content_digest, read_manifest
from ffstream.storage.rounds import REPAIR, RunRounds
from ffstream.storage.run_root import MANIFEST
from ffstream.storage.tensor_file import RESTORE, check_digest, fill_tensors, load_tensor
from ffstream.storage.tensor_tiles import digest_tiles, load_slices

WEIGHTS, VALIDATION, OPTIMISER = "weights.safetensors", "validation.safetensors", "optimiser.safetensors"
_NUMBER = re.compile(r"[0-9]{3,18}")


class OptimiserState(Protocol):
    """The part of an optimiser that is needed here: its state."""

    def state(self) -> dict[str, Tensor]:
        """All tensors that `load_state` needs, by name."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the tensors that `state` returned."""


class FinishedLayers(RunRounds):
    """Reads the committed layers of one run directory."""

    def count_layers(self) -> int:
        """The number of committed layers. Raises CorruptFileError when one below another is missing, StorageError."""
        with self.kept():
            return self._count_layers()

    def _count_layers(self) -> int:
        found = self.list_layers()
        for expected, index in enumerate(found):
            if index != expected:
                raise CorruptFileError(
                    f"run {self.path}: layer {expected + 1} is missing although layer {index + 1} is there; restore "
                    f"{self.layer_folder(expected)} from a copy, or put those above it aside with ffstream repair "
                    "--apply"
                )
        manifests = self.list_manifests()
        if manifests is not None and len(manifests) != len(found):
            raise CorruptFileError(
                f"run {self.path}: round {self.round} has {len(manifests)} layers, found {len(found)}; restore "
                f"{self.layer_folder(len(found))} from a copy, or put the round aside with ffstream repair --apply"
            )
        return len(found)

    def list_layers(self) -> list[int]:
        """The indices of all layer folders that have a manifest."""
        above = self.layers_folder
        names = [name for name in self.folder.names(above) if _NUMBER.fullmatch(name) and name == f"{int(name):03d}"]
        return [int(name) for name in names if self.folder.find_kind(f"{above}/{name}/{MANIFEST}") is not None]

    def layer_folder(self, index: int) -> Path:
        """The folder of layer `index`, counted from 0."""
        return self.path / self.layer_name(index)

    def read_layer_manifest(self, index: int) -> dict[str, Any]:
        """The manifest of a committed layer, checked to belong to this layer of this run. Raises CorruptFileError."""
        with self.kept():
            return self._read_layer_manifest(index)

    def _read_layer_manifest(self, index: int) -> dict[str, Any]:
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
        name = f"{self.layer_name(index)}/{MANIFEST}"
        manifest = read_manifest(self.folder, name, LAYER, REPAIR)
        if manifest.get("layer") != index:
            found = manifest.get("layer")
            raise CorruptFileError(
                f"manifest {self.path / name}: belongs to layer index {found}, found at {index}; {REPAIR}"
            )
        self.check_names_this_run(manifest, name, REPAIR)
        self.check_names_environment(manifest, name, REPAIR)
        self.check_names_round(manifest, name, REPAIR)
        of_round = self.list_manifests()
        if of_round is not None and content_digest(manifest) not in of_round[index : index + 1]:
            raise CorruptFileError(
                f"manifest {self.path / name}: is not the one that round {self.round} was committed with; {REPAIR}"
            )
        return manifest

    def load_layer(self, index: int, layer: Layer) -> None:
        """Fill `layer` with committed parameters, checked as they are read. Raises CorruptFileError."""
        with self.kept():
            digest = self.read_layer_manifest(index)["digests"]["weights"]
            fill_tensors(self.folder, f"{self.layer_name(index)}/{WEIGHTS}", digest, layer.state_dict())

    def load_optimiser(self, index: int, optimiser: OptimiserState) -> None:
        """Fill an optimiser with the state that is kept with a layer of a round. Raises CorruptFileError."""
        state = optimiser.state()
        digest = self.read_layer_manifest(index)["digests"].get("optimiser", "")
        fill_tensors(self.folder, f"{self.layer_name(index)}/{OPTIMISER}", digest, state)
        optimiser.load_state(state)

    def digest_tiles(self, index: int, layer: Layer, tiles: list[slice]) -> list[str]:
        """Check a committed layer's parameters, and return a digest for each tile. `layer` is any one of the tiles.

        Raises CorruptFileError.
        """
        digest = self.read_layer_manifest(index)["digests"]["weights"]
        name = f"{self.layer_name(index)}/{WEIGHTS}"
        return digest_tiles(self.folder, name, digest, layer.list_unit_axes(), tiles)

    def load_units(self, index: int, units: slice, layer: Layer, digest: str) -> None:
        """Fill `layer`, a tile, with the slice `units` of a committed layer; `digest` is that of the tile."""
        name = f"{self.layer_name(index)}/{WEIGHTS}"
        assign_state(layer, load_slices(self.folder, name, layer.list_unit_axes(), units, digest), self.path / name)

    def load_validation_goodness(self, index: int) -> Tensor | None:
        """One layer's goodness for all labels on the validation split, (n, C), or None without such a split."""
        name = f"{self.layer_name(index)}/{VALIDATION}"
        with self.kept():
            digest = self.read_layer_manifest(index)["digests"].get("validation")
            if digest is None:
                return None
            return load_tensor(self.folder, name, digest, "goodness", torch.float32, 2)

    def verify_layer(self, index: int) -> None:
        """Check every digest of a committed layer. Raises CorruptFileError."""
        for name, digest in self.read_layer_manifest(index)["digests"].items():
            check_digest(self.folder, f"{self.layer_name(index)}/{name}.safetensors", digest)

    def verify_round(self) -> None:
        """Check every digest of a committed round. Raises CorruptFileError, and RunError if it is gone."""
        with self.kept():
            for index in range(len(self.read_round()["layers"])):
                self.verify_layer(index)

    def verify_next_round(self) -> None:
        """Check the layers of the round that is under way, if there are rounds. Raises CorruptFileError."""
        written = self.under_way()
        for index in written.list_layers() if written.round != self.round else ():
            try:
                written.verify_layer(index)
            except (CorruptFileError, FileNotFoundError):
                if self.count_rounds() < written.round:  # else it is committed, and maybe removed, by now
                    raise


def assign_state(layer: Layer, tensors: dict[str, Tensor], path: Path) -> None:
    """Make the tensors the layer's own, which may be without memory. Raises CorruptFileError if they do not fit."""
    own = {key: (tuple(value.shape), value.dtype) for key, value in layer.state_dict().items()}
    found = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
    if own != found:
        raise CorruptFileError(f"file {path}: holds {found}, this configuration needs {own}; {RESTORE}")
    layer.load_state_dict(tensors, assign=True)
