"""Streaming data through committed layers, one layer on the device at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ffstream.cache import ActivationCache, CacheLayout, DiskCache, MemoryCache
from ffstream.cache.transfer import Transfer
from ffstream.device.ledger import PAPER
from ffstream.device.memory import device_free_bytes, host_free_bytes
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Layer
from ffstream.field.network import LayerSpec, keep_outputs
from ffstream.field.wiring import RowLayout
from ffstream.ground.scratch import make_scratch
from ffstream.plan.fitting import choose_tier
from ffstream.storage.run_directory import RunDirectory
from ffstream.training.input_rows import RowsOf
from ffstream.training.propagation import FrozenLayer, propagate, write_rows


@dataclass(frozen=True)
class Stage:
    """One committed layer and, for each source, a cache of the rows that it reads, or of those that it hands on."""

    layer: FrozenLayer
    caches: list[ActivationCache]
    transfer: Transfer


def stream_committed_layers(
    directory: RunDirectory,
    blueprint: Blueprint,
    sources: list[tuple[CacheLayout, RowsOf]],
    device: torch.device,
    *,
    outputs: bool,
) -> Iterator[Stage]:
    """Yield each layer of a blueprint with caches of the rows that it reads or, with `outputs`, of those it hands on.

    All layers of the blueprint are committed.

    A stage is valid until the next one is asked for: its caches are then moved through a layer, a shard at a time.
    Caches that memory does not hold lie in a temporary folder outside the run, so that a run may be read-only.
    """
    config = blueprint.config
    specs = keep_outputs(blueprint.specs) if outputs else blueprint.specs
    layouts = [layout for layout, _ in sources]
    cache_bytes = max(
        sum(layout.num_bytes for layout in layouts),
        *(sum(_lay_out(layout, spec.next_row).num_bytes for layout in layouts) for spec in specs),
    )
    tier = choose_tier(config.cache.tier, device.type, cache_bytes, device_free_bytes(device), host_free_bytes())
    with make_scratch() as folder, Transfer(device) as way:

        def make_cache(layout: CacheLayout, name: str) -> ActivationCache:
            if tier == "disk":
                return DiskCache(layout, folder, name, durable=False)
            return MemoryCache(layout, device if tier == "device" else torch.device("cpu"))

        def move(layer: FrozenLayer, caches: list[ActivationCache]) -> list[ActivationCache]:
            moved = []
            for number, source in enumerate(caches):
                layout = _lay_out(source.layout, layer.spec.next_row)
                moved.append(make_cache(layout, f"{layer.spec.index + 1:03d}-{number}"))
                propagate(way, layer, source, moved[-1], move=True)
            return moved

        workspace = Workspace(device)
        caches: list[ActivationCache] = []
        for spec in specs:
            if spec.place == 0:
                for cache in caches:
                    cache.drop()
                caches = []
                for number, (layout, rows_of) in enumerate(sources):
                    caches.append(make_cache(layout, f"{spec.index:03d}-{number}"))
                    write_rows(way, caches[-1], rows_of)
            layer = load_committed(directory, blueprint, spec, device, workspace)
            if outputs:
                caches = move(layer, caches)
            yield Stage(layer, caches, way)
            if not outputs and spec.hands_on and spec is not specs[-1]:
                caches = move(layer, caches)


def load_committed(
    directory: RunDirectory, blueprint: Blueprint, spec: LayerSpec, device: torch.device, workspace: Workspace
) -> FrozenLayer:
    """A committed layer, its digest checked. A single tile is loaded to the device now, several each in its turn.

    For each of several tiles, the host waits until it is on the device, as it is copied from memory that is not pinned.
    That is little beside reading and checking a tile, which is done while the device computes with the tile before.
    Without waiting, a whole tile would have to be pinned: its bytes rounded up to a power of two, which the process
    keeps to its end, and which would have to be planned for.
    """
    tiles = blueprint.tiles_of(spec)
    if len(tiles) == 1:
        layer = blueprint.make_layer(spec, tiles[0])
        directory.load_layer(spec.index, layer)
        layer.to(device).workspace = workspace
        return FrozenLayer(spec, tiles, lambda _: layer)

    def load(units: slice) -> Layer:
        with PAPER:
            tile = blueprint.make_layer(spec, units)
        directory.load_units(spec.index, units, tile, digests[units.start])
        tile.to(device).workspace = workspace
        return tile

    with PAPER:
        like = blueprint.make_layer(spec, tiles[0])
    of_tiles = directory.digest_tiles(spec.index, like, tiles)
    digests = {units.start: digest for units, digest in zip(tiles, of_tiles, strict=True)}
    return FrozenLayer(spec, tiles, load)


def _lay_out(layout: CacheLayout, row: RowLayout) -> CacheLayout:
    """The layout of a cache of other rows of the same samples."""
    return CacheLayout(
        *(layout.num_samples, layout.num_rows, row.num_features, layout.dtype_name, layout.shard_samples),
        carried=row.carried_features,
    )
