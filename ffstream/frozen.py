"""Streaming data through committed layers, one layer on the device at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ffstream.cache import ActivationCache, CacheLayout, DiskCache, MemoryCache
from ffstream.checkpoint import RunDirectory
from ffstream.config import Config
from ffstream.layers import Layer
from ffstream.memory import device_free_bytes, host_free_bytes
from ffstream.network import LayerSpec, build_layer
from ffstream.plan import choose_tier
from ffstream.propagation import RowsOf, propagate, write_rows
from ffstream.transfer import Transfer
from ffstream.workspace import Workspace


@dataclass(frozen=True)
class Stage:
    """One committed layer on the device, with a cache for each source of what it reads, or of what it hands on."""

    spec: LayerSpec
    layer: Layer
    caches: list[ActivationCache]
    transfer: Transfer


def stream_committed_layers(
    directory: RunDirectory,
    config: Config,
    specs: list[LayerSpec],
    num_classes: int,
    sources: list[tuple[CacheLayout, RowsOf]],
    device: torch.device,
    *,
    outputs: bool,
) -> Iterator[Stage]:
    """Yield each committed layer with the caches of what it reads or, with `outputs`, of what it hands on.

    A stage is valid until the next one is asked for: its caches are moved through the layer, a shard at a time. They
    lie in a temporary folder outside the run when memory does not hold them, so that a run may be read-only.
    """
    layouts = [layout for layout, _ in sources]
    cache_bytes = max(
        sum(layout.num_bytes for layout in layouts),
        *(sum(_with_features(layout, spec.out_features).num_bytes for layout in layouts) for spec in specs),
    )
    tier = choose_tier(config.cache.tier, device.type, cache_bytes, device_free_bytes(device), host_free_bytes())
    with tempfile.TemporaryDirectory(prefix="ffstream-", ignore_cleanup_errors=True) as folder, Transfer(device) as way:

        def make_cache(layout: CacheLayout, name: str) -> ActivationCache:
            if tier == "disk":
                return DiskCache(layout, Path(folder) / name, durable=False)
            return MemoryCache(layout, device if tier == "device" else torch.device("cpu"))

        def move(layer: Layer, spec: LayerSpec, caches: list[ActivationCache]) -> list[ActivationCache]:
            moved = []
            for number, source in enumerate(caches):
                layout = _with_features(source.layout, spec.out_features)
                moved.append(make_cache(layout, f"{spec.index + 1:03d}-{number}"))
                propagate(way, layer, spec, source, moved[-1], move=True)
            return moved

        workspace = Workspace(device)
        caches = []
        for number, (layout, rows_of) in enumerate(sources):
            caches.append(make_cache(layout, f"000-{number}"))
            write_rows(way, caches[-1], rows_of)
        for spec in specs:
            layer = build_layer(config, spec, num_classes)
            directory.load_layer(spec.index, layer)
            layer.to(device).workspace = workspace
            if outputs:
                caches = move(layer, spec, caches)
            yield Stage(spec, layer, caches, way)
            if not outputs and spec is not specs[-1]:
                caches = move(layer, spec, caches)


def _with_features(layout: CacheLayout, num_features: int) -> CacheLayout:
    return CacheLayout(layout.num_samples, layout.num_rows, num_features, layout.dtype_name, layout.shard_samples)
