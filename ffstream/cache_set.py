"""The caches that the layer at hand reads, one a split, and the tier that all caches of a run share."""

from __future__ import annotations

import shutil

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
        num_classes: int,
        device: torch.device,
    ) -> None:
        self.current: dict[str, ActivationCache] = {}
        self._directory = directory
        self._config = config
        self._specs = specs
        self._num_rows = {TRAIN: method.num_training_rows, VALIDATION: method.num_sweep_rows}
        self._num_samples = num_samples
        self._device = device
        self.tier = self._choose_tier(num_classes)

    def make(self, index: int, name: str) -> ActivationCache:
        """An empty cache for what layer `index` reads of a split."""
        layout = self._layout(index, name)
        if self.tier == "disk":
            return DiskCache(layout, self._directory.cache_folder(index, name))
        return MemoryCache(layout, self._device if self.tier == "device" else torch.device("cpu"))

    def open_committed(self, num_done: int) -> list[int]:
        """Make the newest useful caches on disk current, delete the others, and say which layer reads them.

        Raises CorruptFileError.
        """
        found: list[int] = []
        for index in range(num_done, -1, -1):
            folders = {name: self._directory.cache_folder(index, name) for name in self._num_samples}
            if self.tier == "disk" and all((folder / "manifest.json").is_file() for folder in folders.values()):
                self.current = {name: DiskCache.open(self._layout(index, name), f) for name, f in folders.items()}
                found = [index]
                break
        kept = {self._directory.cache_folder(index, name) for index in found for name in self._num_samples}
        root = self._directory.cache_root
        for folder in root.iterdir() if root.is_dir() else ():
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        return found

    def replace(self, following: dict[str, ActivationCache]) -> None:
        """The next layer's caches are committed: drop those of the layer below."""
        below, self.current = self.current, following
        for cache in below.values():
            cache.drop()

    def close(self) -> None:
        """End background work, keeping what is on disk."""
        for cache in self.current.values():
            cache.close()

    def drop_all(self) -> None:
        """No layer will read any more."""
        self.replace({})
        shutil.rmtree(self._directory.cache_root, ignore_errors=True)

    def _layout(self, index: int, name: str) -> CacheLayout:
        settings = self._config.cache
        num_features = self._specs[index].in_features
        return CacheLayout(
            self._num_samples[name], self._num_rows[name], num_features, settings.dtype, settings.shard_samples
        )

    def _choose_tier(self, num_classes: int) -> str:
        """One tier for the whole run, so that memory is as flat in depth as the network is."""
        first, rest = self._specs[0], self._specs[-1]
        sizes = [sum(self._layout(spec.index, name).num_bytes for name in self._num_samples) for spec in (first, rest)]
        cache_bytes = max(sizes[0] + sizes[1], 2 * sizes[1])  # a layer's input and its output
        layer_bytes = max(layer_footprint_bytes(self._config, spec, num_classes) for spec in (first, rest))
        free_bytes = max(device_free_bytes(self._device) - layer_bytes, 0)
        tier = choose_tier(self._config.cache.tier, self._device.type, cache_bytes, free_bytes, host_free_bytes())
        if tier == "disk":
            check_disk(self._directory.path, cache_bytes, shutil.disk_usage(self._directory.path).free)
        return tier
