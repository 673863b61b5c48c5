"""The activation cache: what each layer reads, a shard at a time, from device, host or disk."""

from ffstream.cache.layout import DTYPES, CacheLayout, compute_batches, compute_shard_order, group_shards
from ffstream.cache.tiers import ActivationCache, DiskCache, MemoryCache

__all__ = [
    "DTYPES",
    "ActivationCache",
    "CacheLayout",
    "DiskCache",
    "MemoryCache",
    "compute_batches",
    "compute_shard_order",
    "group_shards",
]
