"""Filling caches, the first from data and each further one by passing through a frozen layer; measuring goodness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ffstream.cache import ActivationCache
from ffstream.cache.pinned import Gathering
from ffstream.cache.transfer import Transfer
from ffstream.device.parts import PartSizes, part_sizes
from ffstream.field.goodness import Goodness
from ffstream.field.labels import Reading
from ffstream.field.layers import LAYER_KINDS, Layer, Mode
from ffstream.field.layers.contract import check_handed, compute
from ffstream.field.network import LayerSpec, hand_on
from ffstream.field.normalisation import divide_by_length_
from ffstream.training.input_rows import RowsOf

_REMEMBERED_SAMPLES = 8192  # of earlier windows, which a layer's statistics are taken from as well


def write_rows(transfer: Transfer, cache: ActivationCache, rows_of: RowsOf, view: int = 0) -> None:
    """Fill one view of a cache with the rows that `rows_of` makes, a few samples at a time and in order.

    They are made on the host, whatever the device, and what is drawn for them may depend on how many are made at once.
    """
    layout = cache.layout
    step = chunk_samples(layout.num_rows, part_sizes("cpu"))
    for shard in range(view, layout.num_shards, layout.num_views):
        samples = layout.shard_range(shard)
        with transfer.storing(cache, shard) as output:
            for written, start in zip(output.split(step), range(samples.start, samples.stop, step), strict=True):
                written.copy_(rows_of(slice(start, start + len(written))))
    transfer.flush()


class FrozenLayer:
    """A layer that no longer changes, whose tiles come to the device one at a time: iterating yields (units, tile).

    `load` makes a tile and puts it on the device; a layer of one tile may be on the device already. At most two tiles
    are on the device at once, while the second replaces the first.
    """

    def __init__(self, spec: LayerSpec, tiles: Sequence[slice], load: Callable[[slice], Layer]) -> None:
        self.spec = spec
        self.num_tiles = len(tiles)
        self._tiles = tiles
        self._load = load

    def __iter__(self) -> Iterator[tuple[slice, Layer]]:
        for units in self._tiles:
            yield units, self._load(units)


@torch.no_grad()
def measure_goodness(
    transfer: Transfer,
    tile: Layer,
    spec: LayerSpec,
    cache: ActivationCache,
    reading: Reading,
    goodness: Goodness,
    num_units: int,
) -> Tensor:
    """What a tile adds to the goodness of every label, for each sample stored: (num_stored, num_classes), on the host.

    From training rows, it is for every value that a candidate may take. A mean is taken over `num_units`, which may
    count units of other tiles too.
    """
    total = Gathering(cache.layout.num_stored, transfer.device)
    weight = goodness.weight(tile.num_units, num_units)
    step = chunk_samples(cache.layout.num_rows, part_sizes(transfer.device.type), spec)
    for shard, block in transfer.blocks(cache, range(cache.layout.num_shards)):
        start = cache.layout.stored_range(shard).start
        for number, chunk in enumerate(block.split(step)):
            rows = spec.row.read(chunk.flatten(0, 1))
            tile.begin(Mode.MEASURING, place=f"{shard} {number}")
            found = reading.sweep(tile, goodness, compute(tile, rows), len(chunk)) * weight
            total.put(start, found)
            start += len(chunk)
    return total.finish()


@torch.no_grad()
def propagate(
    transfer: Transfer, layer: FrozenLayer, source: ActivationCache, target: ActivationCache, *, move: bool
) -> None:
    """Store in `target` what `layer` hands on for every row of `source`, for the shards that `target` lacks.

    With `move`, a shard of `source` is freed as soon as that of `target` is durable, so that both caches together take
    little more space than one.
    """
    step = chunk_samples(source.layout.num_rows, part_sizes(transfer.device.type), layer.spec)
    hand_on_shard = hand_on_whole if layer.num_tiles == 1 else hand_on_by_tiles
    for shard, rows in transfer.blocks(source, target.missing()):
        with transfer.storing(target, shard, partial(source.free, shard) if move else None) as output:
            chunks = [
                (chunk.flatten(0, 1), written.flatten(0, 1))
                for chunk, written in zip(rows.split(step), output.split(step), strict=True)
            ]
            hand_on_shard(layer, chunks, shard)
    transfer.flush()


def hand_on_whole(layer: FrozenLayer, chunks: Sequence[tuple[Tensor, Tensor]], shard: int = 0) -> None:
    """Fill `written` of each pair (rows, written) with what a layer of one tile hands on for `rows`.

    The pairs are those of a `shard`, whose number decides the noise of a layer that has some.
    """
    for _, tile in layer:
        for number, (rows, written) in enumerate(chunks):
            tile.begin(Mode.HANDING_ON, place=f"{shard} {number}")
            _store(tile, written, hand_on(tile, layer.spec, rows, compute(tile, layer.spec.row.read(rows))))


def _store(tile: Layer, written: Tensor, rows: Tensor) -> None:
    check_handed(tile, rows, written)
    written.copy_(rows)


def hand_on_by_tiles(layer: FrozenLayer, chunks: Sequence[tuple[Tensor, Tensor]], shard: int = 0) -> None:
    """The same for several tiles, without a whole row.

    Tiles whose units are normalised one by one hand on as they come. Else one pass sums the squares of rows, and a
    second one computes and normalises.
    """
    spec, squares = layer.spec, list[Tensor]()
    by_unit = LAYER_KINDS[spec.kind].hands_on_by_unit(spec.shape)
    if not by_unit:
        squares = _sum_squares(layer, chunks, shard)
    for units, tile in layer:
        for number, (rows, written) in enumerate(chunks):
            tile.begin(Mode.HANDING_ON, place=f"{shard} {number}")  # the same noise as while squares were summed
            total = None if by_unit else squares[number]
            spec.next_row.write_units(
                *(written, units, _hand_on_units(tile, spec, rows, total)), spec.number, spec.row, rows
            )
    for rows, written in chunks:
        spec.next_row.write_rest(written, spec.number, spec.row, rows)


def _hand_on_units(tile: Layer, spec: LayerSpec, rows: Tensor, squares: Tensor | None) -> Tensor:
    """What the units of a tile hand on, (n, units): divided by the length of rows, if its square (n, 1) is given."""
    preactivations = compute(tile, spec.row.read(rows))
    if squares is None:
        return tile.hand_on(preactivations)
    return divide_by_length_(tile.activate_(preactivations), squares / spec.num_units)


def _sum_squares(layer: FrozenLayer, chunks: Sequence[tuple[Tensor, Tensor]], shard: int) -> list[Tensor]:
    """The squared length (n, 1) of the activities of each chunk's rows, summed over all tiles."""
    spec = layer.spec
    squares = [torch.zeros(len(rows), 1, device=rows.device) for rows, _ in chunks]
    for _, tile in layer:
        for number, ((rows, _), total) in enumerate(zip(chunks, squares, strict=True)):
            tile.begin(Mode.HANDING_ON, place=f"{shard} {number}")
            total += tile.activate_(compute(tile, spec.row.read(rows))).square_().sum(dim=1, keepdim=True)
    return squares


