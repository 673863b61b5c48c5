"""The caches that the current layer reads, one per split, and the tier that all caches of a run share."""

from __future__ import annotations

import dataclasses
import re

import torch

from ffstream.cache import ActivationCache, DiskCache, MemoryCache, verify_shards
from ffstream.field.blueprint import Blueprint
from ffstream.ground.folder import Folder
from ffstream.plan.footprint import cache_layouts
from ffstream.run.schedule import Pass
from ffstream.settings.config import Config
from ffstream.storage.run_directory import RunDirectory

TRAIN, VALIDATION = "train", "validation"


class CacheSet:
    """Makes, opens and drops the caches of a run. `current` maps each split to the current layer's input.

    `lasting` names the splits whose caches move through the layers; any other cache is written anew for every epoch.
    `data_digest` is that of the training data.
    """

    def __init__(
        self,
        directory: RunDirectory,
        blueprint: Blueprint,
        data_digest: str,
        tier: str,
        device: torch.device,
    ) -> None:
        self.current: dict[str, ActivationCache] = {}
        self.fresh = ""  # the layer and epoch for which caches that do not last are written
        self._pass = Pass()  # for which caches are written
        self.tier = tier
        config = blueprint.config
        self._layouts = [cache_layouts(blueprint, spec.row) for spec in blueprint.specs]
        self._num_samples = blueprint.data.num_samples
        self._device = device
        self._config, self._data_digest = config, data_digest
        self._caches = directory.caches(config.cache.folder)
        self._folder, self._prefix = self._caches.open(make=tier == "disk")

    def begin(self, next_pass: Pass) -> None:
        """Write caches for this pass from now on. The validation split passes with the last window of a round."""
        self._pass = next_pass

    @property
    def lasting(self) -> list[str]:
        """The splits whose caches move through the layers.

        A cache that is written for one epoch only neither moves on to the next layer nor outlives the process.
        """
        return [
            name for name in self._num_samples if (not self._config.restreams if name == TRAIN else self._pass.is_last)
        ]

    def make(self, index: int, name: str) -> ActivationCache:
        """The cache that layer `index` reads of a split, with the shards that an earlier process left in it."""
        layout = self._layouts[index][name]
        if name == TRAIN:
            layout = dataclasses.replace(layout, num_samples=self._pass.window.size(self._num_samples[TRAIN]))
        if self.tier == "disk":
            split = self._name_split(name)
            lasts = name in self.lasting and self._pass.window.num == 1  # a window begins anew if it is broken off
            identity = _identify(self._config, self._data_digest, index, split)
            identity += "" if lasts else f" {self.fresh}"
            return DiskCache(layout, self._folder, self._name(index, name), identity, durable=lasts)
        return MemoryCache(layout, self._device if self.tier == "device" else torch.device("cpu"))

    def open_committed(self, num_done: int, stack_start: int) -> list[int]:
        """Make the newest useful caches on disk current, delete all others, and return the layer that reads them.

        The caches of the layers from `stack_start` on are considered, on which the layer to be trained next may depend.
        A cache is useful when each of its shards exists, or has already moved on to the next layer's cache, which is
        then kept too. The list that is returned is empty if no cache is useful.
        """
        useful: list[int] = []
        is_read = self.tier == "disk" and num_done < len(self._layouts) and self._pass.window.num == 1
        for index in range(num_done, stack_start - 1, -1) if is_read else ():
            caches = {name: self.make(index, name) for name in self.lasting}
            if all(self._has_all(cache, index, name, num_done) for name, cache in caches.items()):
                self.current, useful = caches, [index]
                break
        kept = [self._name(k, name) for i in useful for k in (i, i + 1) for name in self.lasting]
        self._caches.drop(kept)
        return useful

    def _name(self, index: int, name: str) -> str:
        return f"{self._prefix}/{index:03d}-{self._name_split(name)}"

    def _name_split(self, name: str) -> str:
        number, window = self._pass.round, self._pass.window
        of_window = f"_{window.number:05d}" if window.num > 1 else ""
        return f"{name}_{number:04d}{of_window}" if number else name

    def _has_all(self, cache: ActivationCache, index: int, name: str, num_done: int) -> bool:
        missing = set(cache.missing())
        return not missing or (index < num_done and missing.isdisjoint(self.make(index + 1, name).missing()))

    def drop_all(self) -> None:
        """Drop all caches, when no layer will read them any more."""
        for cache in self.current.values():
            cache.drop()
        self.current = {}
        self._caches.drop()


def verify_cache(folder: Folder, name: str, config: Config, data_digest: str) -> None:
    """Check every shard of one cache of a run. Raises CorruptFileError."""
    found = re.fullmatch(r"(\d{3,18})-(\w+)", name.rpartition("/")[2])
    if found is not None:
        verify_shards(folder, name, _identify(config, data_digest, int(found[1]), found[2]))


def _identify(config: Config, data_digest: str, index: int, name: str) -> str:
    """What decides the rows that layer `index` reads: settings, training data, layer, and split with its round."""
    return f"{config.fingerprint()} {data_digest} {index} {name}"
