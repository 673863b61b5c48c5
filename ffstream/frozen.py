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
from ffstream.memory import choose_tier, device_free_bytes, host_free_bytes
from ffstream.network import LayerSpec, build_layer
from ffstream.propagation import RowsOf, propagate, write_rows


@dataclass(frozen=True)
class Stage:
    """One committed layer on the device, with the caches of what it reads and of what it hands on."""

    spec: LayerSpec
    layer: Layer
    inputs: list[ActivationCache]
    outputs: list[ActivationCache]  # empty when none was asked for


def stream_committed_layers(
    directory: RunDirectory,
    config: Config,
    specs: list[LayerSpec],
    num_classes: int,
    sources: list[tuple[CacheLayout, RowsOf]],
    device: torch.device,
    *,
    with_outputs: bool,
) -> Iterator[Stage]:
    """Yield each committed layer with the caches around it; each is dropped as soon as the next one is asked for.

    Caches go to a temporary folder outside the run when memory does not hold them, so that a run may be read-only.
    """
    largest = max(_with_features(layout, spec.out_features).num_bytes for layout, _ in sources for spec in specs)
    largest = max([largest, *(layout.num_bytes for layout, _ in sources)])
    cache_bytes = 2 * len(sources) * largest
    tier = choose_tier(config.cache.tier, device.type, cache_bytes, device_free_bytes(device), host_free_bytes())
    with tempfile.TemporaryDirectory(prefix="ffstream-", ignore_cleanup_errors=True) as folder:

        def make_cache(layout: CacheLayout, index: int, number: int) -> ActivationCache:
            if tier == "disk":
                return DiskCache(layout, Path(folder) / f"{index:03d}-{number}")
            return MemoryCache(layout, device if tier == "device" else torch.device("cpu"))

        inputs = []
        for number, (layout, rows_of) in enumerate(sources):
            inputs.append(make_cache(layout, 0, number))
            write_rows(inputs[-1], rows_of, device)
        for spec in specs:
            layer = build_layer(config, spec, num_classes)
            directory.load_layer(spec.index, layer)
            layer.to(device)
            outputs: list[ActivationCache] = []
            if with_outputs or spec is not specs[-1]:
                for number, source in enumerate(inputs):
                    target = make_cache(_with_features(source.layout, spec.out_features), spec.index + 1, number)
                    propagate(layer, spec, source, target, device)
                    outputs.append(target)
            yield Stage(spec, layer, inputs, outputs)
            for cache in inputs:
                cache.drop()
            inputs = outputs
        for cache in inputs:
            cache.drop()


def _with_features(layout: CacheLayout, num_features: int) -> CacheLayout:
    return CacheLayout(layout.num_samples, layout.num_rows, num_features, layout.dtype_name, layout.shard_samples)
