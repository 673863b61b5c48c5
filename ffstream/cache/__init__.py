"""The activation cache, which each layer reads one shard at a time. Imports `storage` and packages below it."""

from ffstream.cache.coding import decode_, encode_
from ffstream.cache.disk import DiskCache, verify_shards
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
