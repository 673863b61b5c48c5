"""The sizes of a step as numbers, even where the configuration says auto."""

from __future__ import annotations

from dataclasses import dataclass

from ffstream.settings.config import Config


@dataclass(frozen=True)
class Sizes:
    """How much of a layer, and how many samples, are on the device at once. All of it affects the bits of results."""

    batch: int  # samples per update
    micro_batch: int  # samples of a batch that are on the device at once, at most
    shard_samples: int  # samples per shard of the cache
    tile_units: int  # units of a layer that are on the device at once
    width: int  # units per layer

    @classmethod
    def of(cls, config: Config) -> Sizes:
        """The sizes of a configuration whose batch and shard sizes are numbers.

        A micro-batch of auto is a whole batch, and a tile of auto a whole layer.
        """
        batch, shard_samples = config.batch, config.cache.shard_samples
        assert isinstance(batch, int), "the batch is decided before anything is made of its size"
        assert isinstance(shard_samples, int), "the size of a shard is decided before a cache is laid out"
        micro_batch, tile_units = config.micro_batch, config.network.tile_units
        return cls(
            batch=batch,
            micro_batch=batch if isinstance(micro_batch, str) else micro_batch,
            shard_samples=shard_samples,
            tile_units=config.width if isinstance(tile_units, str) else min(tile_units, config.width),
            width=config.width,
        )

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that a batch, or the part of it in one shard, is cut into; they are used one after another."""
        return -(-self._num_at_once // self.micro_batch)

    @property
    def num_in_micro_batch(self) -> int:
        """Samples of the largest micro-batch."""
        return -(-self._num_at_once // self.num_micro_batches)

    @property
    def num_shards_in_batch(self) -> int:
        """Whole shards per batch if shards are smaller than a batch; else 1, as a batch is then a part of one shard."""
        return max(1, self.batch // self.shard_samples)

    @property
    def num_tiles(self) -> int:
        """Tiles that a layer is cut into; they are trained one after another, each for all epochs."""
        return -(-self.width // self.tile_units)

    @property
    def _num_at_once(self) -> int:
        """Samples of a batch that lie in one shard."""
        return min(self.batch, self.shard_samples)
