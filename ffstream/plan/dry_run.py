"""Runs a layer's work on paper, before the layer exists, to find the memory it takes and the operations it does. Pure.

No formula has to repeat what the code does: the code itself runs, on tensors that have a shape but no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ffstream.cache import CacheLayout, compute_batches
from ffstream.data import Scaling, Split
from ffstream.data.augmentation import Augmentation
from ffstream.data.image_access import ChosenImages
from ffstream.device.accelerator import ANY
from ffstream.device.caching_allocator import Event, Trace
from ffstream.device.ledger import PAPER, Ledger, Work
from ffstream.device.parts import PartSizes, part_sizes
from ffstream.device.workspace import Workspace
from ffstream.field.blueprint import Blueprint
from ffstream.field.layers import Layer, Mode
from ffstream.field.layers.contract import compute
from ffstream.field.network import LayerSpec
from ffstream.plan.black_box import refusing_undeclared, use_declared
from ffstream.plan.footprint import (
    WRITTEN,
    Footprint,
    KernelBytes,
    Kernels,
    PaperLayer,
    cache_layouts,
    goodness_bytes,
    reading,
    writes_again,
    writing,
    writing_more,
)
from ffstream.training.input_rows import InputRows
from ffstream.training.layer_trainer import LayerTrainer
from ffstream.training.micro_batch import Draw, MicroBatch
from ffstream.training.propagation import FrozenLayer, chunk_samples, hand_on_by_tiles, hand_on_whole

_DRAWN_NUMBERS = 4  # times as much as is kept of a sample's draws exists while those of a view are drawn
_NUM_PARTS = 3  # parts of a batch that run: the first makes the buffers, later ones overlap with the one before

# For small tensors, such as the figures of an epoch. An accelerator's allocator also rounds each of some twenty tensors
# up to 512 bytes.
_SMALL_BYTES = {"cpu": 1024, "accelerator": 16 << 10}

_TERMS = ("rows", "activities", "gradient")  # terms of a footprint that count buffers of the workspace


def do_on_paper(
    blueprint: Blueprint,
    *,
    draws_on_device: bool,
    kernels: Kernels | None = None,
    parts: PartSizes | None = None,
    keeps_cast: bool = False,
) -> list[PaperLayer]:
    """What each of the first layers takes, up to the last one that differs, with the cache on the device.

    With `draws_on_device` the device is the host, so that orders and candidates are drawn in its memory. `kernels` is
    what `probe` knows of what kernels take. A step is computed in `parts`, by default those of a CPU, or of an
    accelerator where nothing is drawn on the device. `keeps_cast` says that all weights are kept in the type of
    products.
    """
    config, kernels = blueprint.config, kernels or Kernels()
    specs = blueprint.distinct
    parts = parts or part_sizes("cpu" if draws_on_device else ANY)
    room = Workspace(PAPER, parts, keeps_cast=keeps_cast)
    work = _PaperWork(blueprint, draws_on_device, room, counts_kernels=kernels.by_operator)
    layers: list[PaperLayer] = []
    write, to_write = Work(), 0
    if config.restreams or writes_again(config):  # images are written again after training has begun
        write, to_write = work.on_input()
    for spec, beside in zip(specs, kernels.of_layers or [KernelBytes()] * len(specs), strict=True):
        terms, done = work.on_layer(spec, cache_layouts(blueprint, spec.row), beside)
        handing_on, settling, drawn = terms.pop("handing_on"), terms.pop("settling"), work.drawn
        footprint = Footprint(slots=0, handing_on=max(handing_on, to_write), **terms)
        events: list[tuple[Event, ...]] = []
        if not draws_on_device:
            events.append(work.trace.take())
            if work.begins_small(spec):  # buffers that grow leave gaps, which an allocator may not be able to use
                work.on_layer(spec, cache_layouts(blueprint, spec.row), beside, begins_small=True)
                events.append(work.trace.take())
        works = done["step"], done["sweep"], done["measure"], done["hand_on"]
        settle = done["settle"], settling
        layers.append(PaperLayer(footprint, *works, handing_on, write, to_write, *settle, parts, drawn, tuple(events)))
    return layers


@dataclass(frozen=True)
class _PaperTile:
    """What one tile takes while it trains: bytes that stay through a step, the most bytes at once, and its work."""

    weights: int
    optimiser: int
    buffers: dict[str, int]
    num_bytes: int
    done: dict[str, Work]

    @property
    def named_bytes(self) -> int:
        return self.weights + self.optimiser + sum(self.buffers.values())


class _Shard:
    """The first shard of a split, chunks of it, and room for a chunk's output.

    These are not in the ledger, as the footprint counts them as slots. Of the chunks, the first and the last are the
    largest. With `all_sizes` there are smaller ones between them: those that are left at the end of a shard.
    """

    def __init__(self, layout: CacheLayout, spec: LayerSpec, parts: PartSizes, *, all_sizes: bool) -> None:
        self.block = torch.empty(layout.shard_shape(0), dtype=layout.dtype, device=PAPER)
        most = min(chunk_samples(layout.num_rows, parts, spec), len(self.block))
        sizes = {min(most, size) for size in layout.shard_sizes()} | {size % most for size in layout.shard_sizes()}
        between = sorted(sizes - {0, most}, reverse=True) if all_sizes else []
        self.chunks = [self.block[:size].flatten(0, 1) for size in (most, *between, most)]
        self.num_rows = layout.num_rows
        shape = len(self.chunks[0]), spec.next_row.num_features
        self.written = torch.empty(shape, dtype=layout.dtype, device=PAPER)


class _PaperWork:
    """Does on paper what the runner does with a layer: a few steps in two epochs, and one chunk of each split."""

    def __init__(
        self, blueprint: Blueprint, draws_on_device: bool, workspace: Workspace, *, counts_kernels: bool
    ) -> None:
        self._blueprint = blueprint
        self._config, self._sizes, self._method = blueprint.config, blueprint.sizes, blueprint.method
        self._draws_on_device = draws_on_device
        self._small_bytes = _SMALL_BYTES["cpu" if draws_on_device else "accelerator"]
        self._workspace = workspace
        self.trace = Trace()
        self.drawn: tuple[int, ...] = ()  # bytes of what was drawn for a shard, the most of all steps of a layer
        self._ledger = Ledger(None if draws_on_device else self.trace, counts_kernels=counts_kernels)
        self._all_sizes = counts_kernels  # a kernel may take more for fewer rows

    @torch.no_grad()
    def on_input(self) -> tuple[Work, int]:
        """The work of writing a chunk of training images, and the most bytes on the device while images are written.

        Chunks are made on the host. If the shape of an image is unknown, augmentation is left out; where rows are
        hybrids, all of the work is.
        """
        data = self._blueprint.data
        if data.image_shape is None and self._method.rows.mixes_samples:
            return Work(), self._small_bytes
        layouts = cache_layouts(self._blueprint, self._blueprint.image_row)
        shape, augmentation = data.image_shape or (data.num_features,), Augmentation(self._config.augmentation)
        works, peaks = {}, []
        for name, layout in layouts.items() if writes_again(self._config) else [("train", layouts["train"])]:
            num_in_chunk = chunk_samples(layout.num_rows, part_sizes("cpu"))  # made on the host, whatever the device
            num_in_chunk = min(num_in_chunk, layout.num_samples, layout.shard_samples)
            labels = torch.zeros(num_in_chunk, dtype=torch.int64)
            images = torch.empty(num_in_chunk, *shape, dtype=torch.uint8, device=PAPER)
            given = images.unsqueeze(1).expand(-1, layout.num_rows - 1, *shape)
            with self._ledger as ledger:
                draws = None
                if augmentation.is_there and data.image_shape and name == "train":
                    draws = augmentation.draw_fresh(num_in_chunk, 0, 0, 0)
                ledger.start_peak()
                before, start = ledger.live_bytes, ledger.work
                numbers = torch.empty(num_in_chunk, dtype=torch.int64, device=PAPER)  # in the order of the split
                chosen, negatives = (ChosenImages(each, numbers) for each in (images, given))
                split = Split(chosen, labels, negatives if data.brings_negatives else None)
                rows = InputRows(self._method.rows, split, Scaling(1.0), seed=0, held_out=name == "validation")
                rows.make(augmentation, draws)(slice(0, num_in_chunk))
                drawn_bytes = augmentation.bytes_per_sample * layout.num_samples if draws is not None else 0
                peaks.append(ledger.peak_bytes - before + drawn_bytes)
                works[name] = ledger.work - start
        if self._config.augmentation.views > 1:
            peaks.append(_DRAWN_NUMBERS * augmentation.bytes_per_sample * self._blueprint.num_cached["train"])
        kept = 3 * goodness_bytes(self._blueprint, layouts).get("validation", 0)
        return works["train"], (max(peaks) + kept if self._draws_on_device else 0) + self._small_bytes

    def begins_small(self, spec: LayerSpec) -> bool:
        """Whether an epoch may begin with a batch that is not the largest: with one of the shard that is not full."""
        return len(self._first_batches(cache_layouts(self._blueprint, spec.row)["train"])) > 1

    def _first_batches(self, layout: CacheLayout) -> set[int]:
        """The sizes of the first batches that are cut from shards; within a shard, later ones are no larger."""
        counts = layout.shard_sizes()
        return {-(-count // -(-count // self._sizes.batch)) for count in counts}

    @torch.no_grad()
    def on_layer(
        self, spec: LayerSpec, layouts: dict[str, CacheLayout], kernels: KernelBytes, *, begins_small: bool = False
    ) -> tuple[dict[str, int], dict[str, Work]]:
        """The terms of a footprint without the slots, and the work of a step, of measuring and of handing on.

        With `begins_small`, the first batch is the smallest that an epoch may begin with.
        """
        tiles = self._blueprint.tiles_of(spec)
        shards = {
            name: _Shard(layout, spec, self._workspace.parts, all_sizes=self._all_sizes)
            for name, layout in layouts.items()
        }
        kept = goodness_bytes(self._blueprint, layouts) if self._draws_on_device else {}
        if not self._draws_on_device:  # as the runner does for an accelerator
            self._workspace.clear()
        self.drawn = ()
        self.trace.take()
        self.trace.make(self._small_bytes)
        # Later tiles are no larger than the second, but what the last one takes may not fit where that was.
        last = tiles[2:][-1:] if not self._draws_on_device and tiles[-1].stop - tiles[-1].start < tiles[0].stop else []
        with refusing_undeclared(spec.kind), self._ledger as ledger:
            trained = [
                self._train_tile(
                    *(spec, units, shards, layouts["train"], kernels, kept.get("train", 0)), begins_small=begins_small
                )
                for units in tiles[:2] + last
            ]
            done = trained[0].done
            done["step"] = (done["step"] + trained[:2][-1].done["step"] * (len(tiles) - 1)) // len(tiles)
            self._workspace.clear()  # as the runner does
            layer = self._build(spec, tiles[0])
            weights = ledger.live_bytes
            beside = []
            if len(tiles) > 1:  # each tile is loaded while the one before is freed; lengths are summed for all rows
                beside.append(weights * (tiles[1].stop - tiles[1].start) // tiles[0].stop)
                beside.append(max(4 * len(shard.block) * shard.block.shape[1] for shard in shards.values()))
            for num_bytes in (*beside, kernels.in_passes):
                self.trace.make(num_bytes)
            ledger.start_peak()
            done["settle"] = self._settle(layer, spec, shards["train"])
            settling = ledger.peak_bytes + kernels.in_passes + (kept.get("train", 0) if len(tiles) > 1 else 0)
            ledger.start_peak()
            if spec.hands_on:
                frozen = FrozenLayer(spec, [tiles[0]], lambda _: layer)
                done["hand_on"] = self._hand_on(frozen, shards, by_tiles=len(tiles) > 1) * len(tiles)
            handing_on = ledger.peak_bytes + kernels.in_passes + sum(beside)
        on_host = 3 * kept.get("validation", 0)  # of the tiles so far, of this one, of the layers so far
        first, more = trained[0], max(tile.num_bytes for tile in trained) - trained[0].named_bytes
        terms = first.buffers | {
            "weights": first.weights,
            "optimiser": first.optimiser,
            "others": more + on_host + self._small_bytes,
            "handing_on": handing_on + on_host + self._small_bytes,
            "settling": settling + on_host + self._small_bytes,
        }
        return terms, done

    def _build(self, spec: LayerSpec, units: slice) -> Layer:
        with PAPER:
            layer = self._blueprint.build_layer(spec, units)
        self._ledger.enter(layer.buffers())
        layer.workspace = self._workspace
        use_declared(layer)
        return layer

    def _train_tile(
        self,
        spec: LayerSpec,
        units: slice,
        shards: dict[str, _Shard],
        layout: CacheLayout,
        kernels: KernelBytes,
        kept: int,
        *,
        begins_small: bool,
    ) -> _PaperTile:
        """What one tile takes from its start until it is measured at its end.

        `layout` is that of the training cache. `kept` is the bytes of the training samples' goodness, if the device
        holds it: the sum over earlier tiles throughout, and this tile's own once the optimiser is freed.
        """
        num_blocks = min(self._sizes.num_shards_in_batch, layout.num_blocks)
        largest = max(layout.batch_sizes(self._sizes.batch))
        others = sorted(set(layout.batch_sizes(self._sizes.batch)) - {largest}) if self._all_sizes else []
        sizes = [min(self._first_batches(layout))] * begins_small + [largest, *others, largest]
        ledger, block = self._ledger, shards["train"].block
        labels = torch.zeros(len(block), dtype=torch.int64)
        generator = torch.Generator()
        goodness, has_others = self._blueprint.goodness, units.start > 0
        num_epochs = spec.num_epochs
        of_tiles = kept if has_others else 0
        trace = self.trace
        before = ledger.live_bytes
        layer = self._build(spec, units)
        weights = ledger.live_bytes - before
        trainer = LayerTrainer(layer, spec.index, self._blueprint, PAPER, units)
        optimiser = ledger.live_bytes - before - weights
        peaks = []  # of phases that do not overlap
        done = {"step": Work(), "sweep": Work(), "measure": Work(), "hand_on": Work()}
        totals = torch.zeros(4, device=PAPER)

        def measure(name: str) -> Work:
            ledger.start_peak()
            start = ledger.work
            trace.begin(reading(name))
            beside = trace.make(kernels.in_passes)
            layer.begin(Mode.MEASURING)
            shard = shards[name]
            for chunk in shard.chunks:  # what is found for one is there until it is found for the next, as in a run
                start, num_samples = ledger.work, len(chunk) // shard.num_rows
                rows = spec.row.read(chunk)
                _found = self._method.reading.sweep(layer, goodness, compute(layer, rows), num_samples) * 1.0
            trace.free(beside)
            peaks.append(ledger.peak_bytes + kernels.in_passes + of_tiles + (kept if name == "train" else 0))
            return ledger.work - start

        # A second step of the largest batch, and a second epoch, reuse all buffers.
        for epoch, batches in enumerate((sizes, [*others, largest])[:num_epochs]):
            informed = has_others or epoch > 0
            for num_in_batch in batches:
                ledger.start_peak()
                trace.begin(reading("train"))
                index, drawn = self._draw(labels, num_in_batch, has_others=has_others, informed=informed)
                peaks.append(ledger.peak_bytes + of_tiles)
                self.drawn = max(self.drawn, drawn.list_bytes(), key=sum)
                ledger.start_peak()
                start = ledger.work
                beside = trace.make(kernels.in_steps)
                figures, left_out = self._step(trainer, drawn.take(block, index), num_blocks, generator)
                trace.free(beside)
                totals += figures
                peaks.append(ledger.peak_bytes + kernels.in_steps + of_tiles)
                done["step"] = ledger.work - start + left_out
                del drawn  # as the runner does, before it draws for another shard
            if "validation" in shards:
                done["sweep"] = measure("validation")
        buffers = {term: self._workspace.num_bytes(term) for term in _TERMS}
        if units.stop < spec.width:  # the next tile builds on it
            del trainer  # as the runner does: buffers that grow here may take the memory of the optimiser's state
            done["measure"] = measure("train")
        return _PaperTile(weights, optimiser, buffers, max(peaks), done)

    def _step(
        self, trainer: LayerTrainer, batch: MicroBatch, num_blocks: int, generator: torch.Generator
    ) -> tuple[Tensor, Work]:
        """Take a step. Returns its figures, and the work of the parts left out: three parts stand for any number."""
        num_samples, parts = num_blocks * len(batch.index), batch.cut(self._sizes.num_micro_batches)
        num_left_out = num_blocks * len(parts) - _NUM_PARTS
        if num_left_out <= 0:
            return trainer.step(num_blocks * [batch], num_samples, 1.0, generator), Work()
        before = []

        def noted() -> Iterator[MicroBatch]:
            smallest = parts[-1 if self._all_sizes else 0]
            for part in (*[parts[0]] * (_NUM_PARTS - 1), smallest):  # the first is the largest
                before.append(self._ledger.work)
                yield part

        figures = trainer.step_in_parts(noted(), num_samples, 1.0, generator)
        return figures, (before[-1] - before[-2]) * num_left_out

    def _settle(self, layer: Layer, spec: LayerSpec, shard: _Shard) -> Work:
        """Take the statistics of a layer that has some. Returns the work for a chunk."""
        if not layer.has_statistics:
            return Work()
        layer.begin(Mode.HANDING_ON)
        total = torch.zeros(())
        for chunk in shard.chunks:  # the last one reuses all buffers
            start = self._ledger.work
            rows = spec.row.read(chunk)
            total = total + layer.statistics_of(compute(layer, rows)).double()
        return self._ledger.work - start

    def _hand_on(self, layer: FrozenLayer, shards: dict[str, _Shard], *, by_tiles: bool) -> Work:
        """Hand on chunks of every split. Returns the work for the last chunk of each, which reuses all buffers."""
        hand_on_chunks = hand_on_by_tiles if by_tiles else hand_on_whole
        for number in range(2):
            start = self._ledger.work
            for name, shard in shards.items():
                self.trace.begin(reading(name))
                self.trace.begin(writing(name))
                for chunk in shard.chunks[-1:] if number else shard.chunks[:-1]:
                    hand_on_chunks(layer, [(chunk, shard.written[: len(chunk)])])
                self.trace.begin(writing_more(name))  # the second slot is made once the buffers for the first are
                self.trace.begin(WRITTEN)
        return self._ledger.work - start

    def _draw(self, labels: Tensor, size: int, *, has_others: bool, informed: bool) -> tuple[Tensor, Draw]:
        """The index of a batch of `size` samples, a view of a shard's order, and what is drawn for the shard."""
        kind, num_samples = self._method.candidates, len(labels)
        sampler = kind.informed if informed else None
        has_pool = sampler is not None and kind.num_in_pool is not None
        if self._draws_on_device:  # with real tensors: on paper it would be slower
            generator = torch.Generator()
            batches = compute_batches(num_samples, size, generator)
            kind.draw(labels, generator)
            if sampler is not None:
                kind.draw_pool(labels, generator)
                sampler.draw_noise(num_samples, kind.num_choices, generator)
            del batches
        order = torch.empty(num_samples, dtype=torch.int64, device=PAPER)
        candidates = torch.empty(num_samples, kind.num_candidates, dtype=torch.int64, device=PAPER)
        choices = num_samples, kind.num_choices
        noise = torch.empty(choices, device=PAPER) if sampler is not None else None
        pool = torch.empty(choices, dtype=torch.int64, device=PAPER) if has_pool else None
        num_others = kind.num_values if sampler is not None else kind.num_candidates
        others = torch.empty(num_samples, num_others, device=PAPER) if has_others else None
        return order[:size], Draw(candidates, others, noise, pool)
