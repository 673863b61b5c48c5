"""Filling caches: the first from the data, each further one by a pass through a frozen layer; reading goodness off."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ffstream.cache import ActivationCache
from ffstream.goodness import Goodness
from ffstream.labels import LabelMethod
from ffstream.layers import Layer
from ffstream.network import LayerSpec, hand_on
from ffstream.transfer import BlockStream

# Rows in one matrix product. Few, so that the activities under each label stay in a CPU's own cache; fixed, because the
# last bit of a product may depend on the number of rows, and a cache that is computed again must equal the lost one.
_CHUNK_ROWS = 1024

# Maps a slice of the samples to their rows, (n, rows a sample, features) float32, on the host.
RowsOf = Callable[[slice], Tensor]


def write_rows(cache: ActivationCache, rows_of: RowsOf, device: torch.device) -> None:
    """Fill a cache from a function that makes rows, a shard at a time, and commit it."""
    layout = cache.layout
    for shard in range(layout.num_shards):
        cache.write(shard, rows_of(layout.shard_range(shard)).to(layout.dtype).to(device))
    cache.commit()


@torch.no_grad()
def measure_goodness(
    layer: Layer, cache: ActivationCache, method: LabelMethod, goodness: Goodness, device: torch.device
) -> Tensor:
    """Goodness of all labels for each sample of a cache of sweep rows: (num_samples, num_classes), on the host."""
    parts = []
    samples_a_chunk = max(1, _CHUNK_ROWS // cache.layout.num_rows)
    with BlockStream(cache, device) as stream:
        for _, rows in stream.blocks(range(cache.layout.num_shards)):
            for chunk in rows.split(samples_a_chunk):
                parts.append(method.sweep(layer, goodness, layer.preactivations(chunk.flatten(0, 1))).cpu())
    return torch.cat(parts)


@torch.no_grad()
def propagate(
    layer: Layer, spec: LayerSpec, source: ActivationCache, target: ActivationCache, device: torch.device
) -> None:
    """Write into `target` what `layer` hands on for every row of `source`, and commit it."""
    samples_a_chunk = max(1, _CHUNK_ROWS // source.layout.num_rows)
    with BlockStream(source, device) as stream:
        for shard, rows in stream.blocks(range(source.layout.num_shards)):
            output = torch.empty(target.layout.shard_shape(shard), dtype=target.layout.dtype, device=device)
            for chunk, written in zip(rows.split(samples_a_chunk), output.split(samples_a_chunk), strict=True):
                flat = chunk.flatten(0, 1)
                written.flatten(0, 1).copy_(hand_on(spec, flat, layer.preactivations(flat)))
            target.write(shard, output)
    target.commit()
