"""The activation cache: what each layer reads, a shard at a time, from device, host or disk."""

from ffstream.cache.coding import decode_, encode_
from ffstream.cache.disk import SHARD_NAMES, DiskCache, verify_shards
from ffstream.cache.layout import (
    CODED,
    DTYPES,
    CacheLayout,
    as_cached,
    compute_batches,
    compute_shard_order,
    group_shards,
)
from ffstream.cache.tiers import ActivationCache, MemoryCache

__all__ = [
    "CODED",
    "DTYPES",
    "SHARD_NAMES",
    "ActivationCache",
    "CacheLayout",
    "DiskCache",
    "MemoryCache",
    "as_cached",
    "compute_batches",
    "compute_shard_order",
    "decode_",
    "encode_",
    "group_shards",
    "verify_shards",
]
