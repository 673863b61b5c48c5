"""The caches that the layer at hand reads, one a split, and the tier that all caches of a run share."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from ffstream.cache import ActivationCache, CacheLayout, DiskCache, MemoryCache
from ffstream.checkpoint import RunDirectory
from ffstream.config import Config
from ffstream.labels import LabelMethod
from ffstream.memory import check_disk, choose_tier, device_free_bytes, host_free_bytes, layer_footprint_bytes
from ffstream.network import LayerSpec

TRAIN, VALIDATION = "train", "validation"


class CacheSet:
    """Makes, opens and drops the caches of a run. `current` maps each split to what the layer at hand reads."""

    def __init__(
        self,
        directory: RunDirectory,
        config: Config,
        specs: list[LayerSpec],
        method: LabelMethod,
        num_samples: dict[str, int],
        data: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.current: dict[str, ActivationCache] = {}
        self._directory = directory
        self._config = config
        self._specs = specs
        self._num_rows = {TRAIN: method.num_training_rows, VALIDATION: method.num_sweep_rows}
        self._num_samples = num_samples
        self._device = device
        self._identity = f"{config.fingerprint()} {data['digest']}"
        self.tier, self.max_unsynced = self._choose_tier(data["num_classes"])

    def make(self, index: int, name: str) -> ActivationCache:
        """A cache for what layer `index` reads of a split, with the shards that an earlier process left there."""
        layout = self._layout(index, name)
        if self.tier == "disk":
            return DiskCache(layout, self._directory.cache_folder(index, name), f"{self._identity} {index} {name}")
        return MemoryCache(layout, self._device if self.tier == "device" else torch.device("cpu"))

    def open_committed(self, num_done: int) -> list[int]:
        """Make the newest useful caches on disk current, delete the others, and say which layer reads them.

        A cache is useful when each of its shards is there, or has moved on to the next layer's cache already.
        """
        useful: list[int] = []
        for index in range(num_done, -1, -1) if self.tier == "disk" else ():
            caches = {name: self.make(index, name) for name in self._num_samples}
            if all(self._has_all(cache, index, name, num_done) for name, cache in caches.items()):
                self.current, useful = caches, [index]
                break
        kept = {self._directory.cache_folder(k, name) for i in useful for k in (i, i + 1) for name in self._num_samples}
        root = self._directory.cache_root
        for folder in root.iterdir() if root.is_dir() else ():
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        return useful

    def _has_all(self, cache: ActivationCache, index: int, name: str, num_done: int) -> bool:
        missing = set(cache.missing())
        return not missing or (index < num_done and missing.isdisjoint(self.make(index + 1, name).missing()))

    def drop_all(self) -> None:
        """No layer will read any more."""
        for cache in self.current.values():
            cache.drop()
        self.current = {}
        shutil.rmtree(self._directory.cache_root, ignore_errors=True)

    def _layout(self, index: int, name: str) -> CacheLayout:
        settings = self._config.cache
        num_features = self._specs[index].in_features
        return CacheLayout(
            self._num_samples[name], self._num_rows[name], num_features, settings.dtype, settings.shard_samples
        )

    def _choose_tier(self, num_classes: int) -> tuple[str, int | None]:
        """One tier for the whole run, so that memory is as flat in depth as the network is; and how many shards may
        wait to be durable, None for any number."""
        first, rest = self._specs[0], self._specs[-1]
        layouts = [[self._layout(spec.index, name) for name in self._num_samples] for spec in (first, rest)]
        sizes = [sum(layout.num_bytes for layout in part) for part in layouts]
        shard_bytes = max(layout.shard_bytes for part in layouts for layout in part)
        cache_bytes = max(sizes) + shard_bytes  # a layer's input becomes its output a shard at a time
        layer_bytes = max(layer_footprint_bytes(self._config, spec, num_classes) for spec in (first, rest))
        free_bytes = max(device_free_bytes(self._device) - layer_bytes, 0)
        tier = choose_tier(self._config.cache.tier, self._device.type, cache_bytes, free_bytes, host_free_bytes())
        if tier != "disk":
            return tier, None
        disk_free_bytes = shutil.disk_usage(self._directory.path).free
        check_disk(self._directory.path, cache_bytes, disk_free_bytes)
        return tier, None if disk_free_bytes >= 2 * cache_bytes else 1
