"""Filling caches: the first from the data, each further one by a pass through a frozen layer; reading goodness off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ffstream.cache import ActivationCache, CacheLayout
from ffstream.goodness import Goodness
from ffstream.labels import LabelMethod
from ffstream.layers import Layer
from ffstream.network import LayerSpec, hand_on
from ffstream.transfer import Transfer

# Rows in one matrix product. Few, so that the activities under each label stay in a CPU's own cache; fixed, because the
# last bit of a product may depend on the number of rows, and a cache that is computed again must equal the lost one.
_CHUNK_ROWS = 1024

# Maps a slice of the samples to their rows, (n, rows a sample, features) float32, on the host.
RowsOf = Callable[[slice], Tensor]


def write_rows(transfer: Transfer, cache: ActivationCache, rows_of: RowsOf) -> None:
    """Fill a cache from a function that makes rows, asked for few samples at a time, in order."""
    layout = cache.layout
    step = chunk_samples(layout)
    for shard in range(layout.num_shards):
        samples = layout.shard_range(shard)
        with transfer.storing(cache, shard) as output:
            for written, start in zip(output.split(step), range(samples.start, samples.stop, step), strict=True):
                written.copy_(rows_of(slice(start, start + len(written))))
    transfer.flush()


@torch.no_grad()
def measure_goodness(
    transfer: Transfer, layer: Layer, cache: ActivationCache, method: LabelMethod, goodness: Goodness
) -> Tensor:
    """Goodness of all labels for each sample of a cache of sweep rows: (num_samples, num_classes), on the host."""
    parts = []
    for _, rows in transfer.blocks(cache, range(cache.layout.num_shards)):
        for chunk in rows.split(chunk_samples(cache.layout)):
            parts.append(method.sweep(layer, goodness, layer.preactivations(chunk.flatten(0, 1))).cpu())
    return torch.cat(parts)


@torch.no_grad()
def propagate(
    transfer: Transfer, layer: Layer, spec: LayerSpec, source: ActivationCache, target: ActivationCache, *, move: bool
) -> None:
    """Store in `target` what `layer` hands on for every row of `source`, as far as it is missing there.

    With `move`, a shard of `source` is freed as soon as that of `target` is durable, so that the two together are
    little more than one.
    """
    step = chunk_samples(source.layout)
    for shard, rows in transfer.blocks(source, target.missing()):
        with transfer.storing(target, shard, partial(source.free, shard) if move else None) as output:
            for chunk, written in zip(rows.split(step), output.split(step), strict=True):
                flat = chunk.flatten(0, 1)
                written.flatten(0, 1).copy_(hand_on(spec, flat, layer.preactivations(flat), layer.workspace))
    transfer.flush()


def chunk_samples(layout: CacheLayout) -> int:
    """Samples whose rows make up one matrix product of a pass."""
    return max(1, _CHUNK_ROWS // layout.num_rows)
