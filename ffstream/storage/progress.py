"""The layer of a run that is being trained: its progress after each epoch, and its commit once it is finished.

RUN/progress/layer-000-epoch-0001-IDENTITY.safetensors  the layer, or its current tile, and its optimiser
RUN/progress/layer-000-epoch-0001-part-00003-IDENTITY.safetensors  the same within an epoch, with its generators
RUN/progress/layer-000-tile-000-IDENTITY.safetensors    a finished tile, kept until the layer is finished
RUN/progress/manifest.json                              their digests, and the epochs taken so far
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ffstream.errors import CorruptFileError
from ffstream.field.layers import Layer
from ffstream.ground.files import storage_errors
from ffstream.storage.epoch_part import EpochPart
from ffstream.storage.layers import (
    OPTIMISER,
    VALIDATION,
    WEIGHTS,
    FinishedLayers,
    OptimiserState,
    assign_state,
)
from ffstream.storage.manifest import PROGRESS, content_digest, read_manifest, write_manifest
from ffstream.storage.metrics import MetricsSeal
from ffstream.storage.rounds import REPAIR, round_name
from ffstream.storage.run_root import MANIFEST
from ffstream.storage.tensor_file import check_digest, fill_tensors, load_tensors, stage_tensors, write_tensors
from ffstream.storage.tensor_tiles import join_tensors

_PART_TENSORS = ("totals", "host_state", "device_state")
_TILE = "-tile-"  # in the name of a progress file that is kept until the layer is finished


@dataclass(frozen=True)
class BegunLayer:
    """A layer that is being written: its temporary folder, and the digests of the files that are there."""

    folder: str
    digests: Mapping[str, str]


class LayerProgress(FinishedLayers):
    """Reads and writes the layer being trained of one run directory, and commits it."""

    # --- each epoch and each tile

    def write_progress(
        self,
        index: int,
        num_epochs: int,
        layer: Layer,
        optimiser: OptimiserState,
        metrics: MetricsSeal,
        part: EpochPart | None = None,
    ) -> Callable[[], None]:
        """Write the layer being trained, or its tile, after `num_epochs` epochs; it may change once this returns.

        `part` is what is done of the next epoch. `metrics` seals the lines that describe those epochs. The returned
        function makes the new progress durable; the previous progress is kept until then.
        """
        tensors = {f"layer.{key}": value for key, value in _host_state(layer).items()}
        tensors |= {f"optimiser.{key}": value.cpu() for key, value in optimiser.state().items()}
        of_part: dict[str, Any] = {}
        if part is not None:
            tensors |= {f"epoch.{key}": getattr(part, key).cpu() for key in _PART_TENSORS}
            of_part = {key: getattr(part, key) for key in ("num_groups", "num_samples", "elapsed_s")}
        name = f"progress/{_epoch_name(index, num_epochs, of_part)}-{self.folder.identity}.safetensors"
        return self._write_progress(index, num_epochs, name, tensors, metrics, of_part)

    def write_tile(
        self, index: int, tile: int, num_epochs: int, layer: Layer, metrics: MetricsSeal
    ) -> Callable[[], None]:
        """Write a finished tile of the layer being trained, as `write_progress` does."""
        return self._write_progress(index, num_epochs, self._tile_name(index, tile), _host_state(layer), metrics)

    def _write_progress(
        self,
        index: int,
        num_epochs: int,
        name: str,
        tensors: dict[str, Tensor],
        metrics: MetricsSeal,
        of_part: Mapping[str, Any] | None = None,
    ) -> Callable[[], None]:
        """Add a file to the progress. On commit it replaces all files there except finished tiles of this layer."""
        with storage_errors(self.path / name):
            self.folder.make_folder("progress")
        publish_file = write_tensors(self.folder, name, tensors)

        def commit() -> None:
            digest = publish_file()
            found = self._read_progress_manifest()
            before = found["digests"] if found is not None else {}
            is_same = found is not None and (found["layer"], found.get("round", 0)) == (index, self.round)
            kept = before if is_same else {}
            digests = {each: kept[each] for each in kept if _TILE in each} | {name.rpartition("/")[2]: digest}
            content: dict[str, Any] = {"layer": index, "run": self.run_digest, **self.name_environment()}
            content |= self.name_round()
            content |= {"num_epochs": num_epochs, "digests": digests} | ({"part": dict(of_part)} if of_part else {})
            content |= {"metrics": metrics.to_mapping(), "digest_below": self._digest_below(index)}
            with storage_errors(self.path / name):
                write_manifest(self.folder, f"progress/{MANIFEST}", content)
                self._remove_progress(before, kept=digests)

        return commit

    def _remove_progress(self, named: Mapping[str, str], kept: Mapping[str, str]) -> int:
        """Remove the progress files that a manifest named or that bear the run's identity, except those in `kept`."""
        own = re.compile(
            rf"(layer-\d+-(epoch|tile|round)|statistics-round)-\d+(-(part|window)-\d+)?-{self.folder.identity}"
            r"\.safetensors"
        )
        names = [name for name in self.folder.names("progress") if name in named or own.fullmatch(name)]
        return self.folder.remove_matching("progress", *(re.escape(name) for name in names if name not in kept))

    def read_progress(self) -> tuple[int, int] | None:
        """(layer, epochs taken in all its tiles) of the saved progress, or None. Raises CorruptFileError."""
        manifest = self._read_progress_manifest()
        return (int(manifest["layer"]), int(manifest["num_epochs"])) if manifest is not None else None

    def read_progress_round(self) -> int:
        """The round of the saved progress; 0 in a sequential run, or if there is none. Raises CorruptFileError."""
        manifest = self._read_progress_manifest()
        return int(manifest.get("round", 0)) if manifest is not None else 0

    def read_begun_cycle(self) -> dict[str, Any] | None:
        """How the learning rate falls in the round that is under way, if anything of it is committed, else None.

        Nor is it known of rounds that an earlier version has begun. Raises CorruptFileError.
        """
        written = self.at_round(self.count_rounds() + 1)
        begun = written.read_layer_manifest(0) if written.list_layers() else self._read_progress_manifest() or {}
        cycle: dict[str, Any] | None = begun.get("cycle")
        return cycle if begun.get("round") == written.round else None

    def has_stale_progress(self) -> bool:
        """Whether there is progress of a layer that is committed by now. Raises CorruptFileError."""
        manifest, next_ones = self._read_progress_manifest(), self.under_way()
        if manifest is None:
            return False
        if "window" in manifest:  # of all layers, which the round still needs as its first ones are committed
            return int(manifest["round"]) < next_ones.round
        return (manifest.get("round", 0), manifest["layer"]) < (next_ones.round, next_ones.count_layers())

    def is_within_epoch(self) -> bool:
        """Whether the saved progress was saved within an epoch. Raises CorruptFileError."""
        manifest = self._read_progress_manifest()
        return manifest is not None and "part" in manifest

    def load_progress(self, layer: Layer, optimiser: OptimiserState, part: EpochPart | None = None) -> EpochPart | None:
        """Fill layer and optimiser from the saved progress. Raises CorruptFileError.

        Returns what was done of an epoch, if it was saved within one; its tensors are those of `part`, which is needed
        then.
        """
        manifest, state = self._read_progress_manifest(), optimiser.state()
        assert manifest is not None, "there is progress to load"
        of_part = manifest.get("part", {})
        prefix = _epoch_name(manifest["layer"], manifest["num_epochs"], of_part)
        name, digest = _find_named(manifest["digests"], prefix, self.path)
        # Reads into the tensors of both: there may be no memory for a second layer beside this one.
        targets = {f"layer.{key}": value for key, value in layer.state_dict().items()}
        targets |= {f"optimiser.{key}": value for key, value in state.items()}
        if of_part:
            assert part is not None, "the caller has asked"
            targets |= {f"epoch.{key}": getattr(part, key) for key in _PART_TENSORS}
        fill_tensors(self.folder, f"progress/{name}", digest, targets)
        optimiser.load_state(state)
        return replace(part, **of_part) if of_part and part is not None else None

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
        assign_state(layer, tensors, self.path / "progress" / name)

    def _read_progress_manifest(self) -> dict[str, Any] | None:
        name = f"progress/{MANIFEST}"
        try:
            manifest = read_manifest(self.folder, name, PROGRESS, REPAIR)
        except FileNotFoundError:
            return None
        self.check_names_this_run(manifest, name, REPAIR)
        self.check_names_environment(manifest, name, REPAIR)
        index, written = manifest["layer"], self.at_round(manifest.get("round", 0))
        if written.round:
            written.check_names_round(manifest, name, REPAIR)
        is_current = index <= written.count_layers()  # else a layer below it is missing, which is reported elsewhere
        if is_current and manifest.get("digest_below", written._digest_below(index)) != written._digest_below(index):
            raise CorruptFileError(
                f"manifest {self.path / name}: trained on another layer {index} than the one in "
                f"{written.layer_folder(index - 1)}; restore both from one copy, or put them aside with ffstream "
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

    # --- the finished layer

    def write_optimiser(self, index: int, optimiser: OptimiserState) -> BegunLayer:
        """Begin to write a layer of a round with the state of its optimiser, which may be freed once this returns."""
        begun = self._begin_layer(index)
        tensors = {key: value.cpu() for key, value in optimiser.state().items()}
        try:
            digest = stage_tensors(self.folder, f"{begun.folder}/{OPTIMISER}", tensors)
        except BaseException:
            self.remove_layer_folder(begun.folder)
            raise
        return BegunLayer(begun.folder, {"optimiser": digest})

    def _begin_layer(self, index: int) -> BegunLayer:
        staged = self.folder.name_temporary(self.layer_name(index))
        with storage_errors(self.path / staged):
            self.folder.make_folder(staged)
        return BegunLayer(staged, {})

    def write_round(self, cycle: Mapping[str, Any], metrics: MetricsSeal) -> Callable[[], None]:
        """The function that commits this round, once all of its layers are committed.

        `cycle` says how far the learning rate has come, `metrics` seals the lines that describe the round.
        """

        def commit() -> None:
            manifests = map(self._read_numbered_manifest, range(self.count_layers()))
            content: dict[str, Any] = {"round": self.round, "run": self.run_digest, **self.name_environment()}
            content |= {"layers": [content_digest(each) for each in manifests], "cycle": dict(cycle)}
            content |= {"metrics": metrics.to_mapping()}
            with storage_errors(self.path / self.layers_folder):
                write_manifest(self.folder, f"{round_name(self.round)}/{MANIFEST}", content)

        return commit

    def write_layer(
        self,
        index: int,
        layer: Layer,
        goodness: Tensor | None,
        figures: dict[str, Any],
        metrics: MetricsSeal,
        num_tiles: int = 1,
        begun: BegunLayer | None = None,
    ) -> Callable[[], None]:
        """Write a finished layer and its validation goodness (n, C). The returned function commits it.

        Its folder is made under a temporary name and renamed once all of it is durable; it never overwrites something
        that already has its name. `metrics` seals the lines that describe it. If the layer has several tiles, `layer`
        is the last one; the earlier tiles are in the progress, and are joined with it. `begun` is what
        `write_optimiser` returned, if it was called for this layer.
        """
        begun = begun or self._begin_layer(index)
        staged, digests = begun.folder, dict(begun.digests)
        try:
            write_weights = self._stage_weights(index, staged, layer, num_tiles)
            if goodness is not None:
                digests["validation"] = stage_tensors(self.folder, f"{staged}/{VALIDATION}", {"goodness": goodness})
        except BaseException:
            self.remove_layer_folder(staged)
            raise

        def commit() -> None:
            try:
                with storage_errors(self.layer_folder(index)):
                    digests["weights"] = write_weights()
                    manifest: dict[str, Any] = {"layer": index, "run": self.run_digest, **self.name_environment()}
                    manifest |= self.name_round()
                    manifest |= {"digests": digests, "figures": figures}
                    manifest |= {"metrics": metrics.to_mapping(), "digest_below": self._digest_below(index)}
                    for name in digests:
                        self.folder.sync(f"{staged}/{name}.safetensors")
                    write_manifest(self.folder, f"{staged}/{MANIFEST}", manifest)
                    self.folder.rename(staged, self.layer_name(index))
                self.initial.drop(index + 1)
            except BaseException:
                self.remove_layer_folder(staged)
                raise

        return commit

    def _stage_weights(self, index: int, staged: str, layer: Layer, num_tiles: int) -> Callable[[], str]:
        """Write parameters. The returned function joins them with those of earlier tiles and returns the digest."""
        name = f"{staged}/{WEIGHTS}"
        if num_tiles == 1:
            digest = stage_tensors(self.folder, name, _host_state(layer))
            return lambda: digest
        *before, last = (self._tile_name(index, tile) for tile in range(num_tiles))
        publish_last = write_tensors(self.folder, last, _host_state(layer))
        axes = layer.list_unit_axes()

        def join() -> str:
            found = self._read_progress_manifest() or {"digests": {}}
            parts = dict(_find_tile(found["digests"], index, tile, self.path) for tile in range(len(before)))
            parts = {f"progress/{each}": digest for each, digest in parts.items()}
            return join_tensors(self.folder, name, parts | {last: publish_last()}, axes)

        return join


def _epoch_name(index: int, num_epochs: int, of_part: Mapping[str, Any]) -> str:
    """The beginning of the name of a progress file."""
    part = f"-part-{of_part['num_groups']:05d}" if of_part else ""
    return f"layer-{index:03d}-epoch-{num_epochs:04d}{part}"


def _find_named(digests: Mapping[str, str], prefix: str, path: Path) -> tuple[str, str]:
    """The progress file with this prefix, and its digest. In runs of earlier versions, names hold no identity."""
    for name, digest in digests.items():
        if re.fullmatch(rf"{re.escape(prefix)}(-[0-9a-f]{{16}})?\.safetensors", name):
            return name, digest
    raise CorruptFileError(f"progress {path / 'progress'}: does not name {prefix}; {REPAIR}")


def _find_tile(digests: Mapping[str, str], index: int, tile: int, path: Path) -> tuple[str, str]:
    return _find_named(digests, f"layer-{index:03d}{_TILE}{tile:03d}", path)


def _host_state(layer: Layer) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in layer.state_dict().items()}