@torch.no_grad()
def settle(
    transfer: Transfer, layer: Layer, spec: LayerSpec, cache: ActivationCache, before: Tensor | None = None
) -> Tensor:
    """Tell a trained layer what it has to know of all rows of its training cache before it hands on.

    What was summed over earlier windows of a round may be given as `before`. The newest samples count most: a sample
    that came 8,192 samples ago counts 1 / e, as the layer has changed since. Returns the sum with this cache.
    """
    total = torch.zeros(())
    step = chunk_samples(cache.layout.num_rows, part_sizes(transfer.device.type), spec)
    for shard, block in transfer.blocks(cache, range(cache.layout.num_shards)):
        for number, chunk in enumerate(block.split(step)):
            layer.begin(Mode.HANDING_ON, place=f"{shard} {number}")
            rows = spec.row.read(chunk.flatten(0, 1))
            total = total + layer.statistics_of(compute(layer, rows)).to("cpu", torch.float64)
    if before is not None:
        total = total + before * max(1 - cache.layout.num_samples / _REMEMBERED_SAMPLES, 0)
    layer.settle(total)
    return total


def chunk_samples(num_rows: int, parts: PartSizes, spec: LayerSpec | None = None) -> int:
    """How many samples, of `num_rows` rows each, make up one product of a pass, through a layer if `spec` is given."""
    most_rows = parts.chunk_rows if spec is None else spec.limit_rows(parts.chunk_rows)
    return max(1, most_rows // num_rows)
