"""The layers of a run that no longer change: one of them on the device at a time, to hand on or to be measured."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ffstream.cache import ActivationCache
from ffstream.cache.transfer import Transfer
from ffstream.device.ledger import PAPER
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Layer
from ffstream.field.network import LayerSpec
from ffstream.infer.frozen import load_committed
from ffstream.run.cache_set import TRAIN, CacheSet
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.propagation import FrozenLayer, measure_goodness, propagate

Goodness = dict[str, Tensor]  # by split: (samples, labels or candidates), on the host


class FrozenLayers:
    """Loads committed layers and finished tiles of `directory`, moves caches through them, and measures goodness."""

    def __init__(
        self,
        directory: RunDirectory,
        blueprint: Blueprint,
        caches: CacheSet,
        transfer: Transfer,
        device: torch.device,
        workspace: Workspace,
    ) -> None:
        self.directory = directory
        self._blueprint, self._caches, self._transfer = blueprint, caches, transfer
        self._device, self._workspace = device, workspace
        self._resident: FrozenLayer | None = None  # the layer that is kept on the device

    def keep(self, spec: LayerSpec, layer: Layer) -> None:
        """Keep a layer on the device that has just been trained, as it hands on next."""
        self._resident = FrozenLayer(spec, self._blueprint.tiles_of(spec), lambda _: layer)

    def forget(self) -> None:
        """Free the device."""
        self._resident = None

    def take(self, spec: LayerSpec) -> FrozenLayer:
        """The layer that is kept on the device if it is this one, else the committed one, loaded."""
        if self._resident is None or self._resident.spec != spec:
            self._resident = None
            self._transfer.finish()
            self._resident = load_committed(self.directory, self._blueprint, spec, self._device, self._workspace)
        return self._resident

    def move(self, name: str, source: ActivationCache, spec: LayerSpec) -> ActivationCache:
        """Make the cache of what a layer hands on, which replaces the cache that it reads."""
        layer = self.take(spec)
        target = self._caches.make(spec.index + 1, name)
        propagate(self._transfer, layer, source, target, move=True)
        self._transfer.commit(source.drop)
        return target

    def load_tile(self, spec: LayerSpec, number: int) -> Layer:
        """Load a finished tile of the layer being trained."""
        with PAPER:
            tile = self._blueprint.make_layer(spec, self._blueprint.tiles_of(spec)[number])
        self.directory.load_tile(spec.index, number, tile)
        tile.to(self._device).workspace = self._workspace
        return tile

    def measure_tiles(self, spec: LayerSpec, num_tiles: int) -> Goodness:
        """The goodness of the first tiles on the training samples of this epoch."""
        found: Goodness = {}
        for number in range(num_tiles):
            found = self.add_tile(spec, self.load_tile(spec, number), found, [TRAIN])
        return found

    def add_tile(self, spec: LayerSpec, tile: Layer, so_far: Goodness, names: Iterable[str]) -> Goodness:
        """The goodness of the tiles so far and of one more, on those of the named splits that have a cache."""
        found: Goodness = {}
        for name in self._blueprint.data.num_samples.keys() & names:
            in_tile = self._blueprint.tiles_of(spec)[0].stop * spec.units.num_places
            averaged = in_tile if name == TRAIN else spec.num_units  # as the trainer does
            cache, reading = self._caches.current[name], self._blueprint.method.reading
            found[name] = measure_goodness(
                self._transfer, tile, spec, cache, reading, self._blueprint.goodness, averaged
            )
            if name in so_far:
                found[name] += so_far[name]
        return found
